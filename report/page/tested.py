"""The report page: what the networks say of the test images."""

import itertools

import numpy as np
import torch

from report import figures
from report.diagnostics import confusion, most_confused
from report.tables import TRAININGS

from .embed import data_uri
from .parts import MANY, SPACE, chart, percent

MISTAKES = 24  # images shown of each kind, at most
LOST = 10  # points of a class, from which on a loss is told in words


def confusions(run, uid):
    """Of each network a matrix, as a table of cells or, of many classes, as a chart."""
    found = []
    for stage, matrix in _matrices(run).items():
        head = ("true class", "taken for", "images", "% of the true class")
        pairs = [
            (true, taken, count, f"{share:.1f}")
            for true, taken, count, share in most_confused(matrix, run.classes)
        ]
        title, name = TRAININGS[stage].capitalize(), f"{uid}-confusion-{stage}"
        right, images = np.trace(matrix), matrix.sum()
        note = f"{right:,} of {images:,} test images are right, {percent(right, images)}."
        if len(run.classes) > MANY:
            figure = figures.confusion_matrix(matrix, run.classes)
            found.append(chart(figure, title, name, (head, pairs), "wide", note))
            continue
        shares = np.round(100 * matrix / np.maximum(1, matrix.sum(1, keepdims=True))).astype(int)
        cells = np.stack([matrix, shares], 2).tolist()  # (C,C,2)
        facts = {"title": title, "name": name, "note": note, "head": head, "rows": pairs}
        found.append(facts | {"classes": run.classes, "cells": cells})
    return found


def _matrices(run):
    """{stage: confusion matrix} of the networks whose answers were kept."""
    labels, number = run.test.labels, len(run.classes)
    return {stage: confusion(it.top1, labels, number) for stage, it in run.answers.items()}


def by_class(run, uid):
    """A chart of each class's accuracy, from network to network."""
    right = {stage: _right_per_class(matrix) for stage, matrix in _matrices(run).items()}
    columns = np.stack(list(right.values()), 1)
    lines = [
        (name, *(f"{x:.1f}" for x in row), f"{row[-1] - row[0]:+.1f}")
        for name, row in zip(run.classes, columns, strict=True)
    ]
    head = ("class", *(f"{TRAININGS[stage]}, %" for stage in right), "last minus first")
    figure = figures.accuracy_by_class(right, run.classes)
    kind = "tall" if len(run.classes) > MANY else ""
    title, note = "Accuracy by class", _losses(right, run.classes)
    return chart(figure, title, f"{uid}-classes", (head, lines), kind, note)


def _losses(right, classes):
    """The classes that lost most from one network to the next: text."""
    found = []
    for before, after in itertools.pairwise(right):
        change = np.nan_to_num(right[after] - right[before])
        lost = [label for label in np.argsort(change, kind="stable")[:3] if change[label] <= -LOST]
        if lost:
            shown = ", ".join(
                f"{classes[label]} {right[before][label]:.0f} to {right[after][label]:.0f}{SPACE}%"
                for label in lost
            )
            found.append(f"Lost from {TRAININGS[before]} to {TRAININGS[after]}: {shown}.")
    return " ".join(found)


def _right_per_class(matrix):
    """Percent, NaN for a class without test images: (C,)."""
    total = matrix.sum(1)
    return 100 * np.divide(
        np.diag(matrix), total, out=np.full(len(matrix), np.nan), where=total > 0
    )


def mistakes(run):
    """Test images that the last network has lost and won, and that it and the first get wrong."""
    stages = list(run.answers)
    first, last = run.answers[stages[0]], run.answers[stages[-1]]
    name, other = TRAININGS[stages[0]], TRAININGS[stages[-1]]
    kinds = {f"{name} wrong": ~first.right}
    if len(stages) > 1:
        kinds = {
            f"Lost: {name} right; {other} wrong": first.right & ~last.right,
            f"Won: {name} wrong; {other} right": ~first.right & last.right,
            "Both wrong": ~first.right & ~last.right,
        }
    groups = []
    for title, some in kinds.items():
        found = np.flatnonzero(some)
        clear = -last.probability if last.right[found].all() else last.probability
        found = found[np.argsort(clear[found], kind="stable")][:MISTAKES]  # the clearest first
        pictures = [_tested(run, i, {stages[0]: first, stages[-1]: last}) for i in found]
        groups.append({"title": title, "count": int(some.sum()), "pictures": pictures})
    return groups


def _tested(run, i, answers):
    """A test image.  answers: {stage: stages.whole_run.Answers}"""
    truth = run.classes[int(run.test.labels[i])]
    lines = [f"true: {truth}"]
    for stage, it in answers.items():
        said, mark = run.classes[it.top1[i]], figures.LOOKS[bool(it.right[i])][1]
        chance = f"{100 * it.probability[i]:.0f}{SPACE}%"
        chance = chance if it.right[i] else f"{truth}: {chance}"
        lines.append(f"{TRAININGS[stage].removeprefix('student, ')}: {said} {mark} ({chance})")
    return {
        "src": data_uri(run.test.images[torch.tensor([int(i)])][0].numpy()),
        "alt": f"test image {run.test.names[i]}, in truth {truth}",
        "caption": "\n".join(lines),
        "label": truth,
    }
