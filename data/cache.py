"""Decode once: images as memory-mapped squares of pixels, in blocks that are written whole.

    <cache_dir>/<name>-<size>px-<key>/images.npy        uint8 (n, size, size, 3)
                                      checksums.npy     uint8 (n, 16), `checksums` of the images
                                      pixel_hashes.npy  uint8 (n, 16), of a labelled set only
                                      meta.json         written last, with a CRC-32 of itself

Each folder holds one block of a source.  It may be deleted at any time; it is built again when it
is next needed, and where it is damaged: the images are compared with their checksums once a run.
"""

import hashlib
import json
import os
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files import clear_abandoned, remove, unfinished, whole_file

from .decode import checksums
from .images import Images
from .listing import spans
from .workers import chunk_size, cores, decode_all

VERSION = 5  # raise it when the pixels or the files change
COMPARED = 2**23  # bytes of images that a thread compares with their checksums at a time


@dataclass(frozen=True)
class Block:
    """images: uint8 (n, S, S, 3), zeros where unreadable;  checksums, pixel_hashes: uint8 (n, 16)

    All are memory maps, copy-on-write: the files stay as they are.
    unreadable: {index in the block: reason}
    """

    images: np.ndarray
    checksums: np.ndarray
    unreadable: dict[int, str]
    pixel_hashes: np.ndarray | None = None


class Cache:
    """The decoded images of one source."""

    def __init__(self, cache_dir, name, source, key, size, hashes=False):
        """
        source: a Listing or MemorySource;  key: JSON-able, tells this source from any other
        size: side of the images in pixels;  hashes: whether `pixel_hash` of each is kept too

        Raises ValueError where the source has no entries.
        """
        if not len(source):
            raise ValueError(f"no images to cache for {name!r}; check that its folder holds images")
        self.name, self.source, self.size, self.hashes = name, source, size, hashes
        self.compared = False  # with the checksums
        self.blocks = []  # (first, last + 1, folder)
        for (start, stop), own_key in zip(spans(len(source)), source.keys, strict=True):
            facts = [VERSION, size, hashes, stop - start, key, own_key]
            text = json.dumps(facts, sort_keys=True).encode("utf-8", "backslashreplace")
            folder = f"{name}-{size}px-{hashlib.sha256(text).hexdigest()[:16]}"
            self.blocks.append((start, stop, Path(cache_dir).absolute() / folder))

    def build(self, rank=0, processes=1):
        """Build what is missing or damaged of every `processes`-th block from number `rank` on.

        Raises OSError (disk full, no permission); nothing is left of unfinished blocks.
        """
        compare, self.compared = not self.compared, True
        blocks = self.blocks[rank::processes]
        if missing := [block for block in blocks if _load(block[2], compare) is None]:
            _build(self, missing)

    def open(self):
        """-> [Block], {position in the source: reason} of the unreadable; builds what is missing.

        Raises OSError.
        """
        for _ in range(5):  # another process may find a block damaged and take it away
            self.build()
            blocks = [_load(folder) for *_, folder in self.blocks]
            if None not in blocks:
                break
        else:
            folder = self.blocks[blocks.index(None)][2]
            raise OSError(f"the cache {folder} cannot be read back; delete it and try again")
        unreadable = {}
        for (start, *_), block in zip(self.blocks, blocks, strict=True):
            unreadable |= {start + i: reason for i, reason in block.unreadable.items()}
        return blocks, unreadable


