"""The tests behind the verdicts of the study.

Everything is paired: a seed is a whole chain, labels drawn anew, and arms are compared seed by
seed.  A comparison shows all its differences, their mean, the 95 % t interval and, since few seeds
tell little about normality, the exact sign-flip p beside it (with n seeds it cannot be below
2 / 2**n).  Accuracies are percent, differences points.  A test is one part of a claim and gives one
of these words:

    confirmed       the effect has the claim's sign and the size that counts
    contradicted    an effect that counts is ruled out
    not reached     the same, where it only says that our range ends too early for the effect
    idle at this K  no seed differs, since both arms have the same selections
    inconclusive    neither, at these seeds
    unfinished      not all registered seeds are there yet; no peeking
    not comparable  the seeds are there, but the two sides have different precisions
    one seed        a difference without an interval, which is no verdict

Its p is that of the hypothesis that a confirmation rejects: no difference (two-sided t), no trend
(Page), a flank that does not rise (one-sided t, Holm), a difference of the size that counts (two
one-sided t, doubled).
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Contrast:
    """One comparison over the seeds."""

    name: str
    differences: tuple[float, ...]  # points, one a seed
    mean: float
    low: float  # the interval
    high: float
    p_above: float  # one-sided t: the mean is above zero
    p_flip: float  # two-sided, exact

    @property
    def p(self):
        """Two-sided t."""
        return 2 * min(self.p_above, 1 - self.p_above)

    @classmethod
    def of(cls, name, ours, rival):
        """ours, rival: (n,) each, one number a seed; one seed alone has no interval's width."""
        ours, rival = np.asarray(ours, float), np.asarray(rival, float)
        differences = ours - rival
        mean = float(differences.mean())
        if np.ptp(differences) < 1e-9:  # no spread, no t
            low, high, p = mean, mean, 0.5 if abs(mean) < 1e-9 else float(mean < 0)
        else:
            low, high = stats.ttest_rel(ours, rival).confidence_interval(LEVEL)
            p = stats.ttest_rel(ours, rival, alternative="greater").pvalue
        return cls(
            name,
            tuple(differences),
            mean,
            float(low),
            float(high),
            float(p),
            sign_flip(differences),
        )


def sign_flip(differences):
    """Two-sided p: the share of all choices of signs whose mean is as far from zero as ours."""
    steps = np.asarray(differences, float)
    signs = np.array(list(itertools.product((1, -1), repeat=len(steps))))  # (2**n, n)
    means = np.abs((signs * steps).mean(1))
    return float((means >= abs(steps.mean()) - 1e-12).mean())


