"""The K best of a stream against a full sort, for any order, any cut and any merging of it."""

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ranking import Simulation
from topk import EMPTY, MAX_POSITION, TopK, sort_key, unpack_key


def sorted_rows_of(candidates, groups, k):
    """candidates (group, priority, position, label, score) -> (position, label, score, rank)."""
    kept = []
    for group in range(groups):
        mine = [c for c in candidates if c[0] == group]
        kept += sorted(mine, key=lambda c: (-c[1], c[2]))[:k]
    rows = []
    for label in sorted({c[3] for c in kept}):
        mine = sorted((c for c in kept if c[3] == label), key=lambda c: (-c[1], c[2]))
        rows += [(c[2], label, c[4], rank) for rank, c in enumerate(mine, 1)]
    return rows


def columns(candidates):
    group, priority, position, label, score = zip(*candidates, strict=True)
    return (
        torch.tensor(group),
        torch.tensor(priority, dtype=torch.float32),
        torch.tensor(position),
        torch.tensor(label),
        torch.tensor(score, dtype=torch.float32),
    )


class SmallTopK(TopK):
    """One that prunes and merges all the time, a few groups at a time."""

    BUFFER = 37
    BLOCK = 64


def kept(candidates, groups, k):
    table = TopK(groups, k)
    if candidates:
        table.add(*columns(candidates))
    return table


def as_rows(table):
    return list(zip(*(column.tolist() for column in table.rows()), strict=True))


# --- sort_key -----------------------------------------------------------------------------------

priorities = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, float("inf"), float("-inf")]
)
positions = st.integers(0, MAX_POSITION)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(priorities, positions, priorities, positions)
def test_keys_order_as_priority_then_position(one, first, other, second):
    keys = sort_key(torch.tensor([one, other], dtype=torch.float32), torch.tensor([first, second]))
    expected = (one, -first) > (other, -second)
    assert bool(keys[0] > keys[1]) == expected
    assert bool(keys[0] == keys[1]) == ((one, first) == (other, second))
    assert (keys > EMPTY).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(priorities, positions)
def test_a_key_gives_back_what_it_was_made_of(priority, position):
    key = sort_key(torch.tensor([priority], dtype=torch.float32), torch.tensor([position]))
    found, place = unpack_key(key)
    assert (found.item(), place.item()) == (np.float32(priority), position)


def test_a_free_place_has_no_priority():
    assert unpack_key(torch.tensor([EMPTY]))[0].isnan().all()


def test_minus_zero_and_zero_are_equal_priorities():
    zeros = torch.tensor([0.0, -0.0, -0.0, 0.0])
    keys = sort_key(zeros, torch.tensor([3, 2, 1, 0]))
    assert keys.argsort(descending=True).tolist() == [3, 2, 1, 0]


# --- TopK ---------------------------------------------------------------------------------------


@st.composite
def streams(draw):
    """Candidates with many equal, negative and zero priorities; their number of groups; a k."""
    groups = draw(st.integers(1, 4))
    pairs = draw(st.lists(st.tuples(st.integers(0, groups - 1), st.integers(0, 30)), unique=True))
    level = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.25, 3.0])
    candidates = [
        (group, draw(level), position, draw(st.integers(0, 5)), position / 64)
        for group, position in pairs
    ]
    return candidates, groups, draw(st.integers(1, 12))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(streams(), st.randoms(use_true_random=False))
def test_any_split_and_any_merge_order_gives_the_reference_rows(stream, chance):
    candidates, groups, k = stream
    candidates = [(g, priority, n, g, score) for g, priority, n, _, score in candidates]
    expected = sorted_rows_of(candidates, groups, k)
    assert as_rows(kept(candidates, groups, k)) == expected

    shuffled = chance.sample(candidates, len(candidates))
    parts = [TopK(groups, k) for _ in range(3)]
    while shuffled:
        size = chance.randint(1, 9)
        chance.choice(parts).add(*columns(shuffled[:size]))
        shuffled = shuffled[size:]
    chance.shuffle(parts)
    for other in parts[1:]:
        parts[0].merge(other)
    assert as_rows(parts[0]) == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(streams())
def test_one_group_for_all_labels_comes_out_ranked_within_each_label(stream):
    candidates, _, k = stream
    seen = {c[2]: (0, *c[1:]) for c in candidates}  # one group meets a position once
    candidates = list(seen.values())
    assert as_rows(kept(candidates, 1, k)) == sorted_rows_of(candidates, 1, k)


LEVELS = {
    "any": lambda chance, count: chance.normal(size=count),
    "softmax": lambda chance, count: chance.random(count) ** 4,
    "saturated": lambda chance, count: chance.choice([1.0, 1.0 - 2**-24, 0.5], count),
    "zeros": lambda chance, count: chance.choice([0.0, -0.0, 1e-45, -1e-45], count),
    "infinite": lambda chance, count: chance.choice([np.inf, -np.inf, 0.0, 3e38, -3e38], count),
    "rising": lambda chance, count: np.arange(count) / count,
    "falling": lambda chance, count: -np.arange(count) / count,
}


