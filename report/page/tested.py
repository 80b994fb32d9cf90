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
    """A matrix for each network: a table of cells, or a chart where there are many classes."""
    charts = []
    for stage, matrix in _matrices(run).items():
        head = ("true class", "taken for", "images", "% of the true class")
        pairs = [
            (true, predicted, count, f"{share:.1f}")
            for true, predicted, count, share in most_confused(matrix, run.classes)
        ]
        title, name = TRAININGS[stage].capitalize(), f"{uid}-confusion-{stage}"
        right, images = np.trace(matrix), matrix.sum()
        note = f"{right:,} of {images:,} test images are right, {percent(right, images)}."
        if len(run.classes) > MANY:
            figure = figures.confusion_matrix(matrix, run.classes)
            charts.append(chart(figure, title, name, (head, pairs), "wide", note))
            continue
        shares = np.round(100 * matrix / np.maximum(1, matrix.sum(1, keepdims=True))).astype(int)
        cells = np.stack([matrix, shares], 2).tolist()  # (C,C,2)
        facts = {"title": title, "name": name, "note": note, "head": head, "rows": pairs}
        charts.append(facts | {"classes": run.classes, "cells": cells})
    return charts


def _matrices(run):
    """{stage: confusion matrix} of the networks whose answers were kept."""
    labels, number = run.test.labels, len(run.classes)
    return {
        stage: confusion(answers.top1, labels, number) for stage, answers in run.answers.items()
    }


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
    sentences = []
    for before, after in itertools.pairwise(right):
        change = np.nan_to_num(right[after] - right[before])
        lost = [label for label in np.argsort(change, kind="stable")[:3] if change[label] <= -LOST]
        if lost:
            shown = ", ".join(
                f"{classes[label]} {right[before][label]:.0f} to {right[after][label]:.0f}{SPACE}%"
                for label in lost
            )
            sentences.append(f"Lost from {TRAININGS[before]} to {TRAININGS[after]}: {shown}.")
    return " ".join(sentences)


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
    for title, mask in kinds.items():
        images = np.flatnonzero(mask)
        clear = -last.probability if last.right[images].all() else last.probability
        images = images[np.argsort(clear[images], kind="stable")][:MISTAKES]  # the clearest first
        pictures = [_tested(run, i, {stages[0]: first, stages[-1]: last}) for i in images]
        groups.append({"title": title, "count": int(mask.sum()), "pictures": pictures})
    return groups


def _tested(run, i, answers):
    """A test image.  answers: {stage: stages.whole_run.Answers}"""
    truth = run.classes[int(run.test.labels[i])]
    lines = [f"true: {truth}"]
    for stage, answer in answers.items():
        said, mark = run.classes[answer.top1[i]], figures.LOOKS[bool(answer.right[i])][1]
        chance = f"{100 * answer.probability[i]:.0f}{SPACE}%"
        chance = chance if answer.right[i] else f"{truth}: {chance}"
        lines.append(f"{TRAININGS[stage].removeprefix('student, ')}: {said} {mark} ({chance})")
    return {
        "src": data_uri(run.test.images[torch.tensor([int(i)])][0].numpy()),
        "alt": f"test image {run.test.names[i]}, in truth {truth}",
        "caption": "\n".join(lines),
        "label": truth,
    }
