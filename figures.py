"""Matplotlib figures for TensorBoard's `add_figure`: arrays in, Figures out.

No pyplot (it keeps every figure alive and may ask for a display), no disk access.  The colours are
Okabe and Ito's, which colour-blind readers can tell apart, and a red darker than their green; where
right and wrong matter, a mark says it too.
"""

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#B2182B", "#666666"
_RIGHT, _WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"
_NAMED = 100  # at most so many names along an axis; of more, every second, third, ... is written
_NUMBERED = 20  # a matrix of at most so many classes has its numbers written in
_RANK_BINS = 20


def _figure(width, height, layout="constrained"):
    figure = Figure(figsize=(width, height), dpi=100, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _shorten(name, most=16):
    name = str(name)
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _name_ticks(axis, classes, size):
    step = math.ceil(len(classes) / _NAMED)
    axis.set_ticks(
        range(0, len(classes), step), [_shorten(name) for name in classes[::step]], fontsize=size
    )


def _plain(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def confusion_matrix(matrix, classes):
    """matrix (C,C) counts, rows true, columns predicted -> Figure, each row in percent of its sum.

    A class that never occurs is a grey row.  The colour scale is a square root, which lets one
    confusion in a hundred be seen.
    """
    matrix, count = np.asarray(matrix, dtype=float), len(classes)
    total = matrix.sum(1, keepdims=True)
    percent = 100 * np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)

    side = max(6, 3 + 0.55 * count) if count <= _NUMBERED else 14
    figure = _figure(side + 0.5, side + 0.3)
    axes = figure.add_subplot(facecolor="0.8")
    shown = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    bar = figure.colorbar(
        shown, ax=axes, shrink=0.8, aspect=35, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 75, 100]
    )
    bar.set_label("% of the true class")
    size = 9 if count <= _NUMBERED else 6.5
    _name_ticks(axes.xaxis, classes, size)
    _name_ticks(axes.yaxis, classes, size)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= _NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.05:
                text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                colour = "white" if value > 35 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    correct = 100 * np.trace(matrix) / max(1, matrix.sum())
    axes.set_title(
        f"Confusion matrix of {matrix.sum():,.0f} images, {correct:.2f} % on the diagonal"
    )
    return figure


def selection_grid(images, scores, classes, correct=None, per_row=8, most=20):
    """The best-ranked images of every class -> list of Figures of at most `most` classes each.

    images    one uint8 array (n,S,S,3) a class, best first; the first `per_row` are shown
    scores    one array (n,) a class, written above the images
    correct   one bool array (n,) a class where the truth is known: a right pseudo-label gets a
              green frame and a check mark, a wrong one a red frame and a cross
    """
    return [
        _grid_of_classes(
            images[first : first + most],
            scores[first : first + most],
            classes[first : first + most],
            None if correct is None else correct[first : first + most],
            per_row,
            f"Best-ranked images, classes {first + 1} to {min(first + most, len(classes))} "
            f"of {len(classes)}",
        )
        for first in range(0, len(classes), most)
    ]


def _grid_of_classes(images, scores, classes, correct, per_row, title):
    cell, tall = 0.85, 1.28  # inches a column; a row's height in columns, with room for the score
    names = max((len(_shorten(name)) for name in classes), default=0) * 0.09 / cell + 0.2
    width, height = names + per_row, tall * len(classes)
    if correct is not None:
        title += f"\n{_RIGHT} right pseudo-label   {_WRONG} wrong pseudo-label"
    figure = _figure(cell * width + 0.1, cell * height + 0.6, layout=None)
    axes = figure.add_axes((0, 0, 1, cell * height / (cell * height + 0.6)))
    figure.suptitle(title, y=1 - 0.1 / (cell * height + 0.6), va="top", fontsize=11)
    axes.set_axis_off()
    for row, name in enumerate(classes):
        top = row * tall + 0.26
        axes.text(-0.12, top + 0.47, _shorten(name), ha="right", va="center", fontsize=9)
        for column, (image, score) in enumerate(zip(images[row], scores[row], strict=True)):
            if column == per_row:
                break
            axes.imshow(image, extent=(column, column + 0.94, top + 0.94, top))
            colour, mark = "black", ""
            if correct is not None:
                right = correct[row][column]
                colour, mark = (GREEN, " " + _RIGHT) if right else (RED, " " + _WRONG)
                axes.add_patch(
                    Rectangle(
                        (column, top), 0.94, 0.94, fill=False, edgecolor=colour, linewidth=2.5
                    )
                )
            label = f"{score:.3f}{mark}"
            axes.text(column + 0.47, top - 0.05, label, ha="center", fontsize=8, color=colour)
        if not len(images[row]):
            axes.text(0, top + 0.47, "no candidates", va="center", fontsize=9, color=GREY)
    axes.set_xlim(-names, per_row)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")
    return figure


def per_class_counts(counts, classes, k):
    """counts (C,) of kept images -> Figure: a bar a class, K as a line, short classes in orange."""
    counts, number = np.asarray(counts), len(classes)
    figure = _figure(min(16, 4 + 0.4 * number), 4.5)
    axes = figure.add_subplot()
    short = counts < k
    position = np.arange(number)
    if not short.all():
        axes.bar(position[~short], counts[~short], color=BLUE, label="full")
    if short.any():
        label = f"short of K: {short.sum()} of {number} classes"
        axes.bar(position[short], counts[short], color=ORANGE, label=label)
    axes.axhline(k, color="black", linestyle="--", linewidth=1, label=f"K = {k:,}")
    _name_ticks(axes.xaxis, classes, 9 if number <= 30 else 7)
    axes.tick_params(axis="x", rotation=90, length=2)
    axes.set_xlim(-0.7, number - 0.3)
    axes.set_ylim(0, 1.05 * max(k, counts.max(initial=0)))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel("images kept")
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.set_title(f"Selected images of each class: {counts.sum():,} of {number} x {k:,}")
    return figure


