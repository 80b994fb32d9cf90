"""Step 2's rule: `select` by its definition, and all the rest against `select`."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ranking
from ranking import SCORE_BINS, STRATEGIES, Selector, random_priority, select, top_classes
from topk import TopK


class SmallTopK(TopK):
    """One that prunes and merges all the time, a few groups at a time."""

    BUFFER = 37
    BLOCK = 64


def listed(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


def made_up_logits(kind, images=60, classes=6):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(images, classes, generator=generator)
    if kind == "tied":  # three images in ten are copies of earlier ones
        for image in range(10, images):
            if torch.rand((), generator=generator) < 0.3:
                logits[image] = logits[image % 10]
    if kind == "coarse":  # equal scores inside an image as well
        logits = logits.round()
    if kind == "short":  # class 2 is the best of no image, class 4 of two images only
        logits[:, 2] = -30.0
        logits[:, 4] -= 20.0
        logits[[7, 31], 4] = 30.0
    return logits


# --- select, the reference ----------------------------------------------------------------------


def test_the_examples_in_the_docstrings_are_right():
    failed, attempted = doctest.testmod(ranking)
    assert attempted >= 3 and not failed


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 8), st.integers(1, 5), st.integers(1, 10))
def test_select_is_what_its_definition_says(data, images, classes, k):
    """An image is in a class's ranking when fewer than P classes are better for it; its rank there
    is one more than the number of better images; it is kept when that is at most K.
    """
    p = data.draw(st.integers(1, classes))
    level = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    scores = [[data.draw(level) for _ in range(classes)] for _ in range(images)]

    def stands_for(i, label):
        mine = scores[i]
        better = (
            mine[c] > mine[label] or (mine[c] == mine[label] and c < label) for c in range(classes)
        )
        return sum(better) < p

    def before(i, other, label):
        return (-scores[i][label], i) < (-scores[other][label], other)

    expected = set()
    for label in range(classes):
        ranked = [i for i in range(images) if stands_for(i, label)]
        for i in ranked:
            rank = 1 + sum(before(other, i, label) for other in ranked)
            if rank <= k:
                expected.add((i, label, scores[i][label], rank))
    got = select(scores, p, k)
    assert len(got) == len(set(got)) and set(got) == expected
    assert [(row[1], row[3]) for row in got] == sorted((row[1], row[3]) for row in got)


# --- the whole selection ------------------------------------------------------------------------


def selection(logits, p, k, batches, kind=TopK):
    """`select` as step 2 does it, for the given batches of positions."""
    table = kind(logits.shape[1], k)
    for position in batches:
        score, label = top_classes(logits[position], p)
        group, score = label.flatten(), score.flatten()
        table.add(group, score, position.repeat_interleave(p), group, score)
    return listed(table.rows())


@pytest.mark.parametrize("kind", ["random", "tied", "coarse", "short"])
@pytest.mark.parametrize("p, k", [(1, 1), (1, 5), (3, 5), (5, 7), (6, 10), (2, 10_000)])
def test_the_selection_is_that_of_select(kind, p, k):
    logits = made_up_logits(kind)
    expected = select(logits.softmax(1).tolist(), p, k)
    batches = torch.arange(len(logits)).split(16)
    assert selection(logits, p, k, batches) == expected
    assert selection(logits, p, k, batches, SmallTopK) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 7), st.data())
def test_the_selection_of_any_pool_is_that_of_select(seed, images, classes, data):
    p, k = data.draw(st.integers(1, classes)), data.draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    if data.draw(st.booleans()):
        logits = logits.round()  # many ties
    order = torch.arange(images)
    if data.draw(st.booleans()):
        order = torch.randperm(images, generator=generator)
    batches = order.split(data.draw(st.integers(1, 40)))
    expected = select(logits.softmax(1).tolist(), p, k)
    assert selection(logits, p, k, batches, SmallTopK) == expected


@pytest.mark.parametrize("kind", ["random", "tied", "short"])
def test_the_selection_is_the_same_for_any_batches_in_any_order(kind):
    logits = made_up_logits(kind)
    everything = torch.arange(len(logits))
    whole = selection(logits, 2, 9, [everything])
    for size in (1, 7, 59):
        assert selection(logits, 2, 9, everything.split(size)) == whole
        assert selection(logits, 2, 9, everything.split(size)[::-1]) == whole
    assert selection(logits, 2, 9, everything.flip(0).split(11)) == whole


def test_a_class_with_fewer_candidates_than_k_has_fewer_rows_and_one_with_none_has_none():
    rows = selection(made_up_logits("short"), 1, 10, [torch.arange(60)])
    labels = [label for _, label, _, _ in rows]
    assert labels.count(2) == 0
    assert labels.count(4) == 2
    assert max(labels.count(label) for label in range(6)) == 10


# --- top_classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "coarse"])
@pytest.mark.parametrize("p", [1, 2, 5, 6])
def test_top_classes_are_the_first_p_of_a_sorted_list(kind, p):
    logits = made_up_logits(kind)
    score, label = top_classes(logits, p)
    expected = [
        sorted((-value, number) for number, value in enumerate(row))[:p]
        for row in logits.softmax(1).tolist()
    ]
    assert score.dtype == torch.float32
    assert score.shape == label.shape == (len(logits), p)
    got = zip((-score).tolist(), label.tolist(), strict=True)
    assert [list(zip(*pair, strict=True)) for pair in got] == expected


def test_equal_scores_of_an_image_go_to_the_lower_class():
    _, label = top_classes(torch.zeros(2, 40), 3)
    assert label.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_scores_are_float32_softmax_even_of_bf16_logits():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    score, label = top_classes(logits, 9)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, logits.float().softmax(1).gather(1, label), rtol=0, atol=0)


@pytest.mark.parametrize("p", [-1, 0, 6])
def test_p_outside_one_to_the_class_count_is_refused_by_name(p):
    with pytest.raises(ValueError, match=rf"p is {p}.*5"):
        top_classes(torch.zeros(3, 5), p)


# --- random_priority ----------------------------------------------------------------------------


def reference_splitmix(position, seed):
    mask = 2**64 - 1
    x = ((position + 1) * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 40) / 2**24


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_random_priorities_match_splitmix64(seed):
    position = torch.tensor([0, 1, 2, 1000, 149_999, 2**32 - 1])
    expected = [reference_splitmix(n, seed) for n in position.tolist()]
    assert random_priority(position, seed).tolist() == expected


def test_random_priorities_depend_on_seed_and_position_alone():
    position = torch.arange(500)
    whole = random_priority(position, 7)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(random_priority(position[order], 7), whole[order], rtol=0, atol=0)
    assert not torch.equal(random_priority(position, 8), whole)


def test_random_priorities_are_uniform_from_zero_to_one():
    value = random_priority(torch.arange(20_000), 0)
    assert value.dtype == torch.float32
    assert value.min() >= 0
    assert value.max() < 1
    count = torch.histc(value, 10, 0, 1)
    assert (count - 2000).abs().max() < 220  # five standard deviations
    pairs = torch.stack([value[:-1], value[1:]]).double()
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.035  # neighbours do not follow each other


# --- Selector -----------------------------------------------------------------------------------

POOL, CLASSES, P, K, SEED = 300, 7, 3, 12, 4


def pool():
    """logits (POOL,C), which entries are usable, and the tags of all."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(POOL, CLASSES, generator=generator)
    usable, tags = torch.arange(POOL) % 11 != 3, torch.arange(POOL) % 9 - 1
    tags[tags >= CLASSES] = -1
    return logits, usable, tags


