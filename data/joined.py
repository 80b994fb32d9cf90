"""Several pools as one: positions run through them in the order given."""

from itertools import accumulate
from pathlib import Path

import numpy as np

from .duplicates import find_duplicates
from .images import Images


class JoinedPools:
    """N entries of one or more pools, entries that cannot be used included.

    images   data.Images of all N, zeros where unreadable
    skipped  {position: reason}: what is not scored
    truth    int64 (N,): the true class where it is known, else -1
    """

    def __init__(self, pools):
        self.pools = pools
        self.starts = list(accumulate((len(pool) for pool in pools), initial=0))
        self.images = Images.of(*(pool.images for pool in pools))
        self.skipped = {
            start + i: reason
            for start, pool in zip(self.starts, pools, strict=False)
            for i, reason in pool.skipped.items()
        }
        unknown = [np.full(len(pool), -1) if pool.truth is None else pool.truth for pool in pools]
        self.truth = np.concatenate(unknown)

    def __len__(self):
        return self.starts[-1]

    def _find(self, position):
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.pools[number], int(position) - self.starts[number]

    def name_of(self, position):
        """<pool>/<path inside it, or index>, as in selection.csv."""
        pool, i = self._find(position)
        return pool.name_of(i)

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

    def leave_out_duplicates(self, images, hashes):
        """Skip what equals, or nearly equals, one of the labelled `images` (`find_duplicates`)."""
        for start, pool in zip(self.starts, self.pools, strict=False):
            found = find_duplicates(pool.images, pool.hashes, images, hashes, skip=pool.skipped)
            self.skipped |= {start + i: reason for i, reason in found.items()}

    def tags(self, classes):
        """The class that each image's folder is named after, -1 for none: int64 (N,).

        Raises ValueError when no folder is named after a class.
        """
        plain = {_plain(name): number for number, name in enumerate(classes)}
        tags = [
            plain.get(_plain(pool.tags(i)), -1) if pool.tags else -1
            for pool in self.pools
            for i in range(len(pool))
        ]
        if max(tags) < 0:
            raise ValueError(f"no folder of the pool is named after a class such as {classes[0]!r}")
        return np.array(tags)


def _plain(name):
    return name.lower().replace(" ", "_")
