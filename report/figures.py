"""Matplotlib figures for TensorBoard and the report page: numbers and arrays in, Figures out.

No pyplot (it keeps every figure alive and may ask for a display), no disk access.  A colour has one
meaning: green is right, red is wrong, grey is an image of no class; orange is the teacher, light
blue the student pre-trained, blue the student fine-tuned, purple their rival.  Where it matters, a
mark says it too.  Names are drawn as they are: a $ begins no formula.
"""

import math
import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .diagnostics import rank_bin, wilson_interval
from .tables import RIVAL, TRAININGS, shorten

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#C77700", "#009E73", "#B2182B", "#666666"
SKY, PURPLE, PALE, INK = "#4A9BD9", "#A0529A", "#B9BEC4", "black"
# A network's colour, mark and line.
NETWORKS = {"teacher": (ORANGE, "s", "--"), "student": (SKY, "D", "-.")}
NETWORKS |= {"finetuned": (BLUE, "o", "-"), RIVAL: (PURPLE, "^", ":")}
# What is known of a pseudo-label, in the order of `diagnostics.count_labels`.
KINDS = {"right": GREEN, "wrong": RED, "of no class": GREY, "nothing known": PALE}
# A pseudo-label is right, wrong or of unknown truth: the colour, the mark, and what they mean.
LOOKS = {
    True: (GREEN, "\N{CHECK MARK}", "right pseudo-label"),
    False: (RED, "\N{BALLOT X}", "wrong pseudo-label"),
    None: (None, "?", "nothing known of the image"),
}
_NAMED = 100  # names along an axis at most; with more, every second, third, ... is written
_NUMBERED = 20  # classes of a matrix up to which its numbers are written in
_RANK_BINS = 20


def blank(width, height, layout="constrained"):
    return Figure(figsize=(width, height), dpi=100, layout=layout)


def name_ticks(axis, classes, size):
    step = math.ceil(len(classes) / _NAMED)
    names = [shorten(name) for name in classes[::step]]
    axis.set_ticks(range(0, len(classes), step), names, fontsize=size, parse_math=False)


def finish(figure, axes, title, lines="y"):
    """What all charts share; the legend lies below the axes.  lines: of the grid, x or y"""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=lines, color="0.9")
    axes.set_axisbelow(True)
    axes.set_title(title)
    add_legend(figure, axes, 3)
    return figure


