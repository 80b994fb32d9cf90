"""The selector: what a walk over the pool keeps, and that parts of a pool are the whole."""

import pytest
import torch
from scoring import SCORE_BINS, Selector

from ranking import STRATEGIES


def chunks(count=300, classes=7, chunk=32):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=generator)
    usable, tags = torch.arange(count) % 11 != 3, torch.arange(count) % 9 - 1
    tags[tags >= classes] = -1
    for first in range(0, count, chunk):
        part = slice(first, min(first + chunk, count))
        yield first, logits[part], usable[part], tags[part]


def selector(strategy, min_score=0.0, start=0):
    return Selector(7, strategy, p=3, k=12, seed=4, min_score=min_score, start=start)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("min_score", [0.0, 0.4])
def test_selectors_of_parts_merge_to_that_of_the_whole_pool(strategy, min_score):
    whole = selector(strategy, min_score)
    parts = [selector(strategy, min_score) for _ in range(3)]
    for number, (first, *chunk) in enumerate(chunks()):
        whole.add(first, *chunk)
        parts[number % 3].add(first, *chunk)
    saved = selector(strategy, min_score)
    saved.load_state_dict(parts[0].state_dict())
    saved.merge(parts[2])
    saved.merge(parts[1])
    assert saved.scored == whole.scored == 300 - 27
    assert torch.equal(saved.histogram, whole.histogram)
    for ours, theirs in zip(saved.rows(), whole.rows(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_histogram_counts_the_best_score_of_every_usable_image():
    one = selector("ranked")
    best = []
    for first, logits, usable, _ in chunks():
        score, _ = one.add(first, logits, usable)
        best.append(score[usable, 0])
    expected = torch.histc(torch.cat(best), SCORE_BINS, 0, 1).long()
    assert torch.equal(one.histogram, expected)


@pytest.mark.parametrize("min_score", [0.0, 0.4])
def test_a_teacher_that_makes_nan_is_an_error_and_no_selection(min_score):
    one = selector("ranked", min_score)
    logits = torch.randn(20, 7)
    logits[5] = float("nan")
    one.add(0, logits, torch.ones(20, dtype=torch.bool))
    with pytest.raises(FloatingPointError, match="teacher"):
        one.rows()