@dataclass(frozen=True)
class Stream:
    """Scored candidates, and what a full sort makes of them."""

    seed: int
    groups: int  # the highest two stay empty
    k: int
    count: int
    tied: float  # share of the candidates that have another one's score
    level: str

    @cached_property
    def table(self):
        """group, score, position: (count,) each, no position twice."""
        chance = np.random.default_rng(self.seed)
        popular = chance.random(max(1, self.groups - 2)) ** 3 + 1e-3  # some classes are rare
        group = chance.choice(len(popular), self.count, p=popular / popular.sum())
        score = LEVELS[self.level](chance, self.count).astype(np.float32)
        copies = chance.random(self.count) < self.tied
        score[copies] = score[chance.integers(0, max(1, self.count // 5), copies.sum())]
        position = chance.permutation(self.count) * 3 + chance.choice(
            [0, 2**32 - 3 * self.count - 1]
        )
        return group, score, position

    def columns(self, part):
        """The candidates at the places `part`, for TopK.add."""
        group, score, position = (torch.from_numpy(column[part]) for column in self.table)
        return group, score, position, group, score

    def sorted_rows(self):
        """All sorted at once, then the first k of every group."""
        group, score, position = self.table
        order = np.lexsort((position, -score, group))
        sorted_group = group[order]
        place = np.arange(self.count) - np.searchsorted(sorted_group, sorted_group)
        kept, place = order[place < self.k], place[place < self.k]
        columns = position[kept], group[kept], score[kept], place + 1
        return list(zip(*(column.tolist() for column in columns), strict=True))


some_streams = st.builds(
    Stream,
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 9),
    k=st.integers(1, 12) | st.integers(30, 1000),
    count=st.integers(0, 40) | st.integers(200, 900),
    tied=st.sampled_from([0.0, 0.3, 1.0]),
    level=st.sampled_from(sorted(LEVELS)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(some_streams, st.randoms(use_true_random=False), st.integers(1, 8), st.booleans())
def test_any_batches_shards_and_merge_tree_give_the_result_of_a_full_sort(
    stream, chance, tables, in_order
):
    parts = [SmallTopK(stream.groups, stream.k) for _ in range(tables)]
    places = np.arange(stream.count)
    if not in_order:
        chance.shuffle(places)
    while len(places):
        size = chance.choice([1, 20, 90, 400])
        part = chance.choice(parts)
        part.add(*stream.columns(places[:size]))
        if chance.random() < 0.1:  # a save in between changes nothing
            part.state_dict()
        places = places[size:]
    while len(parts) > 1:  # any tree
        other = parts.pop(chance.randrange(len(parts)))
        chance.choice(parts).merge(other)
    assert as_rows(parts[0]) == stream.sorted_rows()


@pytest.mark.parametrize("level", ["softmax", "saturated", "rising"])
def test_a_long_stream_gives_the_result_of_a_full_sort(level):
    stream = Stream(seed=8, groups=12, k=300, count=400_000, tied=0.3, level=level)
    table = TopK(stream.groups, stream.k)
    for part in np.array_split(np.arange(stream.count), 90):
        table.add(*stream.columns(part))
    assert table.capacity < stream.count / 5  # candidates were dropped on the way
    assert as_rows(table) == stream.sorted_rows()


def test_merge_is_commutative_and_associative():
    chance = random.Random(5)
    stream = [(n % 3, chance.choice([0.1, 0.5, 0.9]), n, n % 3, n / 128) for n in range(90)]
    a, b, c = stream[:20], stream[20:70], stream[70:]

    def merged(*parts):
        total = kept(parts[0], 3, 8)
        for part in parts[1:]:
            total.merge(kept(part, 3, 8))
        return as_rows(total)

    right = kept(b, 3, 8)
    right.merge(kept(c, 3, 8))
    grouped = kept(a, 3, 8)
    grouped.merge(right)
    expected = sorted_rows_of(stream, 3, 8)
    assert merged(a, b, c) == merged(c, a, b) == merged(b, c, a) == as_rows(grouped) == expected


def test_equal_priorities_go_to_the_lower_position_whatever_came_first():
    stream = [(0, 0.5, position, 0, 0.5) for position in (9, 2, 7, 2**32 - 1, 0)]
    assert [row[0] for row in as_rows(kept(stream, 1, 3))] == [0, 2, 7]


def test_memory_does_not_grow_with_the_stream():
    table = SmallTopK(4, 5)
    for position in torch.arange(3000).split(100):  # each better than those before it
        table.add(position % 4, position.float(), position, position % 4, torch.rand(100))
        assert len(table.buffer[0]) == table.capacity == SmallTopK.BUFFER
    table.rows()
    assert {column.shape for column in table.table.values()} == {(4, 5)}


def test_merging_works_on_blocks_of_bounded_size(monkeypatch):
    class Block(TopK):
        BUFFER, BLOCK = 1000, 600

    cat, sizes = torch.cat, []

    def recorded(*args):
        sizes.append(cat(*args).numel())
        return cat(*args)

    monkeypatch.setattr(torch, "cat", recorded)
    table, other = Block(50, 20), Block(50, 20)
    for one, start in ((table, 0), (other, 6000)):
        for position in torch.arange(start, start + 6000).split(500):
            one.add(position % 50, position.float(), position, position % 50, torch.rand(500))
    table.merge(other)
    assert [row[0] for row in as_rows(table)][:2] == [11950, 11900]
    assert len(sizes) > 50 and max(sizes) <= Block.BLOCK


def test_a_k_above_what_the_stream_holds_takes_no_memory():
    table = SmallTopK(3, 10**12)
    position = torch.arange(300)
    group = position // 100  # as in a pool in folders: one class after the other
    table.add(group, position / 300, position, group, position / 300)
    assert [row[0] for row in as_rows(table)] == [
        n + 99 - m for n in (0, 100, 200) for m in range(100)
    ]
    assert table.table["key"].shape == (3, 100)


def test_candidates_may_be_overwritten_once_added():
    table = TopK(1, 2)
    score, position, group = torch.tensor([0.5, 0.25]), torch.arange(2), torch.zeros(2).long()
    table.add(group, score, position, group, score)
    score[:], position[:] = 0.75, 9
    assert as_rows(table) == [(0, 0, 0.5, 1), (1, 0, 0.25, 2)]


@pytest.mark.parametrize("position", [-1, 2**32, 2**40])
def test_a_position_that_a_key_cannot_hold_is_refused_by_name(position):
    table = kept([(0, 0.5, 7, 0, 0.5), (0, 0.5, position, 0, 0.5)], 1, 3)
    with pytest.raises(ValueError, match=f"position {position} .*4294967295"):
        table.rows()


@pytest.mark.parametrize("sign", [1, -1])  # x86 makes the negative NaN
@pytest.mark.parametrize("full", [False, True])  # a full table drops what is below its bound
def test_a_priority_that_is_not_a_number_is_refused(sign, full):
    table = kept([(0, 0.5, 7, 0, 0.5)], 1, 1)
    if full:
        table.state_dict()
    nan = torch.copysign(torch.tensor([float("nan")]), torch.tensor(float(sign)))
    zero = torch.tensor([0])
    table.add(zero, nan, zero + 8, zero, nan)
    with pytest.raises(FloatingPointError, match=r"1 scores .* NaN"):
        table.rows()


@pytest.mark.parametrize("k", [0, -4])
def test_k_below_one_is_refused_by_name(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        TopK(5, k)


def test_cut_keeps_the_best_of_each_group():
    stream = [(n % 3, (n * 37 % 90) / 8, n, n % 3, n / 128) for n in range(90)]
    table = kept(stream, 3, 20)
    table.cut(4)
    assert as_rows(table) == sorted_rows_of(stream, 3, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_what_the_cpu_keeps():
    stream = Stream(seed=5, groups=7, k=50, count=20_000, tied=0.3, level="any")
    table = SmallTopK(7, 50, "cuda")
    for part in np.array_split(np.arange(20_000), 40):
        table.add(*(column.cuda() for column in stream.columns(part)))
    assert as_rows(table) == stream.sorted_rows()


def test_an_empty_table_and_an_empty_batch_give_no_rows():
    nothing = torch.empty(0)
    table = TopK(3, 2)
    table.add(nothing.long(), nothing, nothing.long(), nothing.long(), nothing)
    assert as_rows(table) == as_rows(TopK(3, 2)) == []


def test_a_saved_state_goes_on_to_the_same_rows():
    stream = [(n % 2, -n / 8, n, n % 2, n / 64) for n in range(40)]
    first = kept(stream[:15], 2, 6)
    second = TopK(2, 6)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second.add(*columns(stream[15:]))
    assert as_rows(second) == sorted_rows_of(stream, 2, 6)


# --- benchmarks/ranking.py ----------------------------------------------------------------------


def test_simulated_images_are_like_scored_ones():
    batches = list(Simulation(classes=20, p=4, device="cpu").batches(40_000, 512))
    label, score, position, *_ = (torch.cat(part) for part in zip(*batches, strict=True))
    assert position.tolist() == [n for n in range(40_000) for _ in range(4)]
    scores, labels = score.view(-1, 4), label.view(-1, 4).sort(1).values
    assert (scores[:, 1:] <= scores[:, :-1]).all()  # falling
    assert (labels[:, 1:] > labels[:, :-1]).all()  # of different classes
    assert score.min() > 0 and (scores.sum(1) <= 1).all()
    assert len(scores[:, 0].unique()) > 0.98 * len(scores)  # the block does not just come again
    count = label.bincount(minlength=20)
    assert count.max() > 3 * count.min()  # some classes are popular
