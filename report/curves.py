"""Matplotlib figures that compare trainings with each other: numbers in, Figures out."""

import numpy as np

from .figures import BLUE, GREEN, GREY, ORANGE, RED, blank, finish, name_ticks

# A training's line: told apart by colour, dash and mark.
_LINES = ((ORANGE, "--", "s"), (BLUE, "-", "o"), (GREEN, "-.", "^"), (RED, ":", "D"))
_LINES += ((GREY, "-", "x"),)


def learning_curves(curves):
    """curves: {training: (images processed (n,), validation top-1 in percent (n,))} -> Figure."""
    figure = blank(4.6, 3.6)
    axes = figure.add_subplot()
    for number, (name, (images, percent)) in enumerate(curves.items()):
        colour, dash, mark = _LINES[number % len(_LINES)]
        every = max(1, len(images) // 8)
        looks = {"color": colour, "linestyle": dash, "marker": mark, "markevery": every}
        axes.plot(images, percent, **looks, markersize=5, label=name)
    axes.set(xlabel="images processed in this training", ylabel="validation top-1, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    return finish(figure, axes, "Learning curves")


def gain_per_class(right, classes):
    """right: {network: percent right of each class (C,), NaN where it has no images}, two or more
    in the order of the steps -> Figure.

    A bar a class of what the last network has gained on the first, upwards or downwards; a mark
    for those between.
    """
    (first, before), *between, (last, after) = right.items()
    gain, number = np.nan_to_num(after - before), len(classes)
    figure = blank(max(4.6, min(16, 2 + 0.15 * number)), 3.6)
    axes = figure.add_subplot()
    kinds = (gain >= 0, BLUE, "", "better"), (gain < 0, ORANGE, "///", "worse")
    for some, colour, hatch, label in kinds:
        if some.any():
            where, label = np.flatnonzero(some), f"{last}: {label}"
            axes.bar(where, gain[some], color=colour, hatch=hatch, edgecolor=GREY, label=label)
    for name, found in between:
        axes.plot(np.arange(number), found - before, "D", color="black", markersize=4, label=name)
    axes.axhline(0, color="black", linewidth=1)
    name_ticks(axes.xaxis, classes, 9 if number <= 30 else 7)
    axes.tick_params(axis="x", rotation=90, length=2)
    axes.set_xlim(-0.7, number - 0.3)
    axes.set_ylabel(f"gain on the {first}, points")
    return finish(figure, axes, "Gain of each class")


def accuracy_of_runs(runs):
    """runs: {run: {training: test top-1 in percent}} -> Figure: a group of dots a run."""
    figure = blank(4.6, 1.6 + 0.4 * len(runs))
    axes = figure.add_subplot()
    trainings = list(dict.fromkeys(name for found in runs.values() for name in found))
    for number, training in enumerate(trainings):
        colour, _, mark = _LINES[number % len(_LINES)]
        at = [(found[training], y) for y, found in enumerate(runs.values()) if training in found]
        axes.plot(*zip(*at, strict=True), mark, color=colour, markersize=8, label=training)
    name_ticks(axes.yaxis, list(runs), 9)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlabel("test top-1, %")
    return finish(figure, axes, "Test top-1 of the runs")
