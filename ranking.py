"""The paper's idea as tensor code: P best classes of an image, K best images of a class.

Yalniz et al. 2019, step 2: an image enters the ranking of its P best classes only, since few
classes are relevant to it; every class keeps its K best images.  The paper leaves ties open; here
the order is total: a higher float32 score first, then the lower position in the pool.  A pool
streams through a table of K places a class, so memory does not grow with the pool, and since the K
best of a union are the K best of the parts' K best, tables of parts of a pool can be merged in any
order (`Ranking.merge`).
"""

from itertools import pairwise

import torch

STRATEGIES = ("ranked", "unbalanced", "random-in-class", "random", "tags")
EMPTY = torch.iinfo(torch.int64).min  # a place no candidate has taken: below every key
MAX_POSITION = 2**32 - 1  # positions take the low 32 bits of a key: pools of up to 4.29e9 images
# group, priority, position, label, score of a waiting candidate
_COLUMNS = (torch.int32, torch.float32, torch.int64, torch.int32, torch.float32)


def top_classes(logits, p):
    """The P best classes of each image.

    logits: (B,C) float -> score (B,P) float32, the softmax scores, falling; label (B,P) int64.
    Equal scores: lower class first (torch.topk promises no order among equals, so it sees keys).
    Raises ValueError unless 1 <= p <= C.
    """
    classes = logits.shape[1]
    if not 1 <= p <= classes:
        raise ValueError(f"p is {p}; it must be from 1 to the number of classes, {classes}")
    score = logits.float().softmax(1)
    label = sort_key(score, torch.arange(classes, device=score.device)).topk(p, dim=1).indices
    return score.gather(1, label), label


