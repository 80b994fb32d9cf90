"""What a selection looks like in numbers: how full, how sure, how right."""

from typing import NamedTuple

import numpy as np

from data.sources import NO_CLASS, UNKNOWN

TENTHS = 10  # of K: the steps in rank that scores and accuracy are given for


class SelectedRows(NamedTuple):
    """The rows of a selection, M of them, by label, then rank."""

    position: np.ndarray  # int64, of the image in the pool
    label: np.ndarray  # int64
    score: np.ndarray  # float32
    rank: np.ndarray  # int64, from 1
    truth: np.ndarray  # int64; data.NO_CLASS for an image of none, data.UNKNOWN


def selection_facts(rows, num_classes, k):
    """Fill, overlap and scores of SelectedRows, as a part of result.json.

    unfilled             places of the C x K that no candidate took
    multi_label_percent  of the images kept, those kept by several classes
    score_by_rank        the 10, 50 and 90 % quantiles over the classes of the score at ranks
                         1, K/10, 2K/10, ..., K; null where no class has that rank
    """
    counts = np.bincount(rows.label, minlength=num_classes)
    _, labels_of_image = np.unique(rows.position, return_counts=True)
    ranks = [max(1, k * tenth // TENTHS) for tenth in range(TENTHS + 1)]
    at_rank = [rows.score[rows.rank == number] for number in ranks]
    return {
        "selected": len(rows.position),
        "unique_images": len(labels_of_image),
        "unfilled": int(num_classes * k - np.minimum(counts, k).sum()),
        "classes_below_k": int((counts < k).sum()),
        "multi_label_percent": _percent(labels_of_image > 1),
        "score_by_rank": {"rank": ranks, **{f"q{q}": _quantiles(at_rank, q) for q in (10, 50, 90)}},
        "per_class_counts": counts.tolist(),
    }


def verdicts(rows):
    """For each row: True for a right label, False for a wrong one and for any label of an image of
    no class, None where nothing is known.  -> object (M,)
    """
    return np.where(rows.truth == UNKNOWN, None, rows.truth == rows.label)


def count_by_class(rows, num_classes):
    """Rows of SelectedRows by their label and by what is known of it: int64 (C,4), the columns
    right, wrong, of no class, nothing known.
    """
    kind = np.where(rows.truth == rows.label, 0, 1)
    kind[rows.truth == NO_CLASS] = 2
    kind[rows.truth == UNKNOWN] = 3
    return np.bincount(rows.label * 4 + kind, minlength=4 * num_classes).reshape(num_classes, 4)


def count_labels(rows):
    """How many labels of SelectedRows are right and wrong, of no class, and of unknown truth."""
    counts = count_by_class(rows, 1 + int(rows.label.max(initial=0))).sum(0)
    return dict(zip(("right", "wrong", "no_class", "unknown"), counts.tolist(), strict=True))


def label_quality(rows, true_counts, k):
    """How right the pseudo-labels of SelectedRows are; {} where nothing is known of any.

    true_counts: int64 (C,), entries of the pool known to be of each class

    labels                 see `count_labels`
    pseudo_label_accuracy  percent of all rows of which something is known; an image of no class
                           is wrong whatever its label
    of_those_with_a_class  the same among the rows whose image has a class
    per_class_accuracy     pseudo_label_accuracy of each label
    per_class_coverage     percent of a class's entries in the pool that are kept under its label
    accuracy_by_rank       of the ranks from `first_rank` on, a tenth of K each
    Null stands where there is nothing to divide by.
    """
    if (rows.truth == UNKNOWN).all():
        return {}
    known = rows.truth != UNKNOWN
    label, rank, truth = rows.label[known], rows.rank[known], rows.truth[known]
    right = truth == label
    tenth = rank_bin(rank, k, TENTHS)
    hits = np.bincount(label[right], minlength=len(true_counts))
    return {
        "labels": count_labels(rows),
        "pseudo_label_accuracy": _percent(right),
        "of_those_with_a_class": _percent(right[truth != NO_CLASS]),
        "per_class_accuracy": [_percent(right[label == c]) for c in range(len(true_counts))],
        "per_class_coverage": [
            round(100 * hit / count, 4) if count else None
            for hit, count in zip(hits.tolist(), true_counts.tolist(), strict=True)
        ],
        "accuracy_by_rank": {
            "first_rank": [k * number // TENTHS + 1 for number in range(TENTHS)],
            "percent": [_percent(right[tenth == number]) for number in range(TENTHS)],
        },
    }


def rank_bin(rank, k, bins):
    """Which of `bins` equal parts of the ranks 1 to K each rank is in; ranks above K: the last."""
    return np.minimum((rank - 1) * bins // k, bins - 1)


def wilson_interval(right, seen):
    """Wilson's 95 % interval for a rate: right of seen > 0 -> low, high, from 0 to 1.

    Numbers or arrays of one shape.
    """
    rate, z = right / seen, 1.959964  # the normal distribution's 97.5 % quantile
    middle = rate + z**2 / (2 * seen)
    half = z * np.sqrt(rate * (1 - rate) / seen + z**2 / (4 * seen**2))
    low, high = (middle - half) / (1 + z**2 / seen), (middle + half) / (1 + z**2 / seen)
    return np.clip(low, 0, rate), np.clip(high, rate, 1)  # against rounding


# --- predictions of the test images -------------------------------------------------------------


def confusion(predicted, labels, number):
    """predicted, labels: int64 (N,) -> counts int64 (C,C), rows true, columns predicted."""
    cell = np.asarray(labels) * number + np.asarray(predicted)
    return np.bincount(cell, minlength=number**2).reshape(number, number)


def most_confused(matrix, classes, most=20):
    """The pairs of classes confused most often, from `confusion`:
    [(true, predicted, images, percent of the true class's)]
    """
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(*divmod(int(cell), len(matrix)), int(wrong.flat[cell])) for cell in worst]
    return [
        (classes[true], classes[predicted], count, round(100 * count / int(matrix[true].sum()), 2))
        for true, predicted, count in pairs
        if count
    ]


def _quantiles(groups, percent):
    """The quantile of each group of scores, None for an empty one."""
    return [round(float(np.quantile(g, percent / 100)), 6) if len(g) else None for g in groups]


def _percent(flags):
    return round(100 * float(np.mean(flags)), 4) if len(flags) else None
