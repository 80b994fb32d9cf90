"""The statistics of the verdicts, against numbers worked out by hand and against brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from trials.statistics import (
    Contrast,
    Difference,
    LargerGain,
    NoGain,
    Peak,
    Same,
    Table,
    Trend,
    holm,
    sign_flip,
)

SEEDS = range(3)


def table(**arms):
    """Arms by name: one accuracy a seed, on validation images the same as on test images."""
    return Table({name: {s: (y, y) for s, y in enumerate(ys)} for name, ys in arms.items()})


def judge(test, tuning=SEEDS, seeds=SEEDS, **arms):
    return test.judge(table(**arms), seeds, tuning)


def test_the_interval_is_the_t_interval_of_the_differences():
    contrast = Contrast.of("a - b", [30.0, 31.0, 32.5], [29.0, 30.5, 31.0])
    assert contrast.differences == (1.0, 0.5, 1.5) and contrast.mean == 1.0
    half = 4.302653 * 0.5 / math.sqrt(3)  # t of two degrees of freedom, 97.5 %
    assert (contrast.low, contrast.high) == pytest.approx((1 - half, 1 + half), abs=1e-5)
    assert contrast.p_above == pytest.approx(1 - stats.t.cdf(1 / (0.5 / math.sqrt(3)), 2))


def test_pairing_matters():
    """The seeds differ by ten points, the arms by one, always: the interval knows it."""
    contrast = Contrast.of("a - b", [21.0, 31.1, 41.0], [20.0, 30.0, 40.1])
    assert 0.5 < contrast.low < contrast.high < 1.5


@pytest.mark.parametrize("shift, p", [(0.0, 0.5), (1.0, 0.0), (-1.0, 1.0)])
def test_differences_without_spread_have_an_interval_of_no_width(shift, p):
    contrast = Contrast.of("a - b", np.arange(3) + shift, np.arange(3))
    assert (contrast.low, contrast.high, contrast.p_above) == (shift, shift, p)


def test_sign_flip_counts_the_choices_of_signs():
    assert sign_flip([1, 2, 3]) == 2 / 8  # all plus and all minus
    assert sign_flip([1, 1, -1]) == 1.0  # every choice is as far from zero
    assert sign_flip([0.5, 1, 2, 3, 4, 5]) == 2 / 64
    random = np.random.default_rng(0).normal(0.5, 1, 7)
    as_far = [
        abs(np.dot(signs, random)) >= abs(sum(random)) - 1e-9
        for signs in itertools.product((-1, 1), repeat=7)
    ]
    assert sign_flip(random) == np.mean(as_far)


@pytest.mark.parametrize(
    "ps, adjusted",
    [
        ([0.01, 0.04], [0.02, 0.04]),
        ([0.04, 0.01], [0.04, 0.02]),
        ([0.03, 0.031], [0.06, 0.06]),  # the second is not below the first
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
    ],
)
def test_holm(ps, adjusted):
    assert holm(ps) == pytest.approx(adjusted)


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, verdict, no_gain",
    [
        ([31.0, 32.1, 33.0], "confirmed", "contradicted"),  # about +1, always
        ([30.2, 31.2, 32.21], "contradicted", "confirmed"),  # +0.2: above zero, but does not count
        ([29.0, 30.1, 31.0], "contradicted", "confirmed"),  # about -1
        ([33.0, 30.0, 34.0], "inconclusive", "inconclusive"),  # +3, -1, +2
    ],
)
def test_difference_and_its_mirror(ours, verdict, no_gain):
    arms = {"ours": ours, "rival": [30.0, 31.0, 32.0]}
    assert judge(Difference(0.5, "ours", "rival"), **arms).verdict == verdict
    assert judge(NoGain(0.5, "ours", "rival"), **arms).verdict == no_gain


@pytest.mark.parametrize(
    "ours, verdict",
    [
        ([30.1, 30.9, 32.0], "confirmed"),
        ([32.0, 33.1, 34.0], "contradicted"),
        ([28.0, 29.1, 30.0], "contradicted"),
        ([31.0, 32.1, 33.0], "inconclusive"),  # about one point: on the limit
    ],
)
def test_same(ours, verdict):
    test = Same(1.0, "ours", "rival")
    assert judge(test, ours=ours, rival=[30.0, 31.0, 32.0]).verdict == verdict


@pytest.mark.parametrize(
    "c, verdict",
    [
        ([33.0, 34.0, 35.5], "confirmed"),
        ([30.0, 31.1, 32.0], "contradicted"),  # down again: nothing left of the rise
        ([38.0, 30.0, 33.0], "inconclusive"),
    ],
)
def test_trend(c, verdict):
    test = Trend(1.0, "a", "b", "c")
    arms = {"a": [30.0, 31.0, 32.0], "b": [32.0, 33.0, 34.0], "c": c}
    outcome = judge(test, **arms)
    assert outcome.verdict == verdict
    p = stats.page_trend_test(np.array(list(arms.values())).T, method="exact").pvalue
    assert f"{p:.3g}" in outcome.note


@pytest.mark.parametrize(
    "last, verdict",
    [
        ([30.5, 31.4, 32.6], "confirmed"),
        ([32.0, 33.0, 34.1], "contradicted"),  # as high as the peak
        ([25.0, 33.0, 33.0], "inconclusive"),
    ],
)
def test_a_peak_needs_both_flanks(last, verdict):
    test = Peak(0.5, "first", "peak", "last")
    arms = {"first": [30.0, 31.1, 32.0], "peak": [32.0, 33.0, 34.0], "last": last}
    outcome = judge(test, **arms)
    assert outcome.verdict == verdict and len(outcome.contrasts) == 2


@pytest.mark.parametrize(
    "linear, verdict",
    [([33.0, 34.1, 35.0], "confirmed"), ([31.0, 32.1, 33.0], "contradicted")],
)
def test_a_gain_is_compared_with_a_gain(linear, verdict):
    arms = {"full": [41.0, 42.0, 43.1], "its rival": [40.0, 41.0, 42.0]}  # about +1
    arms |= {"linear": linear, "rival": [30.0, 31.0, 32.0]}
    outcome = judge(LargerGain(0.5, "linear", "rival", "full", "its rival"), **arms)
    assert outcome.verdict == verdict
    assert outcome.contrasts[0].name == "gain of linear - gain of full"


def test_no_verdict_before_all_registered_seeds_are_there():
    test = Difference(0.5, "ours", "rival")
    assert judge(test, ours=[31.0, 32.0], rival=[30.0, 31.0, 32.1]).verdict == "unfinished"
    assert judge(test, rival=[30.0, 31.0, 32.0]).verdict == "unfinished"


def test_candidates_are_chosen_on_validation_images_and_compared_on_test_images():
    accuracies = {
        "modest": {s: (50.0, 10.0 + s) for s in range(4)},
        "lucky": {s: (40.0, 90.0 + s) for s in range(4)},  # best on test, which nobody looks at
        "rival": {s: (0.0, 5.0 + s + 0.1 * (s == 1)) for s in range(4)},
    }
    test = Difference(0.5, ("lucky", "modest"), "rival")
    outcome = test.judge(Table(accuracies), range(4), range(2))
    assert outcome.contrasts[0].name == "modest - rival"
    assert outcome.contrasts[0].mean == pytest.approx(5 - 0.1 / 4)
    assert "modest" in outcome.note
    # Only the first two seeds choose: the loser has no others, and needs none.
    for seed in (2, 3):
        del accuracies["lucky"][seed]
    assert test.judge(Table(accuracies), range(4), range(2)) == outcome
    assert test.judge(Table(accuracies), range(4), range(3)).verdict == "unfinished"


def test_an_effect_that_the_range_ends_too_early_for_is_not_reached():
    test = Difference(0.5, "early", "late", part="a peak", ruled_out="not reached")
    assert judge(test, early=[30.0, 31.0, 32.0], late=[32.0, 33.1, 34.0]).verdict == "not reached"
    assert judge(test, early=[33.0, 34.1, 35.0], late=[32.0, 33.1, 34.0]).verdict == "confirmed"


def test_arms_without_any_difference_are_idle_and_test_nothing():
    test, same = Same(1.0, "P = 5", "P = 10"), [30.0, 31.0, 32.0]
    outcome = judge(test, **{"P = 5": same, "P = 10": same})
    assert outcome.verdict == "idle at this K" and outcome.p is None
    assert judge(test, **{"P = 5": [30.0, 31.0, 32.01], "P = 10": same}).verdict == "confirmed"


@pytest.mark.parametrize("seed", range(20))
def test_p_is_below_5_percent_where_the_interval_says_so(seed):
    rng = np.random.default_rng(seed)
    arms = {"ours": rng.normal(30.7, 0.5, 3), "rival": rng.normal(30, 0.5, 3)}
    outcome = judge(Difference(0.5, "ours", "rival"), **arms)
    (contrast,) = outcome.contrasts
    assert outcome.p == pytest.approx(stats.ttest_rel(*arms.values()).pvalue)
    assert (outcome.p < 0.05) == (contrast.low > 0 or contrast.high < 0)
    same = judge(Same(2.0, "ours", "rival"), **arms)
    assert (same.p < 0.05) == (same.verdict == "confirmed")


def test_every_outcome_names_its_arms_and_an_unfinished_one_has_p_1():
    test = Difference(0.5, "ours", ("rival", "other"))
    outcome = judge(test, ours=[31.0, 32.0, 33.0])
    assert (outcome.verdict, outcome.p, outcome.arms) == ("unfinished", 1.0, ("ours", "rival"))
    better = judge(test, ours=[1.0, 2.0, 4.0], rival=[0.0, 1.0, 2.0], other=[1.0, 1.0, 2.0])
    assert better.arms == ("ours", "other")


def test_one_seed_is_no_verdict():
    outcome = judge(Difference(0.5, "ours", "rival"), [0], [0], ours=[31.0], rival=[30.0])
    assert (outcome.verdict, outcome.p) == ("one seed", None)
    assert outcome.contrasts[0].differences == (1.0,)