def sort_key(priority, position):
    """One int64 that orders candidates: higher `priority` (float32) first, then lower `position`.

    The float's bits, read as an integer, rise with the float once the negative half is flipped.
    No two candidates of one class share a position, so no two keys are equal and every sort or
    topk, stable or not, gives the same order.
    """
    bits = (priority + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: equal numbers, equal bits
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return rising.to(torch.int64).mul_(2**32).add_(MAX_POSITION - position)


def _unpack(key):
    """priority float32, position int64: what `sort_key` made of them.  EMPTY comes out as NaN."""
    rising = (key >> 32).to(torch.int32)
    return (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(torch.float32), ~key & MAX_POSITION


def random_priority(position, seed):
    """Uniform float32 in [0,1), a function of (seed, position) alone: a shuffle that any sharding
    of the pool repeats.  The mixing is splitmix64's (Steele et al. 2014), in wrapping int64.
    """

    def shift(x, bits):  # logical, where >> on int64 is arithmetic
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    x = (position + 1) * -7046029254386353131 + torch.tensor(seed) * -4658895280553007687
    x = (x ^ shift(x, 30)) * -4658895280553007687
    x = (x ^ shift(x, 27)) * -7723592293110705685
    return shift(x ^ shift(x, 31), 40).float() / 2**24  # 24 bits: all that float32 can tell apart


def candidates(strategy, logits, top, position, seed=0, tags=None):
    """What a chunk of the pool enters into the ranking of `strategy`.

    logits: (B,C); top: score, label (B,P), of `top_classes`; position: (B,) int64 in the pool;
    tags: (B,) int64, the class that an image's folder is named after, -1 for none
    -> group, priority, position, label, score: (M,) each, for `Ranking.add`

    ranked           the paper: each image stands for its P best classes, by its scores
    unbalanced       the best class of each image, by its score, in one group for all classes
                     (for the paper's Zipf-sized classes; table 5: unbalanced-ranked)
    random-in-class  the best class of each image, in random order
    random           the same in one group for all classes
    tags             the folder's class, in random order (paper, table 5: balanced with tags)
    """
    score, label = top
    if strategy == "ranked":
        position = position.repeat_interleave(score.shape[1])  # (B*P,) image-major
        group, score = label.flatten(), score.flatten()
        return group, score, position, group, score
    shuffled = random_priority(position, seed)
    if strategy == "tags":
        tagged = tags >= 0
        label, position = tags[tagged], position[tagged]
        score = logits.float().softmax(1)[tagged].gather(1, label[:, None])[:, 0]
        return label, shuffled[tagged], position, label, score
    label, score = label[:, 0], score[:, 0]
    group = label if strategy == "random-in-class" else torch.zeros_like(label)
    return group, score if strategy == "unbalanced" else shuffled, position, label, score


class Ranking:
    """The K best candidates of each of G groups (the classes) in a stream, in G x K memory.

    A candidate is (group, priority, position) and carries its label and its score.  Candidates wait
    in a buffer.  When it is full, those below the K-th best of their group are dropped, late in a
    stream nearly all, and only if more than half of them survive does the table take them in.  So
    most candidates cost a copy and a comparison, and a GPU is waited for once a buffer, not once a
    chunk.  The order is total: when something is dropped or taken in cannot change the result.

    Memory: 16 bytes a place of the table, 24 a place of the buffer, which has a quarter of the
    table's places but at least BUFFER, and what taking in needs for a block.
    """

    BUFFER = 2**16  # places; few enough for a processor's cache
    BLOCK = 2**20  # places of the table, and of what enters it, taken in at a time: about 50 MB

    def __init__(self, groups, k, device="cpu"):
        """Raises ValueError for a k below 1."""
        if k < 1:
            raise ValueError(f"k is {k}; it must be 1 or more")
        self.k = k
        self.key = torch.empty((groups, 0), dtype=torch.int64, device=device)  # (G, <= K), unsorted
        self.label = torch.empty((groups, 0), dtype=torch.int32, device=device)
        self.score = torch.empty((groups, 0), dtype=torch.float32, device=device)
        self._settle()

    def _columns(self):
        return {"key": self.key, "label": self.label, "score": self.score}

    def _settle(self):
        """What follows from a table that has changed; nothing waits any more."""
        groups, width = self.key.shape
        full = width == self.k
        self.bound = self.key.amin(1) if full else self.key.new_full((groups,), EMPTY)  # (G,)
        self.bound_priority = _unpack(self.bound)[0]  # NaN where the group has an empty place
        self.room = max(self.BUFFER, groups * width // 4)
        self.buffer, self.waiting = None, 0

    def add(self, group, priority, position, label, score):
        """Let candidates in: five tensors (M,), copied.  A group may meet a position once only.

        What is wrong with a candidate shows now or when the table is next asked for: ValueError
        for a position outside 0 to 2**32 - 1, FloatingPointError for a priority that is NaN.
        """
        columns, first = (group, priority, position, label, score), 0
        while first < len(group):
            if self.waiting == self.room:
                self._prune()
                if self.waiting > self.room // 2:
                    self._take_in()
            if self.buffer is None:
                device = self.key.device
                self.buffer = [torch.empty(self.room, dtype=d, device=device) for d in _COLUMNS]
            size = min(self.room - self.waiting, len(group) - first)
            for waiting, column in zip(self.buffer, columns, strict=True):
                waiting[self.waiting : self.waiting + size] = column[first : first + size]
            self.waiting += size
            first += size

    def _prune(self):
        """Drop the waiting candidates that are not among the K best of their group."""
        columns = [column[: self.waiting] for column in self.buffer]
        lowest, highest = columns[2].aminmax()
        # Comparing floats is cheap and drops most.  Not `>=`, as nothing is below a bound of NaN.
        alive = ~(columns[1] < self.bound_priority.index_select(0, columns[0]))
        alive = alive.nonzero()[:, 0]
        columns = [column.index_select(0, alive) for column in columns]
        group, priority, position = columns[:3]
        lowest, highest, nans = torch.stack([lowest, highest, priority.isnan().sum()]).tolist()
        if lowest < 0 or highest > MAX_POSITION:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"position {wrong} is not from 0 to {MAX_POSITION}; split the pool")
        if nans:
            raise FloatingPointError(f"{nans} scores of the pool are NaN; check the teacher")
        # Among those equal to the bound the position decides, which the keys know.
        alive = sort_key(priority, position) > self.bound.index_select(0, group)
        alive = alive.nonzero()[:, 0]
        self.waiting = len(alive)
        for waiting, column in zip(self.buffer, columns, strict=True):
            waiting[: self.waiting] = column.index_select(0, alive)

    def _take_in(self):
        """Let the table take in what waits, a block of groups at a time to keep the peak low."""
        columns = [column[: self.waiting] for column in self.buffer]
        order = columns[0].argsort()
        group, priority, position, label, score = (c.index_select(0, order) for c in columns)
        self.buffer = columns = order = None  # a large table needs the memory below
        entering = {"key": sort_key(priority, position), "label": label, "score": score}
        count = group.bincount(minlength=len(self.key))  # (G,)
        end = count.cumsum(0)
        slot = torch.arange(len(group), device=group.device)
        slot -= (end - count).index_select(0, group)  # 0, 1, ... within a group
        start = [0, *end.tolist()]

        places, most = self.key.shape[1], max(b - a for a, b in pairwise(start))
        width = min(self.k, int(((self.key != EMPTY).sum(1) + count).max()))
        old = self._columns()
        if width > places:  # else in place
            for name, column in old.items():
                setattr(self, name, column.new_empty((len(column), width)))
        step = max(1, self.BLOCK // (places + most))
        for first in range(0, len(count), step):
            last = min(first + step, len(count))
            mine = slice(start[first], start[last])
            row = group[mine].long() - first
            for name, column in entering.items():
                empty = EMPTY if name == "key" else 0
                new = column.new_full((last - first, most), empty)
                new[row, slot[mine]] = column[mine]
                both = torch.cat([old[name][first:last], new], 1)
                if name == "key":
                    both, best = both.topk(width, dim=1, sorted=False)
                else:
                    both = both.gather(1, best)
                getattr(self, name)[first:last] = both
        self._settle()

    def _flush(self):
        if self.waiting:
            self._prune()
        if self.waiting:
            self._take_in()

    def merge(self, other):
        """Take over another table's candidates; associative and commutative."""
        other._flush()
        groups, width = other.key.shape
        step = max(1, self.BLOCK // max(1, width))
        for first in range(0, groups, step):
            block = slice(first, first + step)
            taken = other.key[block] != EMPTY
            key, label, score = (column[block][taken] for column in other._columns().values())
            self.add(taken.nonzero()[:, 0] + first, *_unpack(key), label, score)

    def cut(self, most):
        """Keep the `most` best of each group."""
        self._flush()
        best = self.key.topk(min(most, self.key.shape[1]), dim=1).indices
        for name, column in self._columns().items():
            setattr(self, name, column.gather(1, best))
        self._settle()

    def rows(self):
        """position, label, score, rank: (M,) each on the CPU, by label, then rank 1, 2, ...

        A label's ranks follow the keys, so a table with one group for all labels (the unbalanced
        selections) comes out ranked within each label too.
        """
        self._flush()
        taken = self.key != EMPTY
        key, label, score = self.key[taken].cpu(), self.label[taken].cpu(), self.score[taken].cpu()
        by_key = key.argsort(descending=True)
        order = by_key[label[by_key].argsort(stable=True)]
        key, label, score = key[order], label[order].long(), score[order]
        count = label.bincount()
        rank = torch.arange(len(label)) - (count.cumsum(0) - count)[label] + 1
        return _unpack(key)[1], label, score, rank

    def state_dict(self):
        """The table itself, which later candidates change."""
        self._flush()
        return self._columns()

    def load_state_dict(self, state):
        for name, column in state.items():
            setattr(self, name, column.to(self.key.device, copy=True))
        self._settle()