def chunks(size=32):
    columns = pool()
    for first in range(0, POOL, size):
        yield first, *(column[first : first + size] for column in columns)


def selector(strategy, min_score=0.0):
    return Selector(CLASSES, strategy, p=P, k=K, seed=SEED, min_score=min_score)


def walked(strategy, min_score=0.0):
    one = selector(strategy, min_score)
    for chunk in chunks():
        one.add(*chunk)
    return one


def slow_selection(strategy, min_score):
    """Lists and sorting, for every strategy."""
    logits, usable, tags = pool()
    scores = logits.softmax(1).tolist()
    images = [image for image in range(POOL) if usable[image]]
    if strategy == "ranked":
        # Where every class is a candidate's own, only the min_score is missing from `select`.
        rows = select([scores[i] for i in images], P, POOL)
        rows = [row for row in rows if row[2] >= min_score and row[3] <= K]
        return [(images[i], *row) for i, *row in rows]
    label_of = {i: scores[i].index(max(scores[i])) for i in images}
    if strategy == "tags":
        label_of = {i: int(tags[i]) for i in images if tags[i] >= 0}
    label_of = {i: label for i, label in label_of.items() if scores[i][label] >= min_score}
    shuffled = {i: reference_splitmix(i, SEED) for i in images}
    if strategy == "unbalanced":
        order = sorted(label_of, key=lambda i: (-scores[i][label_of[i]], i))
    else:
        order = sorted(label_of, key=lambda i: (-shuffled[i], i))
    if strategy in ("unbalanced", "random"):
        order = order[: len(slow_selection("ranked", min_score))]
    rows = []
    for label in range(CLASSES):
        mine = [i for i in order if label_of[i] == label]
        if strategy in ("random-in-class", "tags"):
            mine = mine[:K]
        rows += [(i, label, scores[i][label], rank) for rank, i in enumerate(mine, 1)]
    return rows


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("min_score", [0.0, 0.4])
def test_every_strategy_selects_what_sorted_lists_do(strategy, min_score):
    expected = slow_selection(strategy, min_score)
    assert len(expected) > CLASSES
    assert listed(walked(strategy, min_score).rows()) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("min_score", [0.0, 0.4])