def add_legend(figure, axes, columns):
    """Below the axes; names in it are drawn as they are."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        lower = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        for text in figure.legend(handles, labels, **lower).get_texts():
            text.set_parse_math(False)


def by_class(classes):
    """A chart with a row a class, the first on top: its Figure and axes."""
    figure = blank(5.2, min(16, 1.4 + 0.22 * len(classes)))
    axes = figure.add_subplot()
    name_ticks(axes.yaxis, classes, 9 if len(classes) <= 30 else 7)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    return figure, axes


# --- charts -------------------------------------------------------------------------------------


def confusion_matrix(matrix, classes):
    """matrix (C,C) counts, rows true, columns predicted -> Figure, each row in percent of its sum.

    A class that never occurs is a grey row.  Green is right, red is wrong, the darker the more.
    """
    matrix, count = np.asarray(matrix, dtype=float), len(classes)
    total = matrix.sum(1, keepdims=True)
    percent = 100 * np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)

    side = max(6, 3 + 0.55 * count) if count <= _NUMBERED else 14
    figure = blank(side + 0.5, side + 0.3)
    axes = figure.add_subplot(facecolor="0.8")
    signed = np.where(np.eye(count) > 0, percent, -percent)  # right above zero, wrong below
    colours = LinearSegmentedColormap.from_list("verdicts", [RED, "white", GREEN])
    shown = axes.imshow(signed, cmap=colours, vmin=-100, vmax=100, interpolation="nearest")
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=35, pad=0.02)
    bar.set_ticks(range(-100, 101, 25), labels=map(abs, range(-100, 101, 25)))
    bar.set_label("% of the true class: red is wrong, green is right")
    size = 9 if count <= _NUMBERED else 6.5
    name_ticks(axes.xaxis, classes, size)
    name_ticks(axes.yaxis, classes, size)
    if count > _NUMBERED or max(map(len, map(str, classes))) > 6:  # else they fit upright
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=2)
    axes.set(xlabel="predicted class", ylabel="true class")
    if count <= _NUMBERED:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.05:
                text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                text = f"{text} %\n{matrix[row, column]:,.0f}"
                colour = "white" if value > 55 else "#111111"
                axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    correct = 100 * np.trace(matrix) / max(1, matrix.sum())
    counted = f"Confusion matrix of {matrix.sum():,.0f} images"
    axes.set_title(f"{counted}, {correct:.2f} % on the diagonal")
    return figure


def kept_per_class(counts, classes, k):
    """counts: int (C,4), rows kept of each class by KINDS -> Figure: a stacked bar a class."""
    counts = np.asarray(counts)
    figure, axes = by_class(classes)
    where, before = np.arange(len(classes)), np.zeros(len(classes))
    for (kind, colour), count in zip(KINDS.items(), counts.T, strict=True):
        if count.any():
            label = f"{kind}: {count.sum():,}"
            axes.barh(where, count, 0.75, before, color=colour, label=label)
        before = before + count
    axes.axvline(k, color=INK, linestyle="--", linewidth=1, label=f"K = {k:,}")
    axes.set_xlim(0, 1.05 * max(k, before.max(initial=0)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("rows kept")
    title = f"Images kept of each class: {counts.sum():,} of {len(classes)} x {k:,}"
    return finish(figure, axes, title, "x")


def accuracy_by_class(right, classes):
    """right: {network of NETWORKS: percent right of each class (C,), NaN for one without images}
    -> Figure: a row a class, a mark a network, and a bar from the lowest to the highest.
    """
    figure, axes = by_class(classes)
    columns, where = np.stack(list(right.values())), np.arange(len(classes))
    axes.hlines(where, columns.min(0), columns.max(0), color=PALE, linewidth=3)
    for name, percent in right.items():
        colour, mark, _ = NETWORKS[name]
        size = 5 if name == "finetuned" else 7 if name == "student" else 9  # all are seen
        axes.plot(percent, where, mark, color=colour, markersize=size, label=TRAININGS[name])
    axes.set_xlim(max(-3, np.nanmin(columns) - 10), 103)
    axes.set_xlabel("test images right, %")
    return finish(figure, axes, "Accuracy by class", "x")


def accuracies(rows):
    """Dots with their 95 % intervals -> Figure.

    rows: [(text, [(network of NETWORKS, percent, low, high, the percent of each seed)])]
    A row of one dot has its number written beside it.
    """
    alone = all(len(dots) == 1 for _, dots in rows)
    figure = blank(5.2, 1.5 + (0.42 if alone else 0.6) * len(rows))
    axes, said = figure.add_subplot(), set()
    for row, (_, dots) in enumerate(rows):
        for number, (name, percent, low, high, seeds) in enumerate(dots):
            colour, mark, _ = NETWORKS[name]
            y = row + 0.2 * (number - (len(dots) - 1) / 2)
            label = None if alone or name in said else TRAININGS[name]
            said.add(name)
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(percent, y, mark, color=colour, markersize=9 if alone else 7, label=label)
            if len(seeds) > 1:
                axes.plot(seeds, [y + 0.08] * len(seeds), "|", color=colour, markersize=5)
            if alone:
                place = axes.get_yaxis_transform()
                axes.text(1.02, y, f"{percent:.2f} %", transform=place, va="center", fontsize=11)
    names = [
        textwrap.fill(shorten(text, 40), 16, break_on_hyphens=False) for text, _ in rows
    ]  # in two or three lines
    axes.set_yticks(range(len(rows)), names, fontsize=10, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("test images right, %; lines: 95 % intervals")
    return finish(figure, axes, "Test accuracy", "x")


def learning_curves(chains):
    """Trainings one after the other on one axis.

    chains: [{network of NETWORKS: (images processed (n,), those of the steps before included;
    validation top-1 in percent (n,))}], each fainter than the one before it -> Figure
    """
    figure = blank(5.2, 3.6)
    axes = figure.add_subplot()
    for number, curves in enumerate(chains):
        for name, (images, percent) in curves.items():
            colour, mark, dash = NETWORKS[name]
            looks = {"color": colour, "marker": mark, "markevery": max(1, len(images) // 6)}
            looks |= {"linestyle": dash, "markersize": 5, "alpha": max(0.3, 1 - 0.35 * number)}
            said = any(name in before for before in chains[:number])
            axes.plot(images, percent, **looks, label=None if said else TRAININGS[name])
    axes.set(xlabel="images processed, all steps one after the other", xlim=(0, None))
    axes.set_ylabel("validation top-1, %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    return finish(figure, axes, "Learning curves")


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

    figure = blank(5.2, 3.6)
    axes = figure.add_subplot()
    label = "right, 95 % interval"
    reach = {"xerr": k / bins / 2, "yerr": [rate - low, high - rate], "elinewidth": 1.2}
    axes.errorbar(centre, rate, **reach, fmt="o", color=GREEN, label=label)
    if len(rank):
        mean = np.mean(correct)
        label = f"all: {100 * mean:.1f} %"
        axes.axhline(mean, color=INK, linestyle="--", linewidth=1, label=label)
    axes.set(xlim=(0.5, k + 0.5), ylim=(0, 1.02), ylabel="right pseudo-labels")
    axes.set_xlabel("rank within the class (1 = highest score)")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    title = f"Pseudo-label accuracy by rank, {len(rank):,} selected images"
    return finish(figure, axes, title)


def score_histogram(counts, selected):
    """counts (B,): pool images by the score of their best class, in B bins from 0 to 1;
    selected (M,): the scores of the kept rows -> Figure.
    """
    figure = blank(5.2, 3.6)
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 51)
    centres = (np.arange(len(counts)) + 0.5) / len(counts)
    pool = f"pool, best class of each image: {counts.sum():,}"
    filled = {"color": PALE, "histtype": "stepfilled"}
    axes.hist(centres, bins, weights=counts, label=pool, **filled)
    kept = f"selected rows: {len(selected):,}"
    axes.hist(np.asarray(selected), bins, color=INK, histtype="step", linewidth=2, label=kept)
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
    top = 1 - 0.1 / (head + height)
    figure.suptitle(heading, y=top, va="top", fontsize=11, parse_math=False)
    axes = figure.add_axes((0, 0, 1, height / (head + height)))
    axes.set_axis_off()
    for row, tiles in enumerate(rows):
        top = row * down + 0.25
        if names is not None:
            text = {"ha": "right", "va": "center", "fontsize": 9, "parse_math": False}
            axes.text(-0.12, top + high / 2, names[row], **text)
            note = "" if tiles else "no candidates"
            axes.text(0, top + high / 2, note, va="center", fontsize=9, color=GREY)
        for x, (picture, title, colour) in enumerate(tiles):
            axes.imshow(picture, extent=(x, x + 0.94, top + high, top))
            text = {"ha": "center", "fontsize": 7.5, "color": colour or INK, "parse_math": False}
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
    seen = {right for row in correct for right in row}
    heading += "\n" + "   ".join(f"{LOOKS[x][1]} {LOOKS[x][2]}" for x in LOOKS if x in seen)
    rows = []
    for row in zip(images, scores, correct, strict=True):
        rows.append([])
        for picture, score, right in zip(*row, strict=True):
            colour, mark, _ = LOOKS[right]
            rows[-1].append(Tile(picture, f"{score:.3f} {mark}", colour))
    return grid(rows, heading.rstrip(), [shorten(name) for name in classes], inches=0.85)
