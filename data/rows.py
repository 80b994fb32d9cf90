"""Many encoded images to rows of pixels in a file."""

import numpy as np

from .decode import (
    MAX_FILE_BYTES,
    Unreadable,
    decode,
    fingerprints,
    fit_square,
    pixel_hash,
    read_file,
)

WRITE_BYTES = 2**20  # of rows written at once: they stay in the processor's cache till then


class _Contents:
    """Reads sources; the members of one archive, one after the other, in large blocks."""

    def __init__(self):
        self.path = self.file = None

    def read(self, path, offset, length):
        """`length` bytes of a file from `offset`, or the whole file where `offset` is None."""
        if offset is None:
            return read_file(path)
        try:
            if path != self.path:
                self.close()
                self.file, self.path = open(path, "rb", buffering=2**20), path  # noqa: SIM115
            self.file.seek(offset)
            return self.file.read(min(length, MAX_FILE_BYTES + 1))
        except OSError as error:
            raise Unreadable(f"cannot be opened: {error.strerror or error}") from None

    def close(self):
        if self.file is not None:
            self.file.close()


def decode_rows(file, offset, size, sources, canonical):
    """Decode one image after the other into rows of a file.

    file: path, exists;  offset: byte where the first row goes;  size: side of the squares
    sources: (path, offset, length) as for `_Contents.read`, a picture uint8 (H, W, 3), or None
        for a row of zeros
    canonical: whether `pixel_hash` is wanted
    -> fingerprints uint8 (n, 16), pixel hashes uint8 (n, 16) or None, {row: reason}

    Rows of unreadable images are zeros.  Raises OSError when they cannot be written.
    """
    prints = np.zeros((len(sources), 16), np.uint8)
    hashes = np.zeros((len(sources), 16), np.uint8) if canonical else None
    reasons, contents = {}, _Contents()
    step = min(len(sources), max(1, WRITE_BYTES // (size * size * 3)))
    buffer = np.empty((step, size, size, 3), np.uint8)
    with open(file, "r+b") as out:
        out.seek(offset)
        for first in range(0, len(sources), step):
            rows = buffer[: len(sources) - first]
            for i, row in enumerate(rows, first):
                try:
                    picture, own_hash = _load(sources[i], contents, size, canonical)
                except Unreadable as reason:
                    reasons[i] = str(reason)
                    picture = own_hash = None
                row[:] = 0 if picture is None else fit_square(picture, size)
                if own_hash:
                    hashes[i] = np.frombuffer(own_hash, np.uint8)
            prints[first : first + len(rows)] = fingerprints(rows)
            # write(), not a memory map: on a full disk a map kills the process by SIGBUS.
            out.write(rows)
    contents.close()
    return prints, hashes, reasons


def _load(source, contents, size, canonical):
    """-> the picture to be fitted, or None; its pixel hash where `canonical`, else None."""
    if source is None:
        return None, None
    if not isinstance(source, tuple):
        return source, pixel_hash(source) if canonical else None
    content = contents.read(*source)
    whole = pixel_hash(decode(content)) if canonical else None
    # Fitted like an image of a pool also here, so that a copy in a pool has the same pixels.
    return decode(content, size), whole
