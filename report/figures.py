"""Matplotlib figures for TensorBoard's `add_figure`: arrays in, Figures out.

No pyplot (it keeps every figure alive and may ask for a display), no disk access.  The colours are
Okabe and Ito's, which colour-blind readers can tell apart, and a red darker than their green; where
right and wrong matter, a mark says it too.
"""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .diagnostics import rank_bin, wilson_interval
from .tables import shorten

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#B2182B", "#666666"
# A pseudo-label is right, wrong or of unknown truth: the colour, the mark, and what they mean.
LOOKS = {
    True: (GREEN, "\N{CHECK MARK}", "right pseudo-label"),
    False: (RED, "\N{BALLOT X}", "wrong pseudo-label"),
    None: (None, "?", "nothing known of the image"),
}
_NAMED = 100  # at most so many names along an axis; of more, every second, third, ... is written
_NUMBERED = 20  # a matrix of at most so many classes has its numbers written in
_RANK_BINS = 20


def blank(width, height, layout="constrained"):
    return Figure(figsize=(width, height), dpi=100, layout=layout)


def name_ticks(axis, classes, size):
    step = math.ceil(len(classes) / _NAMED)
    names = [shorten(name) for name in classes[::step]]
    axis.set_ticks(range(0, len(classes), step), names, fontsize=size)


