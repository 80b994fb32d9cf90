"""verdicts.md and the study's figures, from claims and the rows of runs.csv alone."""

import functools
from pathlib import Path

import numpy as np
from scipy import stats

from .rows import accuracies, chain, last_rows
from .statistics import LEVEL, Table, verdict_of

_COLOURS = ("#1f5fa8", "#d1495b", "#3a8a5f", "#8a6d3b")
_WORD_COLOURS = {"confirmed": "#3a8a5f", "contradicted": "#d1495b"}


def write_page(folder, preset, claims, rows, tuning):
    """Write FOLDER/verdicts.md and FOLDER/figures/<claim>.svg; -> [(claim, verdict, outcomes)].

    preset: of the command;  claims: claims.Claim;  rows: see report/rows.py
    tuning: the number of seeds that candidates are chosen on
    """
    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    judged, sections = [], []
    for claim in claims:
        table = Table(accuracies(rows, claim.preset))
        seeds = range(claim.seeds)
        outcomes = [
            test.judge(table, seeds, range(min(tuning, claim.seeds))) for test in claim.tests
        ]
        judged.append((claim, verdict_of(outcomes), outcomes))
        draw(figures / f"{claim.name}.svg", claim, table, outcomes)
        sections += _section(*judged[-1], table, rows, preset)
    lines = ["# Verdicts", "", _INTRODUCTION, "", *_summary(judged), *sections]
    Path(folder, "verdicts.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return judged


_INTRODUCTION = (
    "Made by `study.py --report` from `runs.csv` and `claims.py`.  Accuracies are percent top-1 on "
    "test images, last weights; choices were made on validation images.  Differences are paired by "
    "seed: points, mean, 95 % t interval; p is the exact two-sided sign-flip p."
)


def print_verdicts(judged):
    """One line a claim."""
    width = max(len(claim.name) for claim, *_ in judged)
    for claim, verdict, outcomes in judged:
        contrasts = [contrast for outcome in outcomes for contrast in outcome.contrasts]
        numbers = "; ".join(f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]" for c in contrasts)
        print(f"{claim.name:<{width}}  {_word(claim, verdict):<20} {numbers}")


def _word(claim, verdict):
    return f"{verdict}, toy" if claim.toy and verdict != "unfinished" else verdict


def _summary(judged):
    yield "| claim | paper | verdict | differences, points |"
    yield "|---|---|---|---|"
    for claim, verdict, outcomes in judged:
        contrasts = [contrast for outcome in outcomes for contrast in outcome.contrasts]
        numbers = "; ".join(f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]" for c in contrasts)
        yield (
            f"| [{claim.name}](#{claim.name}) | {claim.paper} | **{_word(claim, verdict)}** | "
            f"{numbers} |"
        )


def _section(claim, verdict, outcomes, table, rows, preset):
    yield from ("", f"## {claim.name}", "", claim.words, "", f"Paper: {claim.paper}.", "")
    yield from (f"![{claim.name}](figures/{claim.name}.svg)", "")
    yield f"**{_word(claim, verdict)}**" + (f" ({claim.toy})" if claim.toy else "")
    yield from ("", "| test | counts from | verdict | mean | 95 % interval | p | n | points |")
    yield "|---|---|---|---|---|---|---|---|"
    for test, outcome in zip(claim.tests, outcomes, strict=True):
        rule = f"{type(test).__name__} | {test.smallest:g} | {outcome.verdict}"
        if not outcome.contrasts:
            yield f"| {rule} | | | | | |"
        for c in outcome.contrasts:
            points = ", ".join(f"{x:+.2f}" for x in c.differences)
            yield (
                f"| {c.name}: {rule} | {c.mean:+.2f} | {c.low:+.2f} to {c.high:+.2f} | "
                f"{c.p_flip:.3g} | {len(c.differences)} | {points} |"
            )
    notes = [outcome.note for outcome in outcomes if outcome.note]
    yield from ("", *(f"{note[0].upper()}{note[1:]}.  " for note in notes), "")
    yield from _arms_table(claim, table, rows)
    if verdict == "unfinished":
        yield f"Not all of the {claim.seeds} registered seeds are there; this finishes it:"
    yield from ("```", f"python study.py --preset {preset} --claims {claim.name}", "```")


def _arms_table(claim, table, rows):
    """Every arm with what it cost and what its selection was like."""
    ends = last_rows(rows, claim.preset)
    yield "| arm | validation | test | n | images | multiply-adds | labels right |"
    yield "|---|---|---|---|---|---|---|"
    for arm in claim.arms:
        last = ends.get(arm.name, {})
        if not last:
            yield f"| {arm.name} | not run | | 0 | | | |"
            continue
        runs = [chain(rows, row) for row in last.values()]
        val, test = (table.column(arm.name, last, subset) for subset in (0, 1))
        images = np.mean([sum(int(row["images"]) for row in steps) for steps in runs])
        work = np.mean([sum(int(row["multiply_adds"]) for row in steps) for steps in runs])
        right = [float(r["labels_right"]) for steps in runs for r in steps if r["labels_right"]]
        yield (
            f"| {arm.name} | {_mean_sd(val)} | {_mean_sd(test)} | {len(last)} | {images:,.0f} | "
            f"{work:.3g} | {f'{np.mean(right):.1f} %' if right else ''} |"
        )
    yield ""


def _mean_sd(numbers):
    return f"{numbers.mean():.2f}" + (f" ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else "")


# --- figures ------------------------------------------------------------------------------------


def draw(path, claim, table, outcomes):
    """Three panels: the paper's figure, ours, and the differences that were tested."""
    import matplotlib

    with matplotlib.rc_context(
        {"svg.hashsalt": claim.name, "svg.fonttype": "none", "font.size": 9, "axes.grid": True,
         "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    ):  # fmt: skip
        figure = _figure(claim, table, outcomes)
        figure.savefig(path, metadata={"Date": None})


def _figure(claim, table, outcomes):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    paper, ours, tests = figure.subplots(1, 3, width_ratios=(3, 3, 2.6))
    paper.set_title("paper: ImageNet")
    ours.set_title(f"here: preset {claim.preset}")
    axis = functools.partial(_Axis, x_label=claim.plot.x_label)
    panel = axis(paper, [x for points in claim.plot.paper.values() for x, _ in points])
    for number, (series, points) in enumerate(claim.plot.paper.items()):
        panel.line(series, number, [(x, [y]) for x, y in points])
    panel.finish("no figures in the paper")
    panel = axis(ours, [x for points in claim.plot.ours.values() for x, _ in points])
    for number, (series, points) in enumerate(claim.plot.ours.items()):
        seen = [(x, table.accuracies.get(arm, {})) for x, arm in points]
        panel.line(
            series, number, [(x, [y for _, y in found.values()]) for x, found in seen if found]
        )
    panel.finish("not run yet")
    _draw_tests(tests, claim, outcomes)
    return figure


class _Axis:
    """Accuracies over numbers on a logarithmic axis, or over words in their order."""

    def __init__(self, axes, xs, x_label):
        self.axes, self.words = axes, list(dict.fromkeys(x for x in xs if isinstance(x, str)))
        axes.set_xlabel(x_label)
        axes.set_ylabel("top-1, %")
        if self.words:
            few = len(self.words) < 4 and max(map(len, self.words)) < 14
            turn = {} if few else {"rotation": 30, "ha": "right"}
            axes.set_xticks(range(len(self.words)), self.words, **turn)
            axes.set_xlim(-0.5, len(self.words) - 0.5)
        elif xs:
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))], minor=False)

    def line(self, series, number, points):
        """points: [(x, accuracies of the seeds)]"""
        if not points:
            return
        xs = [self.words.index(x) if self.words else x for x, _ in points]
        means = [np.mean(ys) for _, ys in points]
        colour = _COLOURS[number % len(_COLOURS)]
        if len(points) == 1 and not self.words:  # a level to compare with
            self.axes.axhline(means[0], color=colour, linestyle="--", label=series)
            return
        joined = "-" if len(points) > 1 and (not self.words or len(self.words) > 2) else ""
        self.axes.plot(xs, means, marker="o", linestyle=joined, color=colour, label=series)
        for x, (_, ys) in zip(xs, points, strict=True):
            if len(ys) > 1:
                self.axes.plot([x] * len(ys), ys, ".", color=colour, alpha=0.4, markersize=4)
                self.axes.errorbar(x, np.mean(ys), _half(ys), color=colour, capsize=3)

    def finish(self, otherwise):
        if self.axes.lines:
            self.axes.legend(fontsize=8)
        else:
            self.axes.text(0.5, 0.5, otherwise, ha="center", transform=self.axes.transAxes)


