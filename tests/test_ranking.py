"""The selection rule against a slow reference, one loop per noun."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ranking import Simulation
from ranking import EMPTY, Ranking, random_priority, sort_key, top_classes


def reference_top_classes(scores, p):
    """Every image's p best classes: (score, class), higher score first, then lower class."""
    table = []
    for row in scores.tolist():
        best = sorted((-score, label) for label, score in enumerate(row))[:p]
        table.append([(-score, label) for score, label in best])
    return table


def reference_ranking(candidates, groups, k):
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


class SmallRanking(Ranking):
    """One that drops and takes in all the time, a few groups at a time."""

    BUFFER = 37
    BLOCK = 64


def rank(candidates, groups, k):
    ranking = Ranking(groups, k)
    if candidates:
        ranking.add(*columns(candidates))
    return ranking


def as_rows(ranking):
    return list(zip(*(column.tolist() for column in ranking.rows()), strict=True))


def select(logits, p, k, batches):
    """The whole selection as step 2 does it, in the given batches of positions."""
    ranking = Ranking(logits.shape[1], k)
    for position in batches:
        score, label = top_classes(logits[position], p)
        group = label.flatten()
        ranking.add(group, score.flatten(), position.repeat_interleave(p), group, score.flatten())
    return as_rows(ranking)


def made_up_logits(kind, images=60, classes=6):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(images, classes, generator=generator)
    if kind == "tied":  # three images in ten are copies of earlier ones
        for image in range(10, images):
            if torch.rand((), generator=generator) < 0.3:
                logits[image] = logits[image % 10]
    if kind == "coarse":  # equal scores inside an image as well
        logits = logits.round()
    if kind == "short":  # one class is the best of no image, one of two images only
        logits[:, 2] = -30.0
        logits[:, 4] -= 20.0
        logits[[7, 31], 4] = 30.0
    return logits


# --- the whole selection ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "tied", "coarse", "short"])
@pytest.mark.parametrize("p, k", [(1, 1), (1, 5), (3, 5), (5, 7), (6, 10), (2, 10_000)])
def test_selection_matches_the_reference(kind, p, k):
    logits = made_up_logits(kind)
    candidates = []
    for position, best in enumerate(reference_top_classes(logits.softmax(1), p)):
        candidates += [(label, score, position, label, score) for score, label in best]
    expected = reference_ranking(candidates, logits.shape[1], k)
    assert select(logits, p, k, torch.arange(len(logits)).split(16)) == expected


@pytest.mark.parametrize("kind", ["random", "tied", "short"])
def test_selection_is_the_same_for_any_batches_in_any_order(kind):
    logits = made_up_logits(kind)
    everything = torch.arange(len(logits))
    whole = select(logits, 2, 9, [everything])
    for size in (1, 7, 59):
        assert select(logits, 2, 9, everything.split(size)) == whole
        assert select(logits, 2, 9, everything.split(size)[::-1]) == whole
    assert select(logits, 2, 9, everything.flip(0).split(11)) == whole


def test_a_class_with_fewer_candidates_than_k_has_fewer_rows_and_one_with_none_has_none():
    rows = select(made_up_logits("short"), 1, 10, [torch.arange(60)])
    labels = [label for _, label, _, _ in rows]
    assert labels.count(2) == 0
    assert labels.count(4) == 2
    assert max(labels.count(label) for label in range(6)) == 10


# --- top_classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "coarse"])
@pytest.mark.parametrize("p", [1, 2, 5, 6])
def test_top_classes_match_the_reference(kind, p):
    logits = made_up_logits(kind)
    score, label = top_classes(logits, p)
    expected = reference_top_classes(logits.softmax(1), p)
    assert score.dtype == torch.float32
    assert score.shape == label.shape == (len(logits), p)
    assert [
        list(zip(*pair, strict=True)) for pair in zip(score.tolist(), label.tolist(), strict=True)
    ] == expected


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


