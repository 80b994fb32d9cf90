"""The pool: all its sources as one, positions running through them in the order given."""

import hashlib
import itertools
import os
import sys
import unicodedata
from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch

import distributed

from .duplicates import SUBSETS
from .images import Images
from .listing import spans, spelled
from .sources import UNKNOWN, open_sources

COUNTED = 2**24  # checksums compared at a time for copies inside the pool: 128 MB


def open_pool(specs, data_dir, input_size, labelled=None, split=None, cache_dir=None):
    """-> Pool of the sources that `sources.open_sources` opens; it raises the same errors.

    What is left out of it, and what lies outside of its folders, is said on stderr.
    """
    sources = open_sources(specs, data_dir, input_size, labelled, split, cache_dir)
    for notice in itertools.chain(*(source.notices for source in sources)):
        if distributed.is_first():
            print(notice, file=sys.stderr)
    return Pool(sources)


def draw(pool, size, seed):
    """-> Pool of `size` entries drawn at random; of one seed, each smaller pool is in each larger.

    Raises ValueError for more entries than there are.
    """
    if size > len(pool):
        raise ValueError(f"--pool-size {size} is above the {len(pool)} images of the pool")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pool))[:size])
    cuts = np.searchsorted(chosen, pool.starts[1:-1])
    parts = zip(pool.sources, pool.starts, np.split(chosen, cuts), strict=False)
    return Pool([source.subset(part - start) for source, start, part in parts if len(part)])


def reopen_pool(config, data_dir, labelled, split, cache_dir=None, specs=None, folder=None):
    """The Pool of an earlier step 2; of a pool of remote shards only what was selected.

    config: its config.json as a dict;  specs: where the sources are now, None for where they were;
    folder: of its stage
    Raises ValueError when a source is no longer what was scored, and the errors of `open_sources`.
    """
    if config.get("engine"):
        from .remote import selected_pool  # here: most pools need no fsspec

        return selected_pool(config, folder, cache_dir or Path(data_dir) / "cache")
    given = specs or config["unlabeled"]
    size = config["input_size"]
    pool = Pool(open_sources(given, data_dir, size, labelled, split, cache_dir))
    if config.get("pool_size"):
        pool = draw(pool, config["pool_size"], config["seed"])
    if len(pool.sources) != len(config["pools"]):
        raise ValueError(
            f"step 2 scored {len(config['pools'])} pools ({', '.join(config['pools'])}), and here "
            f"are {len(pool.sources)}; name as many with --unlabeled, in the same order"
        )
    for source, (name, scored) in zip(pool.sources, config["pools"].items(), strict=True):
        source.name = name  # a folder may have another name where it is now
        if source.inputs["digest"] != scored.get("digest"):
            raise ValueError(
                f"the pool {name} ({source.spec}) has changed since step 2 scored it; name the "
                f"place of the old one with --unlabeled, or run `python make_sample_data.py "
                f"--overwrite`"
            )
    return pool


