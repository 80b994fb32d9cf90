"""Many entries, named and stamped: what a cache is built from."""

import hashlib
from array import array
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import numpy as np

PART = 65_536  # entries; what is decoded and kept together


class Names:
    """Many names as two arrays.

    A Python list of a million paths costs 100 MB, and its reference counts are copied into every
    worker process page by page; this costs the characters.  names[i] -> str, names.raw(i) -> bytes.
    """

    def __init__(self, names):
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode() if isinstance(name, str) else name
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends)

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, i):
        return self.raw(i).decode("utf-8", "backslashreplace")

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def raw(self, i):
        i = range(len(self))[i]  # IndexError out of range, negative positions from the end
        return self._text[self._ends[i] : self._ends[i + 1]]

    def raws(self, start, stop):
        """The names start, ..., stop - 1 as a list of bytes."""
        ends = self._ends[start : stop + 1].tolist()
        return [self._text[a:b] for a, b in pairwise(ends)]

    def digest(self, start, stop):
        """sha256 object over the names start, ..., stop - 1."""
        ends = self._ends[start : stop + 1]
        digest = hashlib.sha256((ends - ends[0]).tobytes())  # a name may hold any character but NUL
        digest.update(memoryview(self._text)[ends[0] : ends[-1]])
        return digest


@dataclass(frozen=True)
class Listing:
    """Image entries in their order: names (N,); unusable {position: reason}; `digest`, of names and
    sizes, tells what the images are.

    parts: [(start, stop, stamp)], at most PART entries each; a stamp depends on the entries of its
        part only, and changes when one of them is edited in place
    sources(start, stop) -> what `rows.decode_rows` reads, for these entries
    """

    names: Names
    unusable: dict[int, str]
    digest: str
    parts: list
    sources: object
    in_memory = False

    def __len__(self):
        return len(self.names)


class Pictures:
    """`count` pictures that lie in memory, as the source of a cache: get(i) -> uint8 (H, W, 3)."""

    in_memory = True
    unusable = {}  # noqa: RUF012

    def __init__(self, count, get):
        self.count, self.get = count, get

    def __len__(self):
        return self.count

    def sources(self, start, stop):
        return [self.get(i) for i in range(start, stop)]


class Entries:
    """Collects the entries of a listing, compactly."""

    def __init__(self, width):
        """`width`: numbers that `add` is given beside a name."""
        self.width, self.count = width, 0
        self.numbers, self.cuts = array("q"), []
        self.unusable, self.digest = {}, hashlib.sha256()

    def add(self, name, size, numbers, reason=None):
        """Count an entry; -> its name.  `numbers` changes when the entry does."""
        if reason:
            self.unusable[self.count] = reason
        # Parts begin where a name says so: then an entry more or less moves the parts around it,
        # and not all that follow.
        if crc32(name) % (PART // 2) == 0:
            self.cuts.append(self.count)
        self.numbers.extend(numbers)
        # The length first: a name may hold any character but NUL, line ends included.
        self.digest.update(b"%d:%s:[%d]\n" % (len(name), name, size))
        self.count += 1
        return name

    def parts(self, names):
        """[(start, stop, stamp)] of all entries."""
        numbers, edges = np.frombuffer(self.numbers, np.int64), [0]
        for cut in [*self.cuts, self.count]:
            while cut - edges[-1] > PART:
                edges.append(edges[-1] + PART)
            if cut > edges[-1]:
                edges.append(cut)
        parts = []
        for start, stop in pairwise(edges):
            digest = names.digest(start, stop)
            digest.update(numbers[start * self.width : stop * self.width])
            parts.append((start, stop, digest.hexdigest()))
        return parts
