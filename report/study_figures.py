"""The figure of a claim: the paper's plot, ours in the same form, the differences tested."""

import numpy as np

_COLOURS = ("#1f5fa8", "#d1495b", "#3a8a5f", "#8a6d3b")
_VERDICT_COLOURS = {"confirmed": "#3a8a5f", "contradicted": "#d1495b"}
_STYLE = {"svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
_STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
_DODGE = 0.12  # between the series at one word


def save_svg(figure, path):
    """Write a figure so that the same numbers give the same bytes; its text stays text."""
    import matplotlib

    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def claim_figure(claim, preset, table, outcomes):
    """claim: claims.Claim;  preset: its name;  table: report.statistics.Table
    outcomes: of the claim's tests;  -> matplotlib Figure

    Beside the mean over the seeds stands every seed: a seed's points are joined, since the arms
    are paired by seed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(12, 4), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(3, 3, 3))
        paper = {
            series: [(x, {0: y}) for x, y in points] for series, points in claim.plot.paper.items()
        }
        ours = {
            series: [(x, {s: y for s, (_, y) in table.accuracies.get(arm, {}).items()})
                     for x, arm in points]
            for series, points in claim.plot.ours.items()
        }  # fmt: skip
        _draw_accuracies(left, "paper: ImageNet", claim.plot.x_label, paper)
        _draw_accuracies(middle, f"here: preset {preset}", claim.plot.x_label, ours)
        _draw_tests(right, claim.tests, outcomes)
    return figure


def _draw_accuracies(axes, title, x_label, all_series):
    """all_series: {name: [(x, {seed: percent})]}; x are numbers on a logarithmic axis, or words.

    Words under an axis without a label are in no order, and nothing joins them.
    """
    axes.set_title(title, pad=24)
    if not any(found for points in all_series.values() for _, found in points):
        axes.axis("off")
        axes.text(0.5, 0.5, "no figures", ha="center", transform=axes.transAxes)
        return
    xs = list(dict.fromkeys(x for points in all_series.values() for x, _ in points))
    words = [x for x in xs if isinstance(x, str)]
    axes.set(xlabel=x_label, ylabel="top-1, %")
    if words:
        tilted = len(words) > 3
        turn = {"rotation": 30, "ha": "right"} if tilted else {}
        axes.set_xticks(range(len(words)), words, **turn)
        axes.set_xlim(-0.5, len(words) - 0.5)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(xs), [_number(x) for x in sorted(xs)])
        axes.set_xticks([], minor=True)
    for number, (name, points) in enumerate(all_series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        if not words and len(points) == 1:  # a level to compare with
            if points[0][1]:
                level = np.mean(list(points[0][1].values()))
                axes.axhline(level, color=colour, linestyle="--", label=name)
            continue
        shift = _DODGE * (number - (len(all_series) - 1) / 2) if words and x_label else 0
        places = [words.index(x) + shift if words else x for x, _ in points]
        _draw_series(axes, name, colour, bool(x_label), places, [y for _, y in points])
    legend = axes.legend(
        fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False,
        columnspacing=1, handlelength=1.5,
    )  # fmt: skip
    legend.set_in_layout(False)  # it may be wider than the panel, which stays as it is


def _draw_series(axes, name, colour, joined, places, found):
    """places: (n,) on the axis;  found: n times {seed: percent}"""
    look = {"color": colour, "linestyle": "-" if joined else "none"}
    for seed in sorted({seed for one in found for seed in one}):
        mine = [(x, one[seed]) for x, one in zip(places, found, strict=True) if seed in one]
        if max(map(len, found)) > 1:
            axes.plot(*zip(*mine, strict=True), marker=".", alpha=0.35, linewidth=0.7, **look)
    means = [(x, np.mean(list(one.values()))) for x, one in zip(places, found, strict=True) if one]
    if means:
        axes.plot(*zip(*means, strict=True), marker="o", label=name, linewidth=2, **look)


def _number(x):
    """1/16, 0.1, 2"""
    return f"1/{1 / x:.0f}" if x < 1 and np.log2(x).is_integer() else f"{x:g}"


def _draw_tests(axes, tests, outcomes):
    """Every comparison with its points, mean and interval; dotted: the least that counts."""
    axes.set_title("differences, paired by seed", pad=24)
    pairs = [
        (test, outcome.verdict, contrast)
        for test, outcome in zip(tests, outcomes, strict=True)
        for contrast in outcome.contrasts
    ]
    if not pairs:
        axes.axis("off")
        axes.text(0.5, 0.5, "not all seeds are there", ha="center", transform=axes.transAxes)
        return
    axes.set(xlabel="points", yticks=[], ylim=(len(pairs) - 0.5, -0.6))
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color="black", lw=0.8)
    for row, (test, verdict, contrast) in enumerate(pairs):
        colour = _VERDICT_COLOURS.get(verdict, "#777777")
        reach = [[contrast.mean - contrast.low], [contrast.high - contrast.mean]]
        axes.errorbar(contrast.mean, row, xerr=reach, marker="D", color=colour, capsize=4)
        count = len(contrast.differences)
        axes.plot(contrast.differences, [row + 0.12] * count, ".", color=colour, alpha=0.6)
        for limit in test.limits:
            axes.plot([limit] * 2, [row - 0.2, row + 0.25], ":", color="black", lw=1)
        ours, _, rival = contrast.name.partition(" - ")
        axes.text(0.01, row - 0.22, f"{verdict}:  {ours}\n- {rival}", fontsize=7,
                  transform=axes.get_yaxis_transform())  # fmt: skip
