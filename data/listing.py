"""What a cache is built from: the entries of a source or of a labelled set, in blocks."""

import hashlib
import os
from array import array

BLOCK = 65_536  # entries that are decoded, cached and searched for duplicates together


def shown(path):
    """A path or a part of it as text; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class Names:
    """N names in two arrays: the characters, and 8 bytes each for where a name ends.

    A list of str takes 50 bytes more for each.  names[i] -> str; names.raw(i) -> bytes.
    """

    def __init__(self, names):
        """names: iterable of str or of bytes"""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode() if isinstance(name, str) else name
            ends.append(len(text))
        self._text, self._ends = bytes(text), ends

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, i):
        """The name as text; bytes that are not UTF-8 become backslash escapes."""
        return self.raw(i).decode("utf-8", "backslashreplace")

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def raw(self, i):
        i = range(len(self))[i]  # IndexError out of range; a negative i counts from the end
        return self._text[self._ends[i] : self._ends[i + 1]]


def spans(count):
    """The blocks of `count` entries: yields (first, last + 1)."""
    for start in range(0, count, BLOCK):
        yield start, min(start + BLOCK, count)


def in_blocks(array):
    """An array (N, ..) as a list of arrays, one a block."""
    return [array[start:stop] for start, stop in spans(len(array))]


class Listing:
    """N image files or members of archives, in their order, as the source of a cache.

    names: Names;  unreadable: {position: reason}, as far as known without decoding
    digest: hexadecimal sha256 of names and sizes
    keys: a str for each block, which changes when one of its entries does, also in place
    """

    in_memory = False

    def __init__(self, entries, place):
        """
        entries: iterable of (name, size, facts, reason); name: bytes; facts: numbers that change
            when the file is edited in place; reason: why it is unreadable, or None
        place(position, name) -> (path, offset, length), see worker.decode_into
        """
        self.unreadable, self.place = {}, place
        whole, blocks = hashlib.sha256(), []

        def collect():
            for position, (name, size, facts, reason) in enumerate(entries):
                if reason:
                    self.unreadable[position] = reason
                if position % BLOCK == 0:
                    blocks.append(hashlib.sha256())
                # The length of the name first, because a name may hold line ends.
                line = b"%d:%s:[%d]\n" % (len(name), name, size)
                whole.update(line)
                blocks[-1].update(b"%s%r\n" % (line, facts))
                yield name

        self.names = Names(collect())
        self.digest, self.keys = whole.hexdigest(), [block.hexdigest() for block in blocks]

    def __len__(self):
        return len(self.names)

    def sources(self, start, stop):
        """What `worker.decode_into` reads for the entries `start` to `stop` - 1."""
        return [
            None if i in self.unreadable else self.place(i, self.names.raw(i))
            for i in range(start, stop)
        ]


class MemorySource:
    """`count` decoded images as the source of a cache: get(i) -> uint8 (H, W, 3)."""

    in_memory = True
    unreadable = {}  # noqa: RUF012

    def __init__(self, count, get):
        self.count, self.get = count, get
        self.keys = [str(start) for start, _ in spans(count)]

    def __len__(self):
        return self.count

    def sources(self, start, stop):
        return [self.get(i) for i in range(start, stop)]