def holm(ps):
    """p values after Holm's correction, in the order given."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(np.argsort(ps, kind="stable")):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


class Table:
    """What the runs gave.  accuracies: {arm: {seed: (validation, test)}}"""

    def __init__(self, accuracies):
        self.accuracies = accuracies

    def missing(self, arms, seeds):
        """The (arm, seed) pairs that are not there yet."""
        return [(a, s) for a in arms for s in seeds if s not in self.accuracies.get(a, {})]

    def best(self, candidates, seeds):
        """The arm with the highest mean on validation images over `seeds`; the first of equals.

        None where a number is missing.  One candidate needs no numbers.
        """
        if len(candidates) == 1:
            return candidates[0]
        if self.missing(candidates, seeds):
            return None
        return max(candidates, key=lambda arm: self.column(arm, seeds, 0).mean())

    def column(self, arm, seeds, subset=1):
        """(n,) validation (subset 0) or test (1) accuracies of an arm."""
        return np.array([self.accuracies[arm][seed][subset] for seed in seeds])


@dataclass(frozen=True)
class Outcome:
    """What a test found."""

    verdict: str
    contrasts: tuple[Contrast, ...] = ()
    note: str = ""  # which arms were chosen, further p values
    p: float | None = 1.0  # None: nothing was tested
    arms: tuple[str, ...] = ()  # the chosen one of each side; the first of a side without numbers


def _effect(contrast, smallest):
    """The verdict on a contrast that a claim expects to be at least `smallest` above zero."""
    if contrast.low > 0 and contrast.mean >= smallest:
        return "confirmed"
    return "contradicted" if contrast.high < smallest else "inconclusive"


class Test:
    """One part of a claim, which compares its sides.

    sides: an arm each (a trials.arms.Arm or its name), or a list of candidates, of which the best
    on validation images is compared
    smallest: the least difference that counts, points
    part: what it tests, where its claim has several tests; nobody registers these words
    ruled_out: the word for an effect that is ruled out
    """

    __test__ = False  # for pytest
    base = 1  # the side that the others are compared with

    def __init__(self, smallest, *sides, part="", ruled_out="contradicted"):
        self.smallest, self.part, self.ruled_out = smallest, part, ruled_out
        self.arms = tuple(tuple(s) if isinstance(s, list | tuple) else (s,) for s in sides)
        # Their names.
        self.sides = tuple(tuple(getattr(arm, "name", arm) for arm in side) for side in self.arms)

    def limits(self, zero):
        """Where a difference from the arm `zero` begins to count, points."""
        return (-self.smallest if zero in self.sides[0] else self.smallest,)

    def judge(self, table, seeds, tuning):
        """-> Outcome.  seeds: of the comparison; tuning: those the candidates are chosen by."""
        chosen = [table.best(side, tuning) for side in self.sides]
        arms = tuple(arm or side[0] for arm, side in zip(chosen, self.sides, strict=True))
        if None in chosen or table.missing(chosen, seeds):
            return Outcome("unfinished", arms=arms)
        tuned = [arm for arm, side in zip(chosen, self.sides, strict=True) if len(side) > 1]
        outcome = self._judge(chosen, [table.column(arm, seeds) for arm in chosen])
        note = f"chosen on validation: {', '.join(tuned)}" if tuned else ""
        note = "; ".join(filter(None, (note, outcome.note)))
        if len(seeds) == 1:
            return replace(outcome, verdict="one seed", note=note, arms=arms, p=None)
        verdict = self.ruled_out if outcome.verdict == "contradicted" else outcome.verdict
        return replace(outcome, verdict=verdict, note=note, arms=arms)


class Difference(Test):
    """The first side, ours, is better than the second, its rival.

    confirmed: interval above zero and mean >= smallest; contradicted: interval below smallest
    """

    def _judge(self, arms, columns):
        contrast = Contrast.of(f"{arms[0]} - {arms[1]}", *columns)
        return Outcome(_effect(contrast, self.smallest), (contrast,), p=contrast.p)


class NoGain(Difference):
    """Ours is not better than its rival: `Difference` with the two verdicts swapped."""

    def _judge(self, arms, columns):
        outcome = super()._judge(arms, columns)
        swap = {"confirmed": "contradicted", "contradicted": "confirmed"}
        return replace(outcome, verdict=swap.get(outcome.verdict, outcome.verdict))


class LargerGain(Test):
    """The gain of the first side over the second is above the gain of the third over the fourth.

    confirmed, contradicted: as in `Difference`
    """

    def _judge(self, arms, columns):
        one, one_rival, other, other_rival = columns
        name = f"gain of {arms[0]} - gain of {arms[2]}"
        contrast = Contrast.of(name, one - one_rival, other - other_rival)
        return Outcome(_effect(contrast, self.smallest), (contrast,), p=contrast.p)


class Same(Test):
    """The two sides differ by less than `smallest`.

    confirmed: interval within -smallest .. smallest; contradicted: interval wholly beyond one of
    them; idle at this K: no seed differs
    """

    def limits(self, zero):
        return -self.smallest, self.smallest

    def _judge(self, arms, columns):
        contrast = Contrast.of(f"{arms[0]} - {arms[1]}", *columns)
        verdict, least = "inconclusive", self.smallest
        if not any(contrast.differences):
            return Outcome("idle at this K", (contrast,), p=None)
        if -least < contrast.low and contrast.high < least:
            verdict = "confirmed"
        elif contrast.low > least or contrast.high < -least:
            verdict = "contradicted"
        ours, rival = columns
        ps = [Contrast.of("", a + least, b).p_above for a, b in ((ours, rival), (rival, ours))]
        return Outcome(verdict, (contrast,), p=min(1.0, 2 * max(ps)))


class Trend(Test):
    """Accuracy rises from each side to the next.

    confirmed: Page's trend test over the seeds has p < 0.05, and the mean of last - first is
    >= smallest; contradicted: the interval of last - first is below smallest
    """

    base = 0

    def limits(self, zero):
        return (self.smallest,)

    def _judge(self, arms, columns):
        contrast = Contrast.of(f"{arms[-1]} - {arms[0]}", columns[-1], columns[0])
        p = stats.page_trend_test(np.stack(columns, 1), method="exact").pvalue
        verdict = "contradicted" if contrast.high < self.smallest else "inconclusive"
        if p < 1 - LEVEL and contrast.mean >= self.smallest:
            verdict = "confirmed"
        return Outcome(verdict, (contrast,), f"Page's trend test p = {p:.3g}", float(p))


class Peak(Test):
    """Accuracy is higher at the second of three sides, named beforehand, than at both ends.

    confirmed: both flanks rise by >= smallest in the mean and have p < 0.05 (one-sided t, Holm);
    contradicted: the interval of a flank is below smallest
    """

    def limits(self, zero):
        return (-self.smallest,)

    def _judge(self, arms, columns):
        flanks = tuple(
            Contrast.of(f"{arms[1]} - {arms[end]}", columns[1], columns[end]) for end in (0, 2)
        )
        ps = holm([flank.p_above for flank in flanks])
        verdict = "inconclusive"
        if any(flank.high < self.smallest for flank in flanks):
            verdict = "contradicted"
        elif max(ps) < 1 - LEVEL and all(flank.mean >= self.smallest for flank in flanks):
            verdict = "confirmed"
        return Outcome(verdict, flanks, f"Holm's p = {ps[0]:.3g} and {ps[1]:.3g}", max(ps))
