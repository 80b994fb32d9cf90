"""Decode once: folders of memory-mapped uint8 images, each written whole or not at all.

    <cache_dir>/<name>-<size>px-<key>/images.npy   uint8 (n, size, size, 3)
                                      prints.npy   uint8 (n, 16), `fingerprints` of the rows
                                      hashes.npy   uint8 (n, 16), `pixel_hash` } labelled sets
                                      order.npy    int64 (n,), see Part        } only
                                      meta.json    written last

A folder holds one part of a pool, or one part (train, test) of a labelled set.  It can be deleted
at any time; it is built again when it is next needed.
"""

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import distributed

from .workers import chunk_size, decode_all

VERSION = 2  # raise it when the pixels or the files change
ROWS = 256  # copied at a time
ABANDONED = 3600  # seconds without a row: whoever was writing it has been killed


@dataclass(frozen=True)
class Part:
    """images: uint8 (n, S, S, 3), read-only memory map, zeros where skipped;  prints: uint8 (n, 16)
    memory map, `fingerprints` of the images;  skipped: {entry: reason}

    Of a cache with an order also: hashes: uint8 (n, 16), `pixel_hash`;  order: int64 (n,), the
    entry that each row came from.
    """

    images: np.ndarray
    prints: np.ndarray
    skipped: dict[int, str]
    hashes: np.ndarray | None = None
    order: np.ndarray | None = None


class Cache:
    """The parts of one pool, or the single part of a labelled set."""

    def __init__(self, cache_dir, name, source, parts, size, arrange=None):
        """
        source: a Listing or Pictures;  size: side of the images
        parts: [(start, stop, key)], consecutive entries of the source; key: JSON-able, changes when
            any of these entries does
        arrange(hashes, skipped): int64 positions, the rows to keep in the order to keep them; None
            keeps every entry in its place

        Raises ValueError where there are no entries.
        """
        if not parts:
            raise ValueError(f"no images to cache for {name!r}; check that its folder holds images")
        self.name, self.source, self.size, self.arrange = name, source, size, arrange
        self.parts = []
        for start, stop, key in parts:
            text = json.dumps([VERSION, size, stop - start, key], sort_keys=True)
            digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
            folder = Path(cache_dir).absolute() / f"{name}-{size}px-{digest[:16]}"
            self.parts.append((start, stop, folder))

    def build(self, share=(0, 1)):
        """Build what is missing or damaged of the parts rank, rank + size, ..; share: (rank, size).

        Raises OSError (disk full, no permission); nothing is left of the parts under way.
        """
        rank, size = share
        missing = [part for part in self.parts[rank::size] if _load(part[2]) is None]
        if missing:
            _build(missing, self)

    def open(self):
        """Every part, built first where it is missing: -> [Part]."""
        parts = [_load(folder) for *_, folder in self.parts]
        if None in parts:
            self.build()
            parts = [_load(folder) for *_, folder in self.parts]
        for (*_, folder), part in zip(self.parts, parts, strict=True):
            if part is None:
                raise OSError(f"the cache {folder} cannot be read back; delete it and try again")
        return parts


