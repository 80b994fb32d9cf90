"""Decode once: a folder of memory-mapped uint8 images, written whole or not at all.

    <cache_dir>/<name>-<size>px-<key>/images.npy   uint8 (N, size, size, 3)
                                      hashes.npy   uint8 (N, 16), `pixel_hash` of every image
                                      order.npy    int64 (N,), which entry each row came from
                                      meta.json    written last

A folder can be deleted at any time; it is built again when it is next needed.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .decode import Unreadable, fit_square, pixel_hash

VERSION = 1  # raise it when the pixels or the files change
CHUNK = 256  # images; large enough that a thread seldom waits for the interpreter


@dataclass(frozen=True)
class Cache:
    """images: uint8 (N, S, S, 3), read-only memory map;  hashes: uint8 (N, 16);  order: int64 (N,),
    the entry each row came from;  skipped: {entry: reason}."""

    images: np.ndarray
    hashes: np.ndarray
    order: np.ndarray
    skipped: dict[int, str]


def open_cache(cache_dir, name, key, count, read, size, *, workers=None, arrange=None):
    """Open the cache of `count` images, building it first where it is missing, stale or damaged.

    key: JSON-able dict that changes when any image does
    read(i): uint8 (H, W, 3), or raises Unreadable; called from several threads
    arrange(hashes, skipped): int64 positions, the rows to keep in the order to keep them; None
        keeps every entry in its place, those skipped as zeros

    Raises ValueError when count is 0, and OSError (disk full, no permission) with nothing left.
    """
    if count < 1:
        raise ValueError(f"no images to cache for {name!r}; check that its folder holds images")
    text = json.dumps([VERSION, size, count, key], sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    final = Path(cache_dir) / f"{name}-{size}px-{digest[:16]}"
    cache = _load(final)
    if cache is None:
        _build(final, count, read, size, workers, arrange)
        cache = _load(final)
    if cache is None:
        raise OSError(f"the cache {final} cannot be read back; delete it and try again")
    return cache


def _load(folder):
    """The Cache in a folder, or None where it is missing, unfinished or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for file, size in meta["bytes"].items():
            if (folder / file).stat().st_size != size:
                return None
        return Cache(
            images=np.load(folder / "images.npy", mmap_mode="r"),
            hashes=np.load(folder / "hashes.npy"),
            order=np.load(folder / "order.npy"),
            skipped={int(position): reason for position, reason in meta["skipped"].items()},
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _build(final, count, read, size, workers, arrange):
    """Write the cache beside its final place, then rename it: readers see all of it or nothing."""
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        hashes, skipped = _write_images(partial / "images.npy", count, read, size, workers)
        order = np.arange(count)
        if arrange is not None:
            order = np.asarray(arrange(hashes, skipped), np.int64)
            _rearrange(partial / "images.npy", order)
        np.save(partial / "hashes.npy", hashes[order])
        np.save(partial / "order.npy", order)
        sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
        meta = {"version": VERSION, "count": count, "bytes": sizes, "skipped": skipped}
        (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        _put_in_place(partial, final)
    except BaseException:  # also Ctrl-C and SIGTERM: half a cache is of no use to anybody
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _put_in_place(partial, final):
    try:
        os.rename(partial, final)
    except OSError:
        if _load(final) is None:  # what is there is damaged, not another process's finished work
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
        else:
            shutil.rmtree(partial, ignore_errors=True)


def _write_images(path, count, read, size, workers):
    """Decode everything into an .npy file; -> hashes uint8 (count, 16), {position: reason}."""
    hashes, skipped = np.zeros((count, 16), np.uint8), {}

    def decode_chunk(start):
        stop = min(start + CHUNK, count)
        images, reasons = np.zeros((stop - start, size, size, 3), np.uint8), {}
        for i in range(start, stop):
            try:
                image = read(i)
            except Unreadable as reason:
                reasons[i] = str(reason)
            else:
                images[i - start] = fit_square(image, size)
                hashes[i] = np.frombuffer(pixel_hash(image), np.uint8)
        return images, reasons

    workers = workers or min(32, os.cpu_count() or 1)
    # Written with write(), not through a memory map: on a full disk a map kills the process by
    # SIGBUS, where write() raises an OSError that can be reported.
    with _npy_writer(path, (count, size, size, 3)) as file, _single_threaded_opencv():
        bar = tqdm(total=count, desc=f"decode {path.parent.name.partition('.')[0]}", unit="image",
                   disable=None, leave=False)  # fmt: skip
        with bar, ThreadPoolExecutor(workers) as pool:
            try:
                for images, reasons in _in_order(
                    pool, decode_chunk, range(0, count, CHUNK), workers
                ):
                    file.write(images)
                    skipped.update(reasons)
                    bar.update(len(images))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return hashes, skipped


def _in_order(pool, function, arguments, workers):
    """Like pool.map, but never more than a few results ahead of a slow disk."""
    waiting = deque()
    for argument in arguments:
        waiting.append(pool.submit(function, argument))
        if len(waiting) > 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _rearrange(path, order):
    """Rewrite images.npy with its rows in the given order."""
    images = np.load(path, mmap_mode="r")
    arranged = path.with_name("arranged.npy")
    with _npy_writer(arranged, (len(order), *images.shape[1:])) as file:
        for start in range(0, len(order), CHUNK):
            file.write(np.ascontiguousarray(images[order[start : start + CHUNK]]))
    del images  # Windows replaces no file that is still mapped
    os.replace(arranged, path)


@contextmanager
def _npy_writer(path, shape):
    """A file opened after the .npy header of a uint8 array of this shape."""
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


@contextmanager
def _single_threaded_opencv():
    """The images are decoded side by side; OpenCV's own threads would only get in their way."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
