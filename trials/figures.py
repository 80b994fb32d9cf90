"""The figure of a claim: how many points each arm is above another one, in the paper and here."""

import textwrap
from dataclasses import dataclass

import numpy as np

from .statistics import Contrast

# One meaning a colour, in all figures.
_STUDENT, _ALONE, _PAPER = "#1f5fa8", "#c26a00", "#5b5b5b"
_STYLE = {"svg.fonttype": "none", "font.size": 13, "axes.grid": True, "axes.grid.axis": "x"}
_STYLE |= {"grid.alpha": 0.3, "axes.axisbelow": True, "ytick.major.size": 0}
_STYLE |= {f"axes.spines.{side}": False for side in ("top", "left", "right")}
_LEAST = 3  # seeds that an interval is drawn for


@dataclass(frozen=True)
class Row:
    """One row of a figure: an arm, above or below the arm that is at zero."""

    label: str
    alone: bool  # labels alone
    zero: str  # label of the arm at zero
    differences: tuple[float, ...]  # points, one a seed; empty where nothing has run
    paper: float | None  # points


def save_svg(figure, path):
    """Write a figure so that the same numbers give the same bytes; its text stays text."""
    import matplotlib

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def figure_rows(claim, table, outcomes):
    """claim: trials.claim.Claim;  table: statistics.Table;  outcomes: of its tests;  -> [Row]

    At zero is the arm that the claim names, or else the one that its first test compares with; it
    has no row.
    """
    chosen = {arm for outcome in outcomes for arm in outcome.arms}
    drawn = {}  # label: arm
    for label, side in claim.rows.items():
        names = [arm.name for arm in (side if isinstance(side, list) else [side])]
        drawn[label] = next((name for name in names if name in chosen), names[0])
    labels = {arm: claim.drawn.get(label, label) for label, arm in drawn.items()}
    reported, rows = claim.reported, []
    for label, arm in drawn.items():
        zero = arm_at_zero(claim, outcomes, label)
        if arm == zero:
            continue
        ours, other = table.accuracies.get(arm, {}), table.accuracies.get(zero, {})
        differences = tuple(ours[seed][1] - other[seed][1] for seed in sorted(ours.keys() & other))
        tuned = "" if isinstance(claim.zero, dict) else "tuned "
        alone = f"the {tuned}labels alone" if _is_alone(zero) else zero
        rows.append(
            Row(
                claim.drawn.get(label, label),
                _is_alone(arm),
                labels.get(zero, alone),
                differences,
                reported.get(label),
            )
        )
    return rows


def _is_alone(arm):
    return arm.startswith("labels alone")


def arm_at_zero(claim, outcomes, label):
    """The name of the arm that a row of the figure is drawn above."""
    zero = claim.zero[label] if isinstance(claim.zero, dict) else claim.zero
    return zero.name if zero else outcomes[0].arms[claim.tests[0].base]


def claim_figure(claim, table, outcomes):
    """-> matplotlib Figure, or None where none of its rows has run; see `figure_rows`"""
    import matplotlib
    from matplotlib.figure import Figure

    rows = figure_rows(claim, table, outcomes)
    if not any(row.differences for row in rows):
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, 1.9 + 0.62 * len(rows)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12)
        axes = figure.subplots()
        _draw(axes, rows)
        first = claim.tests[0]
        limits = first.limits(arm_at_zero(claim, outcomes, next(iter(claim.rows))))
        for limit, label in zip(limits, (f"counts from {first.smallest:g}", "_"), strict=False):
            axes.axvline(limit, color="black", linestyle="--", linewidth=1, label=label)
        words = ", ".join(dict.fromkeys(outcome.verdict for outcome in outcomes))
        figure.suptitle(f"{claim.name}: {words}", x=0.02, ha="left", fontsize=13, weight="bold")
        look = {"frameon": False, "fontsize": 11, "handletextpad": 0.4, "columnspacing": 1.2}
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2, **look)
    return figure


def _draw(axes, rows):
    names = {_STUDENT: "here: mean, 95 % interval, seeds", _ALONE: "here: labels alone"}
    names[_PAPER] = "paper"
    beside = {"x": 1.02, "va": "center", "transform": axes.get_yaxis_transform()}
    for y, row in enumerate(rows):
        colour, count = _ALONE if row.alone else _STUDENT, len(row.differences)
        if row.paper is not None:
            look = {"color": _PAPER, "markerfacecolor": "white", "markersize": 9}
            axes.plot(row.paper, y - 0.2, "D", label=names.pop(_PAPER, "_"), **look)
            axes.text(y=y - 0.2, s=f"{row.paper:+.1f}", color=_PAPER, **beside)
        if not count:
            continue
        mean, place = np.mean(row.differences), y + 0.17
        if count >= _LEAST:
            seen = Contrast.of("", row.differences, np.zeros(count))
            axes.plot([seen.low, seen.high], [place] * 2, color=colour, linewidth=3, alpha=0.6)
        small = {"color": colour, "alpha": 0.5, "markersize": 5}
        axes.plot(row.differences, [place + 0.17] * count, ".", **small)
        axes.plot(mean, place, "o", color=colour, markersize=10, label=names.pop(colour, "_"))
        axes.text(y=place, s=f"{mean:+.1f}", color=colour, weight="bold", **beside)
    axes.set_yticks(range(len(rows)), [textwrap.fill(row.label, 20) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(0, color="black", linewidth=1.2)
    axes.set_xlabel(f"points over {rows[0].zero}")