def _load(folder):
    """The Part in a folder, or None where it is missing, unfinished or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        for file, size in meta["bytes"].items():
            if (folder / file).stat().st_size != size:
                return None
        return Part(
            skipped={int(row): reason for row, reason in meta["skipped"].items()},
            **{Path(file).stem: np.load(folder / file, mmap_mode="r") for file in meta["bytes"]},
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _build(parts, cache):
    """Decode the parts of a cache, one after the other without a pause between them."""
    _clear_abandoned(parts[0][2].parent)
    total, under_way = sum(stop - start for start, stop, _ in parts), {}
    chunk = chunk_size(total)

    def tasks():
        for start, stop, folder in parts:
            new = under_way[folder] = _NewPart(start, stop, folder, cache)
            new.begin()
            for first in range(start, stop, chunk):
                last = min(first + chunk, stop)
                task = new.task(first, cache.source.sources(first, last))
                yield (new, first, last), task

    def take(tag, prints, hashes, reasons):
        new, first, last = tag
        new.take(first, prints, hashes, reasons)
        bar.update(last - first)
        if last == new.stop:
            new.finish()
            del under_way[new.folder]

    bar = tqdm(total=total, desc=f"decode {cache.name}", unit="image", disable=None, leave=False)
    try:
        with bar:
            decode_all(tasks(), total, take, cache.source.in_memory)
    finally:  # also at Ctrl-C and SIGTERM: half a part is of no use to anybody
        for new in under_way.values():
            new.remove()


def _clear_abandoned(cache_dir):
    """Remove what killed processes have left; others may still be at work beside this one."""
    for images in cache_dir.glob("*.partial-*/images.npy"):
        with suppress(OSError):  # finished, or cleared by another process, this moment
            if time.time() - images.stat().st_mtime > ABANDONED:
                shutil.rmtree(images.parent, ignore_errors=True)


class _NewPart:
    """A part being built beside its final place: readers see all of it or nothing."""

    def __init__(self, start, stop, folder, cache):
        self.start, self.stop, self.folder = start, stop, folder
        self.size, self.arrange = cache.size, cache.arrange
        unusable = cache.source.unusable
        self.skipped = {i - start: unusable[i] for i in range(start, stop) if i in unusable}
        self.partial = folder.with_name(f"{folder.name}.partial-{distributed.unique_name()}")
        self.images = self.partial / "images.npy"
        self.prints = np.zeros((stop - start, 16), np.uint8)
        self.hashes = None if self.arrange is None else np.zeros_like(self.prints)

    def begin(self):
        self.remove()
        self.partial.mkdir(parents=True)
        shape = self.stop - self.start, self.size, self.size, 3
        self.offset = _create_npy(self.images, shape)

    def task(self, first, sources):
        """The arguments of `rows.decode_rows` for the entries from `first` on."""
        offset = self.offset + (first - self.start) * self.size * self.size * 3
        canonical = self.hashes is not None
        return {"file": str(self.images), "offset": offset, "size": self.size, "sources": sources,
                "canonical": canonical}  # fmt: skip

    def take(self, first, prints, hashes, reasons):
        row = first - self.start
        self.prints[row : row + len(prints)] = prints
        if hashes is not None:
            self.hashes[row : row + len(hashes)] = hashes
        self.skipped |= {row + i: reason for i, reason in reasons.items()}

    def finish(self):
        order = slice(None)
        if self.arrange is not None:
            order = np.asarray(self.arrange(self.hashes, self.skipped), np.int64)
            _rearrange(self.images, order)
            np.save(self.partial / "hashes.npy", self.hashes[order])
            np.save(self.partial / "order.npy", order)
        np.save(self.partial / "prints.npy", self.prints[order])
        sizes = {path.name: path.stat().st_size for path in self.partial.iterdir()}
        meta = {"version": VERSION, "bytes": sizes, "skipped": dict(sorted(self.skipped.items()))}
        (self.partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        self._put_in_place()

    def _put_in_place(self):
        try:
            os.rename(self.partial, self.folder)
        except OSError:
            if _load(self.folder) is None:  # damaged, not another process's finished work
                shutil.rmtree(self.folder, ignore_errors=True)
                os.rename(self.partial, self.folder)
            else:
                self.remove()

    def remove(self):
        shutil.rmtree(self.partial, ignore_errors=True)


def _create_npy(path, shape):
    """An .npy file of zeros, uint8, that takes no space yet; -> where its first row begins."""
    header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, shape))}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
        file.truncate(offset + int(np.prod(shape)))
    return offset


def _rearrange(path, order):
    """Rewrite images.npy with its rows in the given order."""
    images = np.load(path, mmap_mode="r")
    arranged = path.with_name("arranged.npy")
    offset = _create_npy(arranged, (len(order), *images.shape[1:]))
    with open(arranged, "r+b") as file:
        file.seek(offset)
        for start in range(0, len(order), ROWS):
            file.write(np.ascontiguousarray(images[order[start : start + ROWS]]))
    del images  # Windows replaces no file that is still mapped
    os.replace(arranged, path)