class Pool:
    """N entries of one or more sources, unreadable ones included.

    images      Images of all N, zeros where unreadable
    unreadable  {position: reason}
    duplicates  {position: Duplicate}, found by `guard`, see `find_duplicates`
    """

    def __init__(self, sources):
        self.sources = sources
        self.starts = list(itertools.accumulate(map(len, sources), initial=0))
        self.images = Images.joined(*(source.images for source in sources))
        self.unreadable = {}
        for start, source in zip(self.starts, sources, strict=False):
            self.unreadable |= {start + i: reason for i, reason in source.unreadable.items()}
        self.guard, self.duplicates = None, {}
        self._skipped = np.array(sorted(self.unreadable), np.int64)

    def __len__(self):
        return self.starts[-1]

    def _find(self, position):
        """The source of an entry, and its position there."""
        number = bisect_right(self.starts, position) - 1
        return self.sources[number], int(position) - self.starts[number]

    def _blocks(self):
        """Yields (first position, last + 1, checksums) of every block of every source."""
        for start, source in zip(self.starts, self.sources, strict=False):
            for (first, last), sums in zip(spans(len(source)), source.checksums, strict=True):
                yield start + first, start + last, sums

    def name_of(self, position):
        """<source>/<path inside it, or index>, as in selection.csv."""
        source, i = self._find(position)
        return f"{source.name}/{source.names[i]}"

    def names_of(self, first, last):
        """The names of the entries `first` to `last` - 1: list of str."""
        return [self.name_of(position) for position in range(first, last)]

    def folder_of(self, position):
        """The name of the folder that an entry lies in, "" for none."""
        source, i = self._find(position)
        return source.tag(i) or ""

    def file_of(self, position):
        """The path of an image that is a file of its own, else None."""
        source, i = self._find(position)
        if source.inputs["kind"] != "folder":
            return None
        path, *_ = source.cache.source.place(i, source.names.raw(i))
        return Path(os.fsdecode(path))

    def unused(self):
        """Yields (name, reason) of what is no entry of the pool, but may be an image."""
        for source in self.sources:
            for name, reason in source.unused:
                yield f"{source.name}/{name}", reason

    def positions(self, names):
        """The position of every name: int64 (M,).  Raises ValueError for one that is not there."""
        wanted, places = set(names), {}
        for position in range(len(self)):
            name = self.name_of(position)
            # An unreadable entry may repeat a name: a second member of an archive.
            if name in wanted and (name not in places or position not in self.unreadable):
                places[name] = position
        if missing := wanted - places.keys():
            raise ValueError(f"there is no image {min(missing)!r} in the pools")
        return np.array([places[name] for name in names])

    def check_pixels(self, positions, digest):
        """Raises ValueError unless `pixel_digest` of the entries is the one given; None for any."""
        if digest not in (None, self.pixel_digest(positions)):
            raise ValueError(
                "selected images of the pool have other pixels than those that step 2 scored; "
                "restore the files, or run `python make_sample_data.py --overwrite`"
            )

    def pixel_digest(self, positions):
        """sha256 of the `checksums` of the entries at `positions`, each once, by position."""
        return hashlib.sha256(self.checksums(np.unique(positions)).tobytes()).hexdigest()

    def find_duplicates(self, guard):
        """Look for labelled images in the pool: fills `duplicates`, which are skipped from then on.

        guard: LeakGuard.  Several processes each look through a part of the pool.
        """
        self.guard, duplicates = guard, {}
        blocks = list(self._blocks())
        for first, last, sums in blocks[distributed.rank() :: distributed.size()]:
            skip = np.flatnonzero(~_outside(self._skipped, first, last)).tolist()
            images = self.images.subset(torch.arange(first, last))
            duplicates |= {
                first + duplicate.position: duplicate
                for duplicate in guard.find(images, sums, skip)
            }
            self.release_pages()
        for part in distributed.gathered(duplicates):
            self.duplicates |= part
        self.duplicates = dict(sorted(self.duplicates.items()))
        skipped = self.unreadable.keys() | self.duplicates.keys()
        self._skipped = np.array(sorted(skipped), np.int64)

    def release_pages(self):
        """See `Images.release_pages`."""
        self.images.release_pages()

    def skipped(self):
        """Yields (position, reason) of every unreadable entry and every duplicate, by position."""
        for position in self._skipped.tolist():
            duplicate = self.duplicates.get(position)
            yield position, self.guard.reason(duplicate) if duplicate else self.unreadable[position]

    def count_skipped(self):
        """How many entries are skipped, by kind: a dict for result.json."""
        counts = {"unreadable": len(self.unreadable)}
        counts |= {kind: dict.fromkeys(SUBSETS, 0) for kind in ("duplicate", "near_duplicate")}
        for duplicate in self.duplicates.values():
            kind = "duplicate" if duplicate.similarity is None else "near_duplicate"
            counts[kind][self.guard.subset_of(duplicate)] += 1
        return counts

    def scorable(self, first, last):
        """Which of the entries `first` to `last` - 1 are not skipped: bool (last - first,)."""
        return _outside(self._skipped, first, last)

    def _known(self):
        """Yields (start, stop, truth) of the sources whose classes are known."""
        for start, source in zip(self.starts, self.sources, strict=False):
            if source.truth is not None:
                yield start, start + len(source), source.truth

    def truth_of(self, positions):
        """The true classes, NO_CLASS for an image of none, UNKNOWN where nothing is known:
        int64 (M,).
        """
        truth = np.full(len(positions), UNKNOWN)
        for start, stop, classes in self._known():
            here = (positions >= start) & (positions < stop)
            truth[here] = classes[positions[here] - start]
        return truth

    def true_counts(self, num_classes):
        """How many scorable entries are known to be of each class: int64 (C,)."""
        counts = np.zeros(num_classes, np.int64)
        for start, stop, classes in self._known():
            classes = classes[self.scorable(start, stop)]
            counts += np.bincount(classes[classes >= 0], minlength=num_classes)
        return counts

    def tags(self, classes, first, last):
        """The class that the folder of each entry is named after: int64 (n,); -1 for none, and -2
        for two: one that differs from both in upper case, spaces or Unicode form.
        """
        exact, folded = {}, {}
        for number, name in enumerate(map(spelled, classes)):
            exact[name] = number
            folded[_plain(name)] = -2 if _plain(name) in folded else number
        tags = map(self.folder_of, range(first, last))
        return np.array([exact.get(tag, folded.get(_plain(tag), -1)) for tag in tags], np.int64)

    def check_tags(self, classes):
        """Raises ValueError when no folder is named after a class, or one after two."""
        tags = [self.tags(classes, first, last) for first, last, _ in self._blocks()]
        if not any((truth >= 0).any() for truth in tags):
            raise ValueError(f"no folder of the pool is named after a class such as {classes[0]!r}")
        if len(two := np.flatnonzero(np.concatenate(tags) == -2)):
            raise ValueError(
                f"the folder {self.folder_of(two[0])!r} of the pool could be named after two "
                f"classes; rename it to one of them exactly"
            )

    def checksums(self, positions):
        """`checksums` of the entries at `positions` (M,), ascending: uint8 (M, 16)."""
        parts = [np.empty((0, 16), np.uint8)]
        for first, last, sums in self._blocks():
            low, high = np.searchsorted(positions, [first, last])
            if low < high:
                parts.append(sums[positions[low:high] - first])
        return np.concatenate(parts)

    def count_copies(self):
        """How many readable entries have the same pixels, as resized, as an earlier one."""
        passes, copies = -(-len(self) // COUNTED), 0  # several over a large pool bound the memory
        unreadable = np.array(sorted(self.unreadable), np.int64)
        for number in range(passes):
            keys = []
            for first, last, sums in self._blocks():
                key = sums[:, :8].copy().view(np.uint64)[:, 0]
                key = key[_outside(unreadable, first, last)]
                keys.append(key[key % passes == number])
            keys = np.concatenate(keys)
            copies += len(keys) - len(np.unique(keys))
        return copies


def _outside(positions, first, last):
    """Which of `first` to `last` - 1 are not among the sorted `positions`: bool (last - first,)."""
    mask = np.ones(last - first, bool)
    low, high = np.searchsorted(positions, [first, last])
    mask[positions[low:high] - first] = False
    return mask


def _plain(name):
    return unicodedata.normalize("NFC", name).lower().replace(" ", "_")