@pytest.mark.parametrize("k", [0, -4])
def test_k_below_one_is_refused_by_name(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        Ranking(5, k)


# --- sort_key -----------------------------------------------------------------------------------

priorities = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, float("inf"), float("-inf")]
)
positions = st.integers(0, 2**32 - 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(priorities, positions, priorities, positions)
def test_keys_order_as_priority_then_position(one, first, other, second):
    keys = sort_key(torch.tensor([one, other], dtype=torch.float32), torch.tensor([first, second]))
    expected = (one, -first) > (other, -second)
    assert bool(keys[0] > keys[1]) == expected
    assert bool(keys[0] == keys[1]) == ((one, first) == (other, second))
    assert (keys > EMPTY).all()


def test_minus_zero_and_zero_are_equal_priorities():
    zeros = torch.tensor([0.0, -0.0, -0.0, 0.0])
    keys = sort_key(zeros, torch.tensor([3, 2, 1, 0]))
    assert keys.argsort(descending=True).tolist() == [3, 2, 1, 0]


# --- Ranking ------------------------------------------------------------------------------------


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
    expected = reference_ranking(candidates, groups, k)
    assert as_rows(rank(candidates, groups, k)) == expected

    shuffled = chance.sample(candidates, len(candidates))
    parts = [Ranking(groups, k) for _ in range(3)]
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
    assert as_rows(rank(candidates, 1, k)) == reference_ranking(candidates, 1, k)


LEVELS = {
    "any": lambda chance, rows: chance.normal(size=rows),
    "softmax": lambda chance, rows: chance.random(rows) ** 4,
    "saturated": lambda chance, rows: chance.choice([1.0, 1.0 - 2**-24, 0.5], rows),
    "zeros": lambda chance, rows: chance.choice([0.0, -0.0, 1e-45, -1e-45], rows),
    "infinite": lambda chance, rows: chance.choice([np.inf, -np.inf, 0.0, 3e38, -3e38], rows),
    "rising": lambda chance, rows: np.arange(rows) / rows,
    "falling": lambda chance, rows: -np.arange(rows) / rows,
}


@dataclass(frozen=True)
class Stream:
    """Scored candidates, and what a full sort makes of them."""

    seed: int
    groups: int  # the highest two stay empty
    k: int
    rows: int
    tied: float  # share of the candidates that have another one's score
    level: str

    @cached_property
    def table(self):
        """group, score, position: (rows,) each, no position twice."""
        chance = np.random.default_rng(self.seed)
        popular = chance.random(max(1, self.groups - 2)) ** 3 + 1e-3  # some classes are rare
        group = chance.choice(len(popular), self.rows, p=popular / popular.sum())
        score = LEVELS[self.level](chance, self.rows).astype(np.float32)
        copies = chance.random(self.rows) < self.tied
        score[copies] = score[chance.integers(0, max(1, self.rows // 5), copies.sum())]
        position = chance.permutation(self.rows) * 3 + chance.choice([0, 2**32 - 3 * self.rows - 1])
        return group, score, position

    def columns(self, part):
        """The candidates at the places `part`, for Ranking.add."""
        group, score, position = (torch.from_numpy(column[part]) for column in self.table)
        return group, score, position, group, score

    def sorted_rows(self):
        """All sorted at once, then the first k of every group."""
        group, score, position = self.table
        order = np.lexsort((position, -score, group))
        sorted_group = group[order]
        place = np.arange(self.rows) - np.searchsorted(sorted_group, sorted_group)
        kept, place = order[place < self.k], place[place < self.k]
        columns = position[kept], group[kept], score[kept], place + 1
        return list(zip(*(column.tolist() for column in columns), strict=True))


some_streams = st.builds(
    Stream,
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 9),
    k=st.integers(1, 12) | st.integers(30, 1000),
    rows=st.integers(0, 40) | st.integers(200, 900),
    tied=st.sampled_from([0.0, 0.3, 1.0]),
    level=st.sampled_from(sorted(LEVELS)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(some_streams, st.randoms(use_true_random=False), st.integers(1, 8), st.booleans())
def test_any_batches_shards_and_merge_tree_give_the_result_of_a_full_sort(
    stream, chance, tables, in_order
):
    parts = [SmallRanking(stream.groups, stream.k) for _ in range(tables)]
    places = np.arange(stream.rows)
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
    stream = Stream(seed=8, groups=12, k=300, rows=400_000, tied=0.3, level=level)
    ranking = Ranking(stream.groups, stream.k)
    for part in np.array_split(np.arange(stream.rows), 90):
        ranking.add(*stream.columns(part))
    assert ranking.room < stream.rows / 5  # candidates were dropped on the way
    assert as_rows(ranking) == stream.sorted_rows()


def test_merge_is_commutative_and_associative():
    chance = random.Random(5)
    stream = [(n % 3, chance.choice([0.1, 0.5, 0.9]), n, n % 3, n / 128) for n in range(90)]
    a, b, c = stream[:20], stream[20:70], stream[70:]

    def merged(*parts):
        total = rank(parts[0], 3, 8)
        for part in parts[1:]:
            total.merge(rank(part, 3, 8))
        return as_rows(total)

    right = rank(b, 3, 8)
    right.merge(rank(c, 3, 8))
    grouped = rank(a, 3, 8)
    grouped.merge(right)
    expected = reference_ranking(stream, 3, 8)
    assert merged(a, b, c) == merged(c, a, b) == merged(b, c, a) == as_rows(grouped) == expected


def test_equal_priorities_go_to_the_lower_position_whatever_came_first():
    stream = [(0, 0.5, position, 0, 0.5) for position in (9, 2, 7, 2**32 - 1, 0)]
    assert [row[0] for row in as_rows(rank(stream, 1, 3))] == [0, 2, 7]


def test_memory_does_not_grow_with_the_pool():
    ranking = SmallRanking(4, 5)
    for position in torch.arange(3000).split(100):  # each better than those before it
        ranking.add(position % 4, position.float(), position, position % 4, torch.rand(100))
        assert len(ranking.buffer[0]) == ranking.room == SmallRanking.BUFFER
    ranking.rows()
    assert ranking.key.shape == ranking.label.shape == ranking.score.shape == (4, 5)


def test_a_k_above_what_the_pool_holds_takes_no_memory():
    ranking = SmallRanking(3, 10**12)
    position = torch.arange(300)
    group = position // 100  # as in a pool in folders: one class after the other
    ranking.add(group, position / 300, position, group, position / 300)
    assert [row[0] for row in as_rows(ranking)] == [
        n + 99 - m for n in (0, 100, 200) for m in range(100)
    ]
    assert ranking.key.shape == (3, 100)


def test_candidates_may_be_overwritten_once_added():
    ranking = Ranking(1, 2)
    score, position, group = torch.tensor([0.5, 0.25]), torch.arange(2), torch.zeros(2).long()
    ranking.add(group, score, position, group, score)
    score[:], position[:] = 0.75, 9
    assert as_rows(ranking) == [(0, 0, 0.5, 1), (1, 0, 0.25, 2)]


@pytest.mark.parametrize("position", [-1, 2**32, 2**40])
def test_a_position_that_a_key_cannot_hold_is_refused_by_name(position):
    ranking = rank([(0, 0.5, 7, 0, 0.5), (0, 0.5, position, 0, 0.5)], 1, 3)
    with pytest.raises(ValueError, match=f"position {position} .*4294967295"):
        ranking.rows()


def test_a_score_that_is_not_a_number_is_refused():
    ranking = rank([(0, 0.5, 7, 0, 0.5), (0, float("nan"), 8, 0, 0.5)], 1, 1)
    with pytest.raises(FloatingPointError, match=r"1 scores .* NaN"):
        ranking.rows()


def test_cut_keeps_the_best_of_each_group():
    stream = [(n % 3, (n * 37 % 90) / 8, n, n % 3, n / 128) for n in range(90)]
    ranking = rank(stream, 3, 20)
    ranking.cut(4)
    assert as_rows(ranking) == reference_ranking(stream, 3, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_ranks_like_the_cpu():
    stream = Stream(seed=5, groups=7, k=50, rows=20_000, tied=0.3, level="any")
    ranking = SmallRanking(7, 50, "cuda")
    for part in np.array_split(np.arange(20_000), 40):
        ranking.add(*(column.cuda() for column in stream.columns(part)))
    assert as_rows(ranking) == stream.sorted_rows()


def test_an_empty_ranking_and_an_empty_batch_give_no_rows():
    nothing = torch.empty(0)
    ranking = Ranking(3, 2)
    ranking.add(nothing.long(), nothing, nothing.long(), nothing.long(), nothing)
    assert as_rows(ranking) == as_rows(Ranking(3, 2)) == []


def test_a_saved_state_goes_on_to_the_same_rows():
    stream = [(n % 2, -n / 8, n, n % 2, n / 64) for n in range(40)]
    first = rank(stream[:15], 2, 6)
    second = Ranking(2, 6)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second.add(*columns(stream[15:]))
    assert as_rows(second) == reference_ranking(stream, 2, 6)


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


# --- benchmarks/ranking.py ----------------------------------------------------------------------


def test_simulated_rows_are_like_scored_ones():
    batches = list(Simulation(classes=20, p=4, device="cpu").batches(40_000, 512))
    label, score, position, *_ = (torch.cat(part) for part in zip(*batches, strict=True))
    assert position.tolist() == [n for n in range(40_000) for _ in range(4)]
    rows, labels = score.view(-1, 4), label.view(-1, 4).sort(1).values
    assert (rows[:, 1:] <= rows[:, :-1]).all()  # falling
    assert (labels[:, 1:] > labels[:, :-1]).all()  # of different classes
    assert score.min() > 0 and (rows.sum(1) <= 1).all()
    assert len(rows[:, 0].unique()) > 0.98 * len(rows)  # the block does not just come again
    count = label.bincount(minlength=20)
    assert count.max() > 3 * count.min()  # some classes are popular


@pytest.mark.slow
def test_the_benchmark_ranks_as_the_slow_ways_do_and_writes_its_figures(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "ranking.py"
    flags = ("--quick", "--batch", "512", "--json", tmp_path / "figures.json")
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"device", "cpu", "threads", "python", "torch", "numpy"} < report.keys()
    assert [entry["rows"] for entry in report["streams"]] == [20_000, 40_000]
    for entry in report["streams"]:
        assert entry["selected"] == entry["classes"] * entry["k"]
        assert entry["table_bytes"] == 16 * entry["selected"]
        assert entry["mib_before"] <= entry["mib_peak"] <= entry["mib_peak_with_sorted_rows"]
        assert entry["rows_per_second"] > 0
    (best,), (merge,) = report["top_classes"], report["merges"]
    assert best["rows_per_second"] > 0 and best["full_sort_rows_per_second"] > 0
    assert merge["seconds_a_table"] > 0
    assert report["references"]["same_selection"] is True
    assert report["references"]["rows_per_second"].keys() == {"ranking", "topk", "heaps", "sort"}
