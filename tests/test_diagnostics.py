"""The numbers that describe a selection, against a selection small enough to count by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from data.sources import NO_CLASS
from report.diagnostics import (
    SelectedRows,
    confusion,
    count_by_class,
    label_quality,
    most_confused,
    rank_bin,
    selection_facts,
    verdicts,
    wilson_interval,
)
from report.mcnemar import difference_over_seeds, paired_difference

# Three classes, K = 10: class 0 keeps ten images, class 1 five, class 2 none.
LABEL = np.array([0] * 10 + [1] * 5)
RANK = np.array([*range(1, 11), *range(1, 6)])
SCORE = np.concatenate([np.linspace(1, 0.1, 10), np.linspace(0.5, 0.1, 5)]).astype(np.float32)
POSITION = np.array([*range(10), 0, 1, 20, 21, 22])  # images 0 and 1 stand for both classes
TRUTH = np.array([0] * 9 + [2] + [0, 1, 1, -1, 1])  # one row of unknown truth
ROWS = SelectedRows(POSITION, LABEL, SCORE, RANK, TRUTH)


def test_fill_overlap_and_scores():
    numbers = selection_facts(ROWS, 3, 10)
    assert (numbers["selected"], numbers["unique_images"]) == (15, 13)
    assert (numbers["unfilled"], numbers["classes_below_k"]) == (15, 2)
    assert numbers["multi_label_percent"] == round(100 * 2 / 13, 4)
    assert numbers["per_class_counts"] == [10, 5, 0]
    scores = numbers["score_by_rank"]
    assert scores["rank"] == [1, *range(1, 11)]
    assert scores["q50"][0] == 0.75 and scores["q50"][-1] == 0.1  # of 1 and 0.5; of 0.1 alone
    assert scores["q10"][0] == 0.55 and scores["q90"][0] == 0.95


def test_a_rank_that_no_class_has_is_null():
    rows = SelectedRows(*(column[10:] for column in ROWS))
    scores = selection_facts(rows, 3, 10)["score_by_rank"]
    assert scores["q50"][5] is not None and scores["q50"][6:] == [None] * 5


def test_more_rows_than_k_in_a_class_leave_the_other_places_unfilled():
    numbers = selection_facts(ROWS, 3, 6)  # unbalanced selections have such
    assert numbers["unfilled"] == 18 - 6 - 5


def test_accuracy_and_coverage_by_class_and_rank():
    numbers = label_quality(ROWS, np.array([18, 6, 4]), 10)
    assert numbers["labels"] == {"right": 12, "wrong": 2, "no_class": 0, "unknown": 1}
    assert numbers["pseudo_label_accuracy"] == round(100 * 12 / 14, 4)
    assert numbers["per_class_accuracy"] == [90.0, 75.0, None]
    assert numbers["per_class_coverage"] == [50.0, 50.0, 0.0]
    ranks = numbers["accuracy_by_rank"]
    assert ranks["first_rank"] == list(range(1, 11))
    assert ranks["percent"] == [50.0, 100, 100, 100, 100, 100, 100, 100, 100, 0.0]


def test_nothing_is_said_of_right_and_wrong_without_the_truth():
    rows = ROWS._replace(truth=np.full(15, -1))
    assert label_quality(rows, np.zeros(3, int), 10) == {}


def test_an_image_of_no_class_is_wrong_whatever_its_label():
    rows = ROWS._replace(truth=np.array([*TRUTH[:-1], NO_CLASS]))
    numbers = label_quality(rows, np.array([18, 6, 4]), 10)
    assert numbers["labels"] == {"right": 11, "wrong": 2, "no_class": 1, "unknown": 1}
    assert numbers["pseudo_label_accuracy"] == round(100 * 11 / 14, 4)
    assert numbers["of_those_with_a_class"] == round(100 * 11 / 13, 4)
    counts = count_by_class(rows, 4)
    assert counts.tolist() == [[9, 1, 0, 0], [2, 1, 1, 1], [0] * 4, [0] * 4]
    assert verdicts(rows)[8:].tolist() == [True, False, False, True, True, None, False]


def test_the_most_confused_pairs_come_first():
    matrix = confusion(np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 0, 1, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 1], [2, 2, 0], [0, 0, 0]]
    assert most_confused(matrix, "abc") == [("b", "a", 2, 50.0), ("a", "c", 1, 50.0)]


def test_bins_of_ranks():
    assert rank_bin(np.arange(1, 8), 5, 5).tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert rank_bin(np.array([1, 50, 51, 100, 951, 1000]), 1000, 20).tolist() == [
        0,
        0,
        1,
        1,
        19,
        19,
    ]


# Newcombe 1998, Statistics in Medicine 17, table I, method 3.
@pytest.mark.parametrize(
    ("right", "seen", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_as_published(right, seen, low, high):
    assert np.round(wilson_interval(right, seen), 4).tolist() == [low, high]


def test_wilsons_interval_agrees_with_scipys_and_contains_the_rate():
    right, seen = np.array([0, 1, 5, 9, 10, 77, 1]), np.array([10, 10, 10, 10, 10, 100, 1])
    # Here rounding puts the bounds outside 0 to 1 and beside the rate.
    right, seen = np.append(right, [0, 4, 20, 21]), np.append(seen, [7, 4, 20, 21])
    low, high = wilson_interval(right, seen)
    for i, (k, n) in enumerate(zip(right.tolist(), seen.tolist(), strict=True)):
        wanted = binomtest(k, n).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert (low >= 0).all() and (low <= right / seen).all()
    assert (high >= right / seen).all() and (high <= 1).all()


# Agresti, Categorical Data Analysis, table 10.1: 794, 150, 86 and 570 of 1,600 voters.
def test_a_paired_difference_as_published():
    a = np.repeat([True, True, False, False], [794, 150, 86, 570])
    b = np.repeat([True, False, True, False], [794, 150, 86, 570])
    gap, low, high, p = paired_difference(a, b)
    assert (gap, round(low, 2), round(high, 2)) == (0.04, 0.02, 0.06)
    assert p == pytest.approx(binomtest(150, 236).pvalue) and p < 1e-4
    assert paired_difference(b, a)[:3] == pytest.approx((-gap, -high, -low))


def test_the_interval_of_a_paired_difference_holds_the_truth_in_95_of_100_samples():
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        cell = random.choice(4, 100, p=[0.8, 0.1, 0.05, 0.05])
        _, low, high, _ = paired_difference(cell < 2, (cell == 0) | (cell == 2))
        held += low <= 0.05 <= high
    assert 0.93 * 400 <= held <= 0.99 * 400


def test_equal_answers_are_no_difference_and_others_are_refused():
    gap, low, high, p = paired_difference([True, False], [True, False])
    assert (gap, p) == (0, 1) and -1 <= low < 0 < high <= 1
    with pytest.raises(ValueError, match="3 and to 2"):
        paired_difference([True] * 3, [True] * 2)


def test_seeds_are_paired_by_students_t():
    mean, low, high, p = difference_over_seeds([3, 5, 4], [1, 2, 3])
    wanted = ttest_rel([3, 5, 4], [1, 2, 3])
    assert (mean, p) == (2, pytest.approx(wanted.pvalue))
    assert (low, high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert difference_over_seeds([1, 2], [0, 1]) == (1, 1, 1, 0)  # no spread
