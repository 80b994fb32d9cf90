"""What a selection looks like in numbers: how full, how sure, how right."""

import numpy as np

TENTHS = 10  # of K: the steps in rank that scores and accuracy are given for


def describe(position, label, score, rank, num_classes, k):
    """Fill, overlap and scores of a selection, as a part of result.json.

    position, label, rank (from 1): int64 (M,); score: float32 (M,), of the selection's rows

    unfilled             places of the C x K that no candidate took
    multi_label_percent  of the images kept, those kept by several classes
    score_by_rank        the 10, 50 and 90 % quantiles over the classes of the score at ranks
                         1, K/10, 2K/10, ..., K; null where no class has that rank
    """
    counts = np.bincount(label, minlength=num_classes)
    _, labels_of_image = np.unique(position, return_counts=True)
    ranks = [max(1, k * tenth // TENTHS) for tenth in range(TENTHS + 1)]
    at_rank = [score[rank == number] for number in ranks]
    return {
        "selected": len(position),
        "unique_images": len(labels_of_image),
        "unfilled": int(num_classes * k - np.minimum(counts, k).sum()),
        "classes_below_k": int((counts < k).sum()),
        "multi_label_percent": _percent(labels_of_image > 1),
        "score_by_rank": {
            "rank": ranks,
            **{
                f"q{share}": [
                    round(float(np.quantile(scores, share / 100)), 6) if len(scores) else None
                    for scores in at_rank
                ]
                for share in (10, 50, 90)
            },
        },
        "per_class_counts": counts.tolist(),
    }


def compare(label, rank, truth, true_counts, k):
    """How right the pseudo-labels are where the truth is known; {} where it is known nowhere.

    truth: int64 (M,), -1 for unknown;  true_counts: int64 (C,), entries of the pool known to be of
    each class

    pseudo_label_accuracy  percent of the rows of known truth
    per_class_accuracy     the same among the rows of each label
    per_class_coverage     percent of a class's entries in the pool that are kept under its label
    accuracy_by_rank       of the ranks from `first_rank` on, a tenth of K each
    Null stands where there is nothing to divide by.
    """
    known = truth >= 0
    if not known.any():
        return {}
    label, rank, right = label[known], rank[known], truth[known] == label[known]
    classes = range(len(true_counts))
    first = [k * tenth // TENTHS + 1 for tenth in range(TENTHS)]
    tenth = np.minimum((rank - 1) * TENTHS // k, TENTHS - 1)
    hits = np.bincount(label[right], minlength=len(true_counts))
    return {
        "pseudo_label_accuracy": _percent(right),
        "per_class_accuracy": [_percent(right[label == number]) for number in classes],
        "per_class_coverage": [
            round(100 * int(hits[number]) / int(true_counts[number]), 4)
            if true_counts[number]
            else None
            for number in classes
        ],
        "accuracy_by_rank": {
            "first_rank": first,
            "percent": [_percent(right[tenth == number]) for number in range(TENTHS)],
        },
    }


def _percent(flags):
    return round(100 * float(np.mean(flags)), 4) if len(flags) else None
