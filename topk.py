"""The K best of a stream of any length, in bounded memory.

A candidate belongs to a group, has a priority and a position in the stream, and carries a label and
a score along.  `TopK` keeps the K candidates of every group with the highest priority; of equal
priorities the lower position wins.  The result is exact, and it is the same for any order of the
stream and any cut of the stream into parts.

How it works.  A table has K places for each group.  New candidates wait in a buffer.

  key       Priority and position are packed into one int64, the key, so that comparing two
            candidates is comparing two integers.  No two candidates of a group have equal keys.
  pruning   Once a group's K places are taken, the lowest key among them is the group's bound.  When
            the buffer is full, every candidate below the bound of its group is dropped.  Late in a
            stream that is nearly all of them, for the cost of a copy and a comparison each.
  merging   If more than half of the buffer is left after pruning, the buffer is merged into the
            table: for each group the old places and the new candidates are laid side by side, and
            the K highest keys stay.  The bounds rise.

Why it is exact: a candidate is dropped only when K better ones of its group are known.  It can
never be among the K best, whatever comes later, so it does not matter when buffers are pruned and
merged.

Why the order does not matter: keys are all different, so a set of candidates has one set of K best.
The K best of a union are the K best of the parts' K best.  Hence several TopK, each for a part of
the stream, can be merged in any order (`TopK.merge`).

Memory: 16 bytes a place of the table, which has no more places than candidates have come; 24 bytes
a place of the buffer, which has a quarter of the table's places but at least TopK.BUFFER; and the
working memory of one merged block, see TopK.BLOCK.
"""

import torch

MAX_POSITION = 2**32 - 1  # a position takes the low 32 bits of a key
EMPTY = torch.iinfo(torch.int64).min  # the key of a free place: below every candidate's key
# The buffer's columns: group, priority, position, label, score.
_BUFFERED = (torch.int32, torch.float32, torch.int64, torch.int32, torch.float32)


