"""The report page: what the networks say of the test images."""

import numpy as np
import torch

from report import curves, figures
from report.diagnostics import confusion, most_confused
from report.tables import TRAININGS

from .embed import data_uri
from .parts import MANY, SPACE, chart, percent

MISTAKES = 24  # images shown of each kind, at most


def confusions(run, uid):
    """A chart a network, and each class's gain from the first to the last."""
    matrices = {stage: _matrix(run, stage) for stage in TRAININGS if stage in run.logits}
    wide = len(run.classes) > MANY
    charts = []
    for stage, matrix in matrices.items():
        figure = figures.confusion_matrix(matrix, run.classes)
        pairs = [
            (true, taken, count, f"{share:.1f}")
            for true, taken, count, share in most_confused(matrix, run.classes)
        ]
        head = ("true class", "taken for", "images", "% of the true class")
        title = f"Confusions of the {TRAININGS[stage]}"
        note = (
            f"{percent(np.trace(matrix), matrix.sum())} of {matrix.sum():,} test images are right."
        )
        size = None if wide else (4.6, 4.2)
        name = f"{uid}-confusion-{stage}"
        charts.append(chart(figure, title, name, (head, pairs), wide, note, size))
    if len(matrices) > 1:
        charts.append(_gain(run, matrices, uid, wide))
    return charts


def _matrix(run, stage):
    predicted = run.logits[stage].argmax(1)
    return confusion(predicted, run.test.labels, len(run.classes))


def _gain(run, matrices, uid, wide):
    right = {TRAININGS[stage]: _right_per_class(matrix) for stage, matrix in matrices.items()}
    columns = np.stack(list(right.values()), 1)
    lines = [
        (name, *(f"{x:.1f}" for x in row), f"{row[-1] - row[0]:+.1f}")
        for name, row in zip(run.classes, columns, strict=True)
    ]
    figure = curves.gain_per_class(right, run.classes)
    head = ("class", *(f"{name}, %" for name in right), "gain")
    return chart(figure, "Gain of each class", f"{uid}-gain", (head, lines), wide)


def _right_per_class(matrix):
    """Percent, NaN for a class without test images: (C,)."""
    total = matrix.sum(1)
    return 100 * np.divide(
        np.diag(matrix), total, out=np.full(len(matrix), np.nan), where=total > 0
    )


def mistakes(run):
    """Test images that the last network has lost and won, and that it and the first get wrong."""
    stages = [stage for stage in TRAININGS if stage in run.logits]
    first, last = TRAININGS[stages[0]], TRAININGS[stages[-1]]
    truth = run.test.labels
    old, new = (run.logits[stage].softmax(1) for stage in (stages[0], stages[-1]))
    was, now = old.argmax(1) == truth, new.argmax(1) == truth
    kinds = {f"The {first} is wrong": ~now}
    if first != last:
        kinds = {
            f"Lost: the {first} is right, the {last} is wrong": was & ~now,
            f"Won: the {first} is wrong, the {last} is right": ~was & now,
            "Both are wrong": ~was & ~now,
        }
    groups = []
    for title, some in kinds.items():
        found = some.nonzero()[:, 0]
        found = found[new[found].amax(1).argsort(descending=True, stable=True)]  # the surest first
        pictures = [_tested(run, i, {first: old, last: new}) for i in found[:MISTAKES].tolist()]
        groups.append({"title": title, "count": len(found), "pictures": pictures})
    return groups


def _tested(run, i, probs):
    """A test image.  probs: {network: float (N,C)}"""
    label = int(run.test.labels[i])
    truth, lines = run.classes[label], [f"true: {run.classes[label]}"]
    for name, of_all in probs.items():
        best = int(of_all[i].argmax())
        mark = figures.LOOKS[best == label][1]
        lines.append(
            f"{name}: {run.classes[best]} {100 * float(of_all[i, best]):.0f}{SPACE}% {mark}"
        )
    return {
        "src": data_uri(run.test.images[torch.tensor([i])][0].numpy()),
        "alt": f"test image {run.test.names[i]}, in truth {truth}",
        "caption": "\n".join(lines),
        "label": truth,
    }
