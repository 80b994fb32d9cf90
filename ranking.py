"""The paper's idea as tensor code: P best classes of an image, K best images of a class.

Yalniz et al. 2019, step 2: an image enters the ranking of its P best classes only, since few
classes are relevant to it; every class keeps its K best images.  The paper leaves ties open; here
the order is total: a higher float32 score first, then the lower position in the pool.  A pool
streams through a table of K places a class, so memory does not grow with the pool, and since the K
best of a union are the K best of the parts' K best, tables of parts of a pool can be merged in any
order (`Ranking.merge`).
"""

import torch

STRATEGIES = ("ranked", "unbalanced", "random-in-class", "random", "tags")
EMPTY = torch.iinfo(torch.int64).min  # a place no candidate has taken: below every key
SCORE_BINS = 1000  # of the histogram of the pool's best scores, from 0 to 1
_POSITIONS = 2**32 - 1  # positions take the low 32 bits of a key: pools of up to 4.29e9 images


def top_classes(logits, p):
    """The P best classes of each image.

    logits: (B,C) float -> score (B,P) float32, the softmax scores, falling; label (B,P) int64.
    Equal scores: lower class first (torch.topk promises no order, so a stable sort it is).
    Raises ValueError unless 1 <= p <= C.
    """
    classes = logits.shape[1]
    if not 1 <= p <= classes:
        raise ValueError(f"p is {p}; it must be from 1 to the number of classes, {classes}")
    score, label = logits.float().softmax(1).sort(dim=1, descending=True, stable=True)
    return score[:, :p].contiguous(), label[:, :p].contiguous()