def _load(folder, compare=False):
    """The Block in a folder, or None where there is none; a damaged one is taken away.

    compare: whether each image is compared with its checksum
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        before = _version(folder)
        block = _read(folder)
        if block is not None and not (compare and _is_damaged(block)):
            return block
        if block is not None:
            print(f"the cache {folder} is damaged, its images are decoded again", file=sys.stderr)
        # Others may be reading it: renaming it keeps their open files valid.
        aside = unfinished(folder)
        if _version(folder) == before:  # and not what another process has put there meanwhile
            os.rename(folder, aside)
            remove(aside)
    return None


def _version(folder):
    status = folder.stat()
    return status.st_ino, status.st_mtime_ns


def _read(folder):
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta.pop("crc32") != _crc32(meta):
            return None
        for file, size in meta["bytes"].items():
            if (folder / file).stat().st_size != size:
                return None
        return Block(
            unreadable={int(index): reason for index, reason in meta["unreadable"].items()},
            **{
                Path(file).stem: np.lib.format.open_memmap(folder / file, "c")
                for file in meta["bytes"]
            },
        )
    except (FileNotFoundError, NotADirectoryError, RecursionError):
        return None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _is_damaged(block):
    """Whether an image is not the one that was written."""
    images, step = Images.of(block.images), max(1, COMPARED // block.images[:1].nbytes)

    def same(first):
        part = slice(first, first + step)
        sums = checksums(images[part].numpy())
        images.release_pages()
        return np.array_equal(sums, block.checksums[part])

    with ThreadPoolExecutor(cores()) as pool:
        return not all(pool.map(same, range(0, len(block.checksums), step)))


def _crc32(meta):
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _build(cache, missing):
    """Decode the missing blocks; the workers go from one to the next without a pause."""
    cache_dir = missing[0][2].parent
    cache_dir.mkdir(parents=True, exist_ok=True)
    clear_abandoned(cache_dir)
    total = sum(stop - start for start, stop, _ in missing)
    chunk = chunk_size(total)

    def tasks():
        for start, stop, folder in missing:
            block = _NewBlock(cache, start, stop, folder, unfinished_blocks)
            for first in range(start, stop, chunk):
                last = min(first + chunk, stop)
                yield (block, first, last), block.task(first, last)

    def take(tag, *answer):
        block, first, last = tag
        block.take(first, *answer)
        bar.update(last - first)
        if last == block.stop:
            block.finish()

    bar = tqdm(total=total, desc=f"decode {cache.name}", unit="image", disable=None, leave=False)
    with bar, ExitStack() as unfinished_blocks:
        decode_all(tasks(), total, take, cache.source.in_memory)


class _NewBlock:
    """A block being built in a temporary folder."""

    def __init__(self, cache, start, stop, folder, unfinished_blocks):
        """`unfinished_blocks`: ExitStack that removes the folder if it is never finished."""
        self.cache, self.start, self.stop, self.folder = cache, start, stop, folder
        known = cache.source.unreadable
        self.unreadable = {i - start: known[i] for i in range(start, stop) if i in known}
        self.checksums = np.zeros((stop - start, 16), np.uint8)
        self.pixel_hashes = np.zeros_like(self.checksums) if cache.hashes else None
        self.writing = unfinished_blocks.enter_context(ExitStack())
        self.partial = self.writing.enter_context(whole_file(folder))
        self.partial.mkdir()
        shape = stop - start, cache.size, cache.size, 3
        # A file of zeros that takes no space yet; the first square begins at this byte.
        new = np.lib.format.open_memmap(self.partial / "images.npy", "w+", np.uint8, shape)
        self.offset = new.offset

    def task(self, first, last):
        """The arguments of `workers.decode_into` for the entries `first` to `last` - 1."""
        size = self.cache.size
        return {
            "file": str(self.partial / "images.npy"),
            "offset": self.offset + (first - self.start) * size * size * 3,
            "size": size,
            "sources": self.cache.source.sources(first, last),
            "hashes": self.cache.hashes,
        }

    def take(self, first, checksums, pixel_hashes, reasons):
        """Note the answer to the task that began with entry `first`."""
        first -= self.start
        self.checksums[first : first + len(checksums)] = checksums
        if pixel_hashes is not None:
            self.pixel_hashes[first : first + len(pixel_hashes)] = pixel_hashes
        self.unreadable |= {first + i: reason for i, reason in reasons.items()}

    def finish(self):
        """Put the block in its place, unless another process has put its own there meanwhile."""
        np.save(self.partial / "checksums.npy", self.checksums)
        if self.pixel_hashes is not None:
            np.save(self.partial / "pixel_hashes.npy", self.pixel_hashes)
        sizes = {path.name: path.stat().st_size for path in self.partial.iterdir()}
        unreadable = {str(i): reason for i, reason in sorted(self.unreadable.items())}
        meta = {"version": VERSION, "bytes": sizes, "unreadable": unreadable}
        meta["crc32"] = _crc32(meta)
        (self.partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        try:
            self.writing.close()
        except OSError:
            if _load(self.folder) is None:
                raise
