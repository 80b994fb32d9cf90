"""Many encoded images to squares of pixels in a file: the work of one decoding process.

`workers.py` starts `serve` as a program and talks to it over its pipes: a task is a pickled dict,
the arguments of `decode_into`; the answer is what that returns, or the exception that it raised.
"""

import os
import pickle
import signal
import sys

import cv2
import numpy as np

from .decode import (
    DAMAGED_GZIP,
    MAX_FILE_BYTES,
    Unreadable,
    checksums,
    decode,
    fit_square,
    open_shard,
    pixel_hash,
    read_file,
)

WRITE_BYTES = 2**20  # of squares written at a time; they stay in the processor's cache until then


def serve():
    """Answer tasks until stdin closes, which also happens when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the parent stops its workers
    cv2.setNumThreads(0)  # there is a worker for every core already
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints would otherwise print into the answers

    def answer(value):
        try:
            pickle.dump(value, answers)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent is gone; a normal exit would flush `answers` and fail again

    answer("ready")
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):  # also in the middle of a task
            return
        try:
            value = decode_into(**task)
        except Exception as error:  # the parent raises it
            value = error
        answer(value)


def decode_into(file, offset, size, sources, hashes):
    """Decode images into consecutive squares of a file; zeros for an image that is unreadable.

    file: path, exists;  offset: byte at which the first square begins;  size: side of the squares
    sources: N of: (path, offset, length) of an encoded image, offset None for a whole file;
        a decoded image, uint8 (H, W, 3);  None for a square of zeros
    hashes: whether `pixel_hash` is wanted
    -> checksums uint8 (N, 16), pixel hashes uint8 (N, 16) or None, {index: reason}

    Raises OSError when the squares cannot be written.
    """
    sums = np.zeros((len(sources), 16), np.uint8)
    own_hashes = np.zeros((len(sources), 16), np.uint8) if hashes else None
    reasons, reader = {}, _Reader()
    step = min(len(sources), max(1, WRITE_BYTES // (size * size * 3)))
    buffer = np.empty((step, size, size, 3), np.uint8)
    with open(file, "r+b") as out:
        out.seek(offset)
        for first in range(0, len(sources), step):
            squares = buffer[: len(sources) - first]
            for i, square in enumerate(squares, first):
                try:
                    _decode_one(sources[i], reader, square, own_hashes[i] if hashes else None)
                except Unreadable as reason:
                    square[:] = 0
                    reasons[i] = str(reason)
            sums[first : first + len(squares)] = checksums(squares)
            # write(), not a memory map: on a full disk a map kills the process with SIGBUS.
            out.write(squares)
    reader.close()
    return sums, own_hashes, reasons


def _decode_one(source, reader, square, own_hash):
    """Fill `square` uint8 (S, S, 3) and, unless it is None, `own_hash` uint8 (16,)."""
    if source is None:
        square[:] = 0
        return
    whole = fitted = source
    if isinstance(source, tuple):
        content = reader.read(*source)
        # Decoded once more for the hash: `fitted` may be reduced while it is decoded, in a labelled
        # set as in a pool, so that a copy in a pool has the same pixels as the labelled image.
        whole = decode(content) if own_hash is not None else None
        fitted = decode(content, len(square))
    if own_hash is not None:
        own_hash[:] = np.frombuffer(pixel_hash(whole), np.uint8)
    square[:] = fit_square(fitted, len(square))


class _Reader:
    """Reads image files, and the members of an archive one after the other in large blocks."""

    def __init__(self):
        self.path = self.file = None

    def read(self, path, offset, length):
        """`length` bytes of a file from `offset` on, or the whole file where `offset` is None."""
        if offset is None:
            return read_file(path)
        try:
            if path != self.path:
                self.close()
                self.file, self.path = open_shard(path, buffering=2**20), path
            self.file.seek(offset)
            return self.file.read(min(length, MAX_FILE_BYTES + 1))
        except DAMAGED_GZIP:
            raise Unreadable("damaged or truncated archive") from None
        except OSError as error:
            raise Unreadable(f"cannot be opened: {error.strerror or error}") from None

    def close(self):
        if self.file is not None:
            self.file.close()