def accuracy_by_rank(rank, correct, k):
    """rank (M,) from 1, correct (M,) bool -> Figure: pseudo-label accuracy in bins of the rank.

    The bars show Wilson's 95 % interval; bins without images stay empty.
    """
    rank, correct = np.asarray(rank, dtype=np.int64), np.asarray(correct, dtype=float)
    bins = min(k, _RANK_BINS)
    which = np.clip((rank - 1) * bins // k, 0, bins - 1)
    seen = np.bincount(which, minlength=bins)
    right = np.bincount(which, weights=correct, minlength=bins)
    filled = seen > 0
    seen, share = seen[filled], right[filled] / seen[filled]
    edges = np.arange(bins + 1) * k / bins + 0.5  # bin b holds the ranks between edges b and b + 1
    centre, half = (edges[:-1] + edges[1:])[filled] / 2, k / bins / 2
    z = 1.96
    middle = (share + z**2 / (2 * seen)) / (1 + z**2 / seen)
    spread = z / (1 + z**2 / seen) * np.sqrt(share * (1 - share) / seen + z**2 / (4 * seen**2))
    low, high = np.minimum(middle - spread, share), np.maximum(middle + spread, share)

    figure = _figure(8, 4.5)
    axes = figure.add_subplot()
    axes.errorbar(
        centre,
        share,
        xerr=half,
        yerr=[share - low, high - share],
        fmt="o",
        color=BLUE,
        ecolor=BLUE,
        elinewidth=1.2,
        label="ranks spanned by the bar, 95 % interval",
    )
    if len(rank):
        mean = correct.mean()
        axes.axhline(
            mean, color=ORANGE, linestyle="--", linewidth=1.5, label=f"all: {100 * mean:.1f} %"
        )
    axes.set_xlim(0.5, k + 0.5)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("rank within the class (1 = highest score)")
    axes.set_ylabel("right pseudo-labels")
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set_title(f"Pseudo-label accuracy by rank, {len(rank):,} selected images")
    return figure


def score_histogram(counts, selected):
    """counts (B,): pool images by the score of their best class, in B bins from 0 to 1;
    selected (M,): the scores of the kept rows -> Figure.
    """
    figure = _figure(8, 4.5)
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 51)
    centres = (np.arange(len(counts)) + 0.5) / len(counts)
    pool = f"pool, best class of each image: {counts.sum():,}"
    axes.hist(
        centres,
        bins,
        weights=counts,
        color="0.8",
        edgecolor=GREY,
        histtype="stepfilled",
        label=pool,
    )
    kept = f"selected rows: {len(selected):,}"
    axes.hist(np.asarray(selected), bins, color=BLUE, histtype="step", linewidth=2, label=kept)
    most = max((patch.get_xy()[:, 1].max() for patch in axes.patches), default=0)
    axes.set_ylim(0.7, 2 * max(1, most))  # an image alone is a bar of its own
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xlabel("softmax score")
    axes.set_ylabel("images (logarithmic)")
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set_title("Softmax scores of the pool and of the selection")
    return figure


def pairs(ours, theirs, titles, per_row=8):
    """Pool images above the labelled images they resemble: uint8 (n,S,S,3) each -> Figure."""
    rows, cell, tall = math.ceil(len(ours) / per_row), 1.1, 2.25
    width, height = cell * max(4, min(per_row, len(ours))) + 0.1, cell * tall * rows + 0.4
    figure = _figure(width, height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / height))
    heading = "Left out: above the pool's image, below the labelled one"
    figure.suptitle(heading, y=1 - 0.1 / height, va="top", fontsize=11)
    axes.set_axis_off()
    for number, (our, their, title) in enumerate(zip(ours, theirs, titles, strict=True)):
        row, column = divmod(number, per_row)
        top = row * tall + 0.22
        axes.imshow(our, extent=(column, column + 0.95, top + 0.95, top))
        axes.imshow(their, extent=(column, column + 0.95, top + 1.93, top + 0.98))
        axes.text(column + 0.475, top - 0.04, title, ha="center", fontsize=7)
    axes.set_xlim(-0.05, max(4, min(per_row, len(ours))))
    axes.set_ylim(rows * tall, 0)
    axes.set_aspect("auto")
    return figure


def image_batch(images, titles=None, per_row=8, heading="Training images as the network sees them"):
    """images uint8 (n,S,S,3), titles: one text an image -> Figure."""
    rows, cell, tall = max(1, math.ceil(len(images) / per_row)), 1.1, 1.22
    columns = max(3, min(per_row, len(images)))
    width, height = cell * columns + 0.1, cell * tall * rows + 0.4
    figure = _figure(width, height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1 - 0.4 / height))
    figure.suptitle(heading, y=1 - 0.1 / height, va="top", fontsize=11)
    axes.set_axis_off()
    for number, image in enumerate(images):
        row, column = divmod(number, per_row)
        top = row * tall + 0.22
        axes.imshow(image, extent=(column, column + 0.95, top + 0.95, top))
        if titles is not None:
            text = _shorten(titles[number], 18)
            axes.text(column + 0.475, top - 0.04, text, ha="center", fontsize=7)
    axes.set_xlim(-0.05, columns)
    axes.set_ylim(rows * tall, 0)
    axes.set_aspect("auto")
    return figure