def _half(ys):
    """Half the 95 % t interval of a mean."""
    return stats.t.ppf((1 + LEVEL) / 2, len(ys) - 1) * np.std(ys, ddof=1) / np.sqrt(len(ys))


def _draw_tests(axes, claim, outcomes):
    """The paired differences, one row each, with the least that counts."""
    axes.set_title("differences, paired by seed")
    axes.set_xlabel("points")
    axes.axvline(0, color="black", linewidth=0.8)
    labels = []
    for test, outcome in zip(claim.tests, outcomes, strict=True):
        colour = _WORD_COLOURS.get(outcome.verdict, "#777777")
        for contrast in outcome.contrasts:
            row = len(labels)
            labels.append(f"{contrast.name}\n{outcome.verdict}".replace(" - ", "\n- "))
            axes.plot(contrast.differences, [row] * len(contrast.differences), ".", color=colour)
            reach = [[contrast.mean - contrast.low], [contrast.high - contrast.mean]]
            axes.errorbar(contrast.mean, row, xerr=reach, marker="D", color=colour, capsize=3)
            axes.plot([test.smallest] * 2, [row - 0.3, row + 0.3], "k:", linewidth=1)
    if not labels:
        axes.text(0.5, 0.5, "not all seeds are there", ha="center", transform=axes.transAxes)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)
