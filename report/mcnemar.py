"""Whether two networks differ: on the same test images, or over the same seeds."""

import math

import numpy as np
from scipy import stats

_Z = float(stats.norm.ppf(0.975))


def paired_difference(right_a, right_b):
    """The difference of two shares of right answers to the same images.

    right_a, right_b: bool (N,), N > 0
    -> difference, low, high: share of a minus share of b, from -1 to 1, and its 95 % interval after
       Agresti and Min (2005), half an image added to each of the four cells
       p: McNemar's exact two-sided p, of the images that one alone has right
    Raises ValueError for two lengths, or none.
    """
    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"answers to {a.size} and to {b.size} images cannot be paired")
    n, only_a, only_b = a.size, int((a & ~b).sum()), int((~a & b).sum())
    middle = (only_a - only_b) / (n + 2)
    half = _Z * math.sqrt(((only_a + only_b + 1) / (n + 2) - middle**2) / (n + 2))
    either = only_a + only_b
    p = float(stats.binomtest(only_a, either).pvalue) if either else 1.0
    return (only_a - only_b) / n, max(-1.0, middle - half), min(1.0, middle + half), p


def difference_over_seeds(a, b):
    """The same of two columns of numbers, paired by seed: the mean, Student's 95 % interval, p.

    a, b: (n,), n > 1
    """
    differences = np.asarray(a, float) - np.asarray(b, float)
    mean = float(differences.mean())
    if np.ptp(differences) < 1e-9:  # no spread, no t
        return mean, mean, mean, float(abs(mean) < 1e-9)
    test = stats.ttest_1samp(differences, 0)
    return mean, *map(float, test.confidence_interval(0.95)), float(test.pvalue)