def finish(figure, axes, title):
    """What all charts share; the legend lies below the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


# --- charts -------------------------------------------------------------------------------------


def confusion_matrix(matrix, classes):
    """matrix (C,C) counts, rows true, columns predicted -> Figure, each row in percent of its sum.

    A class that never occurs is a grey row.  The colour scale is a square root, which lets one
    confusion in a hundred be seen.
    """
    matrix, count = np.asarray(matrix, dtype=float), len(classes)
    total = matrix.sum(1, keepdims=True)
    percent = 100 * np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)

    side = max(6, 3 + 0.55 * count) if count <= _NUMBERED else 14
    figure = blank(side + 0.5, side + 0.3)
    axes = figure.add_subplot(facecolor="0.8")
    shown = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=35, pad=0.02)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the true class")
    size = 9 if count <= _NUMBERED else 6.5
    name_ticks(axes.xaxis, classes, size)
    name_ticks(axes.yaxis, classes, size)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=2)
    axes.set(xlabel="predicted class", ylabel="true class")
    if count <= _NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.05:
                text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                colour = "white" if value > 35 else "#111111"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    correct = 100 * np.trace(matrix) / max(1, matrix.sum())
    counted = f"Confusion matrix of {matrix.sum():,.0f} images"
    axes.set_title(f"{counted}, {correct:.2f} % on the diagonal")
    return figure


def per_class_counts(counts, classes, k):
    """counts (C,) of kept images -> Figure: a bar a class, K as a line, short classes in orange."""
    counts, number = np.asarray(counts), len(classes)
    figure = blank(min(16, 4 + 0.4 * number), 4.5)
    axes = figure.add_subplot()
    short = counts < k
    text = f"short of K: {short.sum()} of {number} classes"
    for some, colour, label in ((~short, BLUE, "full"), (short, ORANGE, text)):
        if some.any():
            axes.bar(np.flatnonzero(some), counts[some], color=colour, label=label)
    axes.axhline(k, color="black", linestyle="--", linewidth=1, label=f"K = {k:,}")
    name_ticks(axes.xaxis, classes, 9 if number <= 30 else 7)
    axes.tick_params(axis="x", rotation=90, length=2)
    axes.set_xlim(-0.7, number - 0.3)
    axes.set_ylim(0, 1.05 * max(k, counts.max(initial=0)))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel("images kept")
    title = f"Selected images of each class: {counts.sum():,} of {number} x {k:,}"
    return finish(figure, axes, title)


def accuracy_by_rank(rank, correct, k):
    """rank (M,) from 1, correct (M,) bool -> Figure: pseudo-label accuracy in bins of the rank.

    The bars show Wilson's 95 % interval; bins without images stay empty.
    """
    bins = min(k, _RANK_BINS)
    which = rank_bin(np.asarray(rank, dtype=np.int64), k, bins)
    seen = np.bincount(which, minlength=bins)
    right = np.bincount(which, weights=correct, minlength=bins)
    edges = np.arange(bins + 1) * k / bins + 0.5  # bin b holds the ranks between edges b and b + 1
    filled = seen > 0
    centre, rate = (edges[:-1] + edges[1:])[filled] / 2, right[filled] / seen[filled]
    low, high = wilson_interval(right[filled], seen[filled])

    figure = blank(8, 4.5)
    axes = figure.add_subplot()
    label = "ranks spanned by the bar, 95 % interval"
    reach = {"xerr": k / bins / 2, "yerr": [rate - low, high - rate], "elinewidth": 1.2}
    axes.errorbar(centre, rate, **reach, fmt="o", color=BLUE, label=label)
    if len(rank):
        mean = np.mean(correct)
        label = f"all: {100 * mean:.1f} %"
        axes.axhline(mean, color=ORANGE, linestyle="--", linewidth=1.5, label=label)
    axes.set(xlim=(0.5, k + 0.5), ylim=(0, 1.02), ylabel="right pseudo-labels")
    axes.set_xlabel("rank within the class (1 = highest score)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    title = f"Pseudo-label accuracy by rank, {len(rank):,} selected images"
    return finish(figure, axes, title)


def score_histogram(counts, selected):
    """counts (B,): pool images by the score of their best class, in B bins from 0 to 1;
    selected (M,): the scores of the kept rows -> Figure.
    """
    figure = blank(8, 4.5)
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 51)
    centres = (np.arange(len(counts)) + 0.5) / len(counts)
    pool = f"pool, best class of each image: {counts.sum():,}"
    filled = {"color": "0.8", "edgecolor": GREY, "histtype": "stepfilled"}
    axes.hist(centres, bins, weights=counts, label=pool, **filled)
    kept = f"selected rows: {len(selected):,}"
    axes.hist(np.asarray(selected), bins, color=BLUE, histtype="step", linewidth=2, label=kept)
    most = max((patch.get_xy()[:, 1].max() for patch in axes.patches), default=0)
    axes.set(xlim=(0, 1), xlabel="softmax score", ylabel="images (logarithmic)", yscale="log")
    axes.set_ylim(0.7, 2 * max(1, most))  # an image alone is a bar of its own
    return finish(figure, axes, "Softmax scores of the pool and of the selection")


# --- pictures -----------------------------------------------------------------------------------


class Tile(NamedTuple):
    """One picture of a grid."""

    picture: np.ndarray  # uint8 RGB (H,W,3)
    title: str
    colour: str | None = None  # of the title and of a frame; None: a black title, no frame


def grid(rows, heading, names=None, inches=1.1):
    """Rows of Tiles under a heading -> Figure.

    rows: lists of Tiles, the pictures all of one shape;  names: a text beside each row, or None;
    inches: the width of a tile
    """
    # Lengths are in widths of a tile, of which the picture takes 0.94.
    shape = next((tile.picture.shape for tiles in rows for tile in tiles), (1, 1))
    high = 0.94 * shape[0] / shape[1]
    down = high + 0.3  # from row to row: room for the title
    lines = heading.splitlines()
    room = 0.075 / inches * max(map(len, lines))  # for the heading
    columns = max(math.ceil(room), *map(len, rows), 1)
    left = 0.05 if names is None else 0.2 + 0.09 / inches * max(map(len, names))
    head, height = 0.25 + 0.18 * len(lines), inches * down * len(rows)  # both in inches
    figure = blank(inches * (left + columns), head + height, layout=None)
    figure.suptitle(heading, y=1 - 0.1 / (head + height), va="top", fontsize=11)
    axes = figure.add_axes((0, 0, 1, height / (head + height)))
    axes.set_axis_off()
    for row, tiles in enumerate(rows):
        top = row * down + 0.25
        if names is not None:
            axes.text(-0.12, top + high / 2, names[row], ha="right", va="center", fontsize=9)
            note = "" if tiles else "no candidates"
            axes.text(0, top + high / 2, note, va="center", fontsize=9, color=GREY)
        for x, (picture, title, colour) in enumerate(tiles):
            axes.imshow(picture, extent=(x, x + 0.94, top + high, top))
            text = {"ha": "center", "fontsize": 7.5, "color": colour or "black"}
            axes.text(x + 0.47, top - 0.05, title, **text)
            if colour:
                frame = {"fill": False, "edgecolor": colour, "linewidth": 2.5}
                axes.add_patch(Rectangle((x, top), 0.94, high, **frame))
    axes.set(xlim=(-left, columns), ylim=(down * len(rows), 0), aspect="auto")
    return figure


def _folded(tiles, per_row=8):
    return [tiles[first : first + per_row] for first in range(0, len(tiles), per_row)]


def image_batch(images, titles, heading):
    """images uint8 (n,S,S,3), titles: one text an image -> Figure."""
    tiles = [Tile(image, shorten(title, 20)) for image, title in zip(images, titles, strict=True)]
    return grid(_folded(tiles), heading)


def pairs(ours, theirs, titles):
    """Pool images above the labelled images they resemble: uint8 (n,S,S,3) each -> Figure."""
    side = ours.shape[1]
    gap = np.full((len(ours), max(1, side // 32), side, 3), 255, np.uint8)
    both = np.concatenate([ours, gap, theirs], axis=1)  # (n,2S+gap,S,3)
    tiles = [Tile(picture, title) for picture, title in zip(both, titles, strict=True)]
    return grid(_folded(tiles), "Left out: above the pool's image, below the labelled one")


def best_images(images, scores, correct, classes, heading):
    """The best-ranked images of some classes, a row each -> Figure.

    images    one uint8 array (n,S,S,3) a class, best first
    scores    one array (n,) a class, written above the images
    correct   one list (n,) a class: True gets a green frame and a check mark, False a red frame and
              a cross, None, of which nothing is known, a question mark and no frame
    """
    seen = {right for some in correct for right in some}
    heading += "\n" + "   ".join(f"{LOOKS[x][1]} {LOOKS[x][2]}" for x in LOOKS if x in seen)
    rows = []
    for some in zip(images, scores, correct, strict=True):
        rows.append([])
        for picture, score, right in zip(*some, strict=True):
            colour, mark, _ = LOOKS[right]
            rows[-1].append(Tile(picture, f"{score:.3f} {mark}", colour))
    return grid(rows, heading.rstrip(), [shorten(name) for name in classes], inches=0.85)