def sort_key(priority, position):
    """One int64 that orders candidates: higher `priority` (float32) first, then lower `position`.

    The float's bits, read as an integer, rise with the float once the negative half is flipped.
    No two candidates of one class share a position, so no two keys are equal and every sort or
    topk, stable or not, gives the same order.
    """
    bits = (priority + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: equal numbers, equal bits
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return rising * 2**32 + (_POSITIONS - position)


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

    A candidate is (group, priority, position) and carries its label and its score.
    """

    def __init__(self, groups, k, device="cpu"):
        """Raises ValueError for a k below 1."""
        if k < 1:
            raise ValueError(f"k is {k}; it must be 1 or more")
        self.k = k
        self.key = torch.empty((groups, 0), dtype=torch.int64, device=device)  # (G, <= K) falling
        self.label = torch.empty((groups, 0), dtype=torch.int32, device=device)
        self.score = torch.empty((groups, 0), dtype=torch.float32, device=device)

    def add(self, group, priority, position, label, score):
        """Let candidates in: five tensors (M,).  A group may meet a position once only."""
        key = sort_key(priority, position)
        by_key = key.argsort(descending=True)
        order = by_key[group[by_key].argsort(stable=True)]  # grouped, best first
        group, key, label, score = group[order], key[order], label[order], score[order]

        count = group.bincount(minlength=len(self.key))  # (G,)
        rank = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group]
        kept = rank < self.k
        group, rank = group[kept], rank[kept]
        width = min(int(count.max()), self.k) if len(count) else 0

        part = Ranking(len(self.key), self.k, self.key.device)
        for name, column in (("key", key), ("label", label), ("score", score)):
            empty = EMPTY if name == "key" else 0
            table = column.new_full((len(self.key), width), empty)  # (G, width)
            table[group, rank] = column[kept]
            setattr(part, name, table.to(getattr(self, name).dtype))
        self.merge(part)

    def merge(self, other):
        """Take over another table's candidates; associative and commutative."""
        key = torch.cat([self.key, other.key], 1)
        self.key, best = key.topk(min(self.k, key.shape[1]), dim=1)  # unique keys: no ties to break
        self.label = torch.cat([self.label, other.label], 1).gather(1, best)
        self.score = torch.cat([self.score, other.score], 1).gather(1, best)

    def cut(self, most):
        """Keep the `most` best of each group."""
        for name in ("key", "label", "score"):
            setattr(self, name, getattr(self, name)[:, :most])

    def rows(self):
        """position, label, score, rank: (M,) each on the CPU, by label, then rank 1, 2, ...

        A label's ranks follow the keys, so a table with one group for all labels (the unbalanced
        selections) comes out ranked within each label too.
        """
        taken = self.key != EMPTY
        key, label, score = self.key[taken].cpu(), self.label[taken].cpu(), self.score[taken].cpu()
        by_key = key.argsort(descending=True)
        order = by_key[label[by_key].argsort(stable=True)]
        key, label, score = key[order], label[order].long(), score[order]
        count = label.bincount()
        rank = torch.arange(len(label)) - (count.cumsum(0) - count)[label] + 1
        position = _POSITIONS - (key & _POSITIONS)
        return position, label, score, rank

    def state_dict(self):
        return {"key": self.key, "label": self.label, "score": self.score}

    def load_state_dict(self, state):
        for name, column in state.items():
            setattr(self, name, column.to(self.key.device))


class Selector:
    """Step 2 but for the teacher: logits of a pool, chunk by chunk -> the selection.

    Its state_dict is all that a walk over a pool needs to go on after a stop.  Several selectors,
    each on its own range of positions, are merged into the selection of the whole pool.
    """

    def __init__(self, classes, strategy, p, k, seed=0, min_score=0.0, device="cpu", start=0):
        """`min_score`: no candidate has less; `start`: the first position; see `candidates`."""
        self.strategy, self.p, self.seed, self.min_score = strategy, p, seed, min_score
        self.position = start  # the first entry not yet seen
        self.scored = 0
        self.histogram = torch.zeros(SCORE_BINS, dtype=torch.int64, device=device)  # best scores
        # The paper's ranking is kept whatever the strategy: it tells how many rows to select.
        self.tables = {"ranked": Ranking(classes, k, device)}
        self.whole = strategy in ("unbalanced", "random")  # one ranking for all classes
        if strategy != "ranked":
            groups, places = (1, classes * k) if self.whole else (classes, k)
            self.tables[strategy] = Ranking(groups, places, device)

    def add(self, first, logits, usable=None, tags=None):
        """Take in the logits (B,C) of the entries from position `first` on.

        usable: (B,) bool on the CPU, entries to let in, None for all; tags: (B,) int64, for the
        strategy tags.  Returns the P best classes of all entries: score, label (B,P).
        """
        score, label = top = top_classes(logits, self.p)
        position = torch.arange(first, first + len(logits), device=logits.device)
        if usable is not None and not usable.all():
            here = usable.nonzero()[:, 0].to(logits.device)
            logits, top, position = logits[here], (score[here], label[here]), position[here]
            tags = None if tags is None else tags[usable]
        tags = None if tags is None else tags.to(logits.device)
        for strategy, table in self.tables.items():
            rows = candidates(strategy, logits, top, position, self.seed, tags)
            if self.min_score > 0:
                enough = rows[-1] >= self.min_score
                rows = (column[enough] for column in rows)
            table.add(*rows)
        bins = (top[0][:, 0] * SCORE_BINS).long().clamp(max=SCORE_BINS - 1)
        self.histogram += bins.bincount(minlength=SCORE_BINS)
        self.scored += len(position)
        self.position = first + len(score)
        return score, label

    def rows(self):
        """The selection, see `Ranking.rows`."""
        table = self.tables[self.strategy]
        if self.whole:  # as many rows as the paper's rule selects
            table.cut(len(self.tables["ranked"].rows()[0]))
        return table.rows()

    def merge(self, other):
        """Take over what another selector, of other positions, has seen."""
        self.scored += other.scored
        self.histogram += other.histogram.to(self.histogram.device)
        for name, table in self.tables.items():
            table.merge(other.tables[name])

    def state_dict(self):
        state = {name: getattr(self, name) for name in ("position", "scored", "histogram")}
        return state | {"tables": {name: table.state_dict() for name, table in self.tables.items()}}

    def load_state_dict(self, state):
        self.position, self.scored = state["position"], state["scored"]
        self.histogram = state["histogram"].to(self.histogram.device)
        for name, table in state["tables"].items():
            self.tables[name].load_state_dict(table)
