"""Several pools as one: positions run through them in the order given."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

import distributed

from .duplicates import PARTS
from .images import Images

BLOCK = 65_536  # entries whose duplicates are looked for, and remembered, together
COUNTED = 2**24  # prints compared at once for copies inside the pool: 128 MB


class JoinedPools:
    """N entries of one or more pools, entries that cannot be used included.

    images      data.Images of all N, zeros where unreadable
    unreadable  {position: reason}
    duplicates  {position: Duplicate}, what `guard` found; see `find_duplicates`
    """

    def __init__(self, pools):
        self.pools = pools
        self.starts = list(accumulate((len(pool) for pool in pools), initial=0))
        self.images = Images.joined(*map(_images_of, pools))
        self.unreadable = {
            start + i: reason
            for start, pool in zip(self.starts, pools, strict=False)
            for i, reason in pool.skipped.items()
        }
        self.guard, self.duplicates = None, {}
        self._skipped = self._unreadable = np.array(sorted(self.unreadable), np.int64)

    def __len__(self):
        return self.starts[-1]

    def _find(self, position):
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.pools[number], int(position) - self.starts[number]

    def _blocks(self):
        """Ranges of at most BLOCK entries: (position of the pool's first entry, pool, from, to)."""
        for start, pool in zip(self.starts, self.pools, strict=False):
            for first in range(0, len(pool), BLOCK):
                yield start, pool, first, min(first + BLOCK, len(pool))

    def name_of(self, position):
        """<pool>/<path inside it, or index>, as in selection.csv."""
        pool, i = self._find(position)
        return pool.name_of(i)

    def names_of(self, first, last):
        """The names of the entries `first` to `last` - 1."""
        return [self.name_of(position) for position in range(first, last)]

    def file_of(self, position):
        """The path of an image that is a file of its own, else None."""
        pool, i = self._find(position)
        return Path(pool.inputs["path"], pool.names[i]) if pool.inputs["kind"] == "folder" else None

    def positions(self, names):
        """The position of every name: int64 (M,).  Raises ValueError for one that is not there."""
        wanted, found = set(names), {}
        for position in range(len(self)):
            name = self.name_of(position)
            if name in wanted:
                found[name] = position
        if missing := wanted - found.keys():
            raise ValueError(f"there is no image {min(missing)!r} in the pools")
        return np.array([found[name] for name in names])

    def find_duplicates(self, guard):
        """Look for labelled images in the pool: fills `duplicates`; they are not `usable` then.

        guard: LeakGuard.  Several processes each look through a share of the pool.
        """
        self.guard, blocks = guard, list(self._blocks())
        for block in blocks[distributed.rank() :: distributed.size()]:
            self._ask(*block)
        distributed.wait()  # the guard remembers its answers: all are there now
        for start, pool, first, last in blocks:
            for found in self._ask(start, pool, first, last):
                self.duplicates[start + first + found.position] = found
        skipped = self.unreadable.keys() | self.duplicates.keys()
        self._skipped = np.array(sorted(skipped), np.int64)

    def _ask(self, start, pool, first, last):
        images = self.images.subset(torch.arange(start + first, start + last))
        skip = np.flatnonzero(~self._readable(start + first, start + last)).tolist()
        found = self.guard.find(images, _prints_of(pool, first, last), skip)
        self.images.let_go()
        return found

    def left_out(self):
        """(position, reason) of every entry that is not scored, by position."""
        for position in self._skipped.tolist():
            found = self.duplicates.get(position)
            reason = self.guard.reason(found) if found else self.unreadable[position]
            yield position, reason

    def count_left_out(self):
        """How many entries are not scored, by kind: a dict for result.json."""
        kinds = {"unreadable": len(self.unreadable)}
        kinds |= {kind: dict.fromkeys(PARTS, 0) for kind in ("duplicate", "near_duplicate")}
        for found in self.duplicates.values():
            kind = "duplicate" if found.similarity is None else "near_duplicate"
            kinds[kind][self.guard.part_of(found)] += 1
        return kinds

    def usable(self, first, last):
        """Which of the entries `first` to `last` - 1 are to be scored: bool (last - first,)."""
        return _outside(self._skipped, first, last)

    def _readable(self, first, last):
        return _outside(self._unreadable, first, last)

    def truth_of(self, positions):
        """The true classes where they are known, else -1: int64 (M,)."""
        truth = np.full(len(positions), -1)
        for start, pool in zip(self.starts, self.pools, strict=False):
            if pool.truth is not None:
                here = (positions >= start) & (positions < start + len(pool))
                truth[here] = pool.truth[positions[here] - start]
        return truth

    def true_counts(self, num_classes):
        """How many usable entries are known to be of each class: int64 (C,)."""
        counts = np.zeros(num_classes, np.int64)
        for start, pool in zip(self.starts, self.pools, strict=False):
            if pool.truth is not None:
                truth = pool.truth[self.usable(start, start + len(pool))]
                counts += np.bincount(truth, minlength=num_classes)
        return counts

    def tags(self, classes, first, last):
        """The class that the folder of each entry is named after, -1 for none: int64 (n,)."""
        numbers = {_plain(name): number for number, name in enumerate(classes)}
        entries = map(self._find, range(first, last))
        tags = [numbers.get(_plain(pool.tags(i)), -1) if pool.tags else -1 for pool, i in entries]
        return np.array(tags, np.int64)

    def check_tags(self, classes):
        """Raises ValueError when no folder is named after a class."""
        blocks = ((start + first, start + last) for start, _, first, last in self._blocks())
        if not any((self.tags(classes, *block) >= 0).any() for block in blocks):
            raise ValueError(f"no folder of the pool is named after a class such as {classes[0]!r}")

    def prints(self, positions):
        """`fingerprints` of the entries at `positions` (M,), which rise: uint8 (M, 16)."""
        found = [np.empty((0, 16), np.uint8)]
        for start, pool, first, last in self._blocks():
            low, high = np.searchsorted(positions, [start + first, start + last])
            if low < high:
                block = _prints_of(pool, first, last)
                found.append(block[positions[low:high] - start - first])
        return np.concatenate(found)

    def count_copies(self):
        """How many entries have the same pixels as an earlier one, at the network's input size.

        Their prints are compared in passes over the pool, each over a share of the prints.
        """
        passes, copies = -(-len(self) // COUNTED), 0
        for number in range(passes):
            keys = []
            for start, pool, first, last in self._blocks():
                key = _prints_of(pool, first, last)[:, :8].copy().view(np.uint64)[:, 0]
                key = key[self._readable(start + first, start + last)]
                keys.append(key[key % passes == number])
            keys = np.concatenate(keys)
            copies += len(keys) - len(np.unique(keys))
        return copies


def _outside(positions, first, last):
    """Which of `first` to `last` - 1 are not among the sorted `positions`."""
    mask = np.ones(last - first, bool)
    low, high = np.searchsorted(positions, [first, last])
    mask[positions[low:high] - first] = False
    return mask


def _images_of(pool):
    images = Images.of(*pool.images)
    return images if pool.rows is None else images.subset(torch.from_numpy(pool.rows))


def _prints_of(pool, first, last):
    """uint8 (last - first, 16) of the entries of one pool."""
    if pool.rows is not None:
        (prints,) = pool.prints
        return np.asarray(prints[pool.rows[first:last]])
    parts, start = [], 0
    for prints in pool.prints:
        low, high = max(first - start, 0), min(last - start, len(prints))
        if low < high:
            parts.append(prints[low:high])
        start += len(prints)
    return np.concatenate(parts)


def _plain(name):
    return name.lower().replace(" ", "_")