def sort_key(priority, position):
    """Pack priority and position into one integer: a higher key is a better candidate.

    priority: float32, not NaN; position: int64, 0 to MAX_POSITION, of the same shape
    -> int64 of that shape: the higher priority is the higher key, then the lower position

    The bits of a float, read as an integer, rise with the float if it is positive and fall if it is
    negative; so the bits of the negative ones are flipped.
    """
    bits = (priority + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: equal numbers, equal bits
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return rising.to(torch.int64).mul_(2**32).add_(MAX_POSITION - position)


def unpack_key(key):
    """key: int64 -> priority float32, position int64, of its shape.  EMPTY gives a NaN."""
    rising = (key >> 32).to(torch.int32)
    return (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(torch.float32), ~key & MAX_POSITION


class TopK:
    """The K best candidates of each of G groups.

    k          places of a group
    min_score  a candidate with a lower score is dropped
    table      {"key": int64, "label": int32, "score": float32}, each (G, W), W <= k, in no order
    capacity   places of the buffer
    """

    BUFFER = 2**16  # places of the buffer, at least; few enough for a processor's cache
    BLOCK = 2**20  # places of the table and new ones that are merged at a time: about 50 MB

    def __init__(self, groups, k, device="cpu", min_score=0.0):
        """Raises ValueError for a k below 1."""
        if k < 1:
            raise ValueError(f"k is {k}; it must be 1 or more")
        self.k, self.min_score = k, min_score
        key = torch.empty((groups, 0), dtype=torch.int64, device=device)
        self._set({"key": key, "label": key.int(), "score": key.float()})

    def _set(self, table):
        """Take `table` for the table, and an empty buffer."""
        self.table, key = table, table["key"]
        groups, width = key.shape
        full = width == self.k
        self._bound = key.amin(1) if full else key.new_full((groups,), EMPTY)  # (G,)
        self._bound_priority = unpack_key(self._bound)[0]  # NaN where the group has a free place
        self.capacity = max(self.BUFFER, groups * width // 4)
        self.buffer, self._filled = None, 0  # the buffer's columns, and how many places are taken

    def add(self, group, priority, position, label, score):
        """Add M candidates: five tensors (M,), which are copied.

        group: 0 to G - 1; priority, score: float32; position: 0 to MAX_POSITION; label: int32.
        No two candidates of a group may have the same position.

        Raises, now or when the result is asked for, ValueError for a position out of range and
        FloatingPointError for a priority that is NaN.
        """
        columns, first = (group, priority, position, label, score), 0
        while first < len(group):
            if self._filled == self.capacity:
                self._prune()
                if self._filled > self.capacity // 2:
                    self._merge_buffer()
            if self.buffer is None:
                like = self.table["key"]
                self.buffer = [like.new_empty(self.capacity, dtype=dtype) for dtype in _BUFFERED]
            size = min(self.capacity - self._filled, len(group) - first)
            for buffered, column in zip(self.buffer, columns, strict=True):
                buffered[self._filled : self._filled + size] = column[first : first + size]
            self._filled += size
            first += size

    def _prune(self):
        """Drop the candidates of the buffer that are below the bound of their group, and those with
        too low a score: not in `add`, because here a GPU is waited for anyway.
        """
        columns = [column[: self._filled] for column in self.buffer]
        group, priority, position = columns[:3]
        lowest, highest = position.aminmax()
        # First by priority alone, which is cheap and drops most.  `<` is false for NaN: neither a
        # NaN nor a candidate of a group with free places is dropped here.
        low = priority < self._bound_priority.index_select(0, group)
        if self.min_score > 0:
            low |= columns[4] < self.min_score
        alive = (~low).nonzero()[:, 0]
        columns = [column.index_select(0, alive) for column in columns]
        group, priority, position = columns[:3]
        checks = torch.stack([lowest, highest, priority.isnan().sum()])
        lowest, highest, nans = checks.tolist()  # one wait for a GPU
        if lowest < 0 or highest > MAX_POSITION:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"position {wrong} is not from 0 to {MAX_POSITION}; split the stream")
        if nans:
            raise FloatingPointError(f"{nans} scores to rank by are NaN; check the network")
        # Among priorities equal to the bound's the position decides, which the keys know.
        alive = (sort_key(priority, position) > self._bound.index_select(0, group)).nonzero()[:, 0]
        self._filled = len(alive)
        for buffered, column in zip(self.buffer, columns, strict=True):
            buffered[: self._filled] = column.index_select(0, alive)

    def _merge_buffer(self):
        """Merge the buffer into the table, a block of groups at a time to bound the memory."""
        columns = [column[: self._filled] for column in self.buffer]
        order = columns[0].argsort()
        group, priority, position, label, score = (c.index_select(0, order) for c in columns)
        self.buffer = columns = order = None  # a large table needs this memory below
        new = {"key": sort_key(priority, position), "label": label, "score": score}
        old, (groups, places) = self.table, self.table["key"].shape
        count = group.bincount(minlength=groups)  # (G,) new candidates of each group
        begin, most = count.cumsum(0) - count, int(count.max())
        width = min(self.k, int(((old["key"] != EMPTY).sum(1) + count).max()))
        table = old  # changed in place, unless it must grow
        if width > places:
            table = {name: column.new_empty((groups, width)) for name, column in old.items()}
        # Where each candidate goes in G lines of `most` places, laid end to end.
        place = torch.arange(groups, device=group.device) * most - begin
        place = place.index_select(0, group).add_(torch.arange(len(group), device=group.device))
        begin, step = [*begin.tolist(), len(group)], max(1, self.BLOCK // (places + most))
        for first in range(0, groups, step):
            last = min(first + step, groups)
            mine = slice(begin[first], begin[last])
            here = place[mine] - first * most
            for name, column in new.items():
                lines = column.new_full(((last - first) * most,), EMPTY if name == "key" else 0)
                lines = lines.scatter_(0, here, column[mine]).view(last - first, most)
                both = torch.cat([old[name][first:last], lines], 1)
                if name == "key":
                    both, best = both.topk(width, dim=1, sorted=False)
                else:
                    both = both.gather(1, best)
                table[name][first:last] = both
        self._set(table)

    def _flush(self):
        """Bring all candidates into the table."""
        if self._filled:
            self._prune()
        if self._filled:
            self._merge_buffer()

    def merge(self, other):
        """Add the candidates that another TopK has kept, which may be on another device."""
        other._flush()
        groups, width = other.table["key"].shape
        step = max(1, self.BLOCK // max(1, width))
        for first in range(0, groups, step):
            columns = [column[first : first + step] for column in other.table.values()]
            filled = columns[0] != EMPTY
            key, label, score = (column[filled] for column in columns)
            self.add(filled.nonzero()[:, 0] + first, *unpack_key(key), label, score)

    def cut(self, k):
        """Keep the `k` best of each group, of those that are there now."""
        self._flush()
        key = self.table["key"]
        best = key.topk(min(k, key.shape[1]), dim=1, sorted=False).indices
        self._set({name: column.gather(1, best) for name, column in self.table.items()})

    def rows(self):
        """What has been kept: position, label, score, rank, (M,) each, on the CPU.

        int64, int64, float32, int64; by label, then rank 1, 2, ..., the highest key first.  Ranks
        are within a label, also where one group holds several labels.
        """
        self._flush()
        filled = self.table["key"] != EMPTY
        key, label, score = (column[filled].cpu() for column in self.table.values())
        by_key = key.argsort(descending=True)
        order = by_key[label[by_key].argsort(stable=True)]
        key, label, score = key[order], label[order].long(), score[order]
        count = label.bincount()
        rank = torch.arange(len(label)) - (count.cumsum(0) - count)[label] + 1
        return unpack_key(key)[1], label, score, rank

    def state_dict(self):
        """The table, with all candidates in it: not a copy, later candidates change it."""
        self._flush()
        return dict(self.table)

    def load_state_dict(self, state):
        """Go on from a copy of another's `state_dict`."""
        device = self.table["key"].device
        self._set({name: state[name].to(device, copy=True) for name in self.table})