def test_selectors_of_parts_merge_to_that_of_the_whole_pool(strategy, min_score):
    whole = walked(strategy, min_score)
    parts = [selector(strategy, min_score) for _ in range(3)]
    for number, chunk in enumerate(chunks()):
        parts[number % 3].add(*chunk)
    saved = selector(strategy, min_score)
    saved.load_state_dict(parts[0].state_dict())
    saved.merge(parts[2])
    saved.merge(parts[1])
    assert saved.scored == whole.scored == 300 - 27
    assert torch.equal(saved.histogram, whole.histogram)
    assert listed(saved.rows()) == listed(whole.rows())


def test_a_state_holds_what_older_runs_saved():
    state = walked("random").state_dict()
    assert list(state) == ["position", "scored", "histogram", "tables"]
    assert list(state["tables"]) == ["ranked", "random"]
    for table in state["tables"].values():
        types = {name: column.dtype for name, column in table.items()}
        assert types == {"key": torch.int64, "label": torch.int32, "score": torch.float32}


def test_the_histogram_counts_the_best_score_of_every_usable_image():
    one = selector("ranked")
    best = []
    for first, logits, usable, _ in chunks():
        score, _ = one.add(first, logits, usable)
        best.append(score[usable, 0])
    expected = torch.histc(torch.cat(best), SCORE_BINS, 0, 1).long()
    assert torch.equal(one.histogram, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("min_score", [0.0, 0.4])
def test_a_teacher_that_makes_nan_is_an_error_and_no_selection(strategy, min_score):
    one = selector(strategy, min_score)
    logits = torch.randn(20, CLASSES)
    logits[5] = float("nan")
    one.add(0, logits, torch.ones(20, dtype=torch.bool), torch.zeros(20, dtype=torch.int64))
    assert one.histogram[0] >= 1
    with pytest.raises(FloatingPointError, match="NaN; check the network"):
        one.state_dict()
