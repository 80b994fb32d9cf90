"""What a source of a pool is, and how one is made of a folder, a listing or labelled images."""

import os
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import torch

import distributed

from .cache import Cache
from .files import list_folder
from .images import Images
from .listing import Names, in_blocks, shown

UNKNOWN, NO_CLASS = -1, -2  # in place of a true class; an image of no class is never labelled right


@dataclass
class Source:
    """One source of a pool.  Its positions 0 .. N-1 count every entry, also unreadable ones.

    names[i] -> str, the path inside the source, or an index
    inputs: JSON-able dict: kind, path, digest, entries
    images: Images of all N, zeros where unreadable
    checksums: [uint8 (n, 16)], one array a block of listing.BLOCK entries
    unreadable: {position: reason}
    truth: int64 (N,), classes of the labelled set or NO_CLASS, or None where they are not known
    """

    name: str
    names: Names
    inputs: dict
    images: Images | None = None
    checksums: list[np.ndarray] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    truth: np.ndarray | None = None
    spec: str = ""  # as the user gave it
    cache: Cache | None = None  # where images, checksums and unreadable come from, see `open`

    def __len__(self):
        return len(self.names)

    def tag(self, i):
        """The name of the folder that entry `i` lies in, "" at the top; None without folders."""
        if self.inputs.get("kind") not in ("folder", "tar"):
            return None
        folders = self.names[i].split("/")[:-1]
        if len(folders) > 1 and folders[-1] == "images":
            folders.pop()  # Tiny-ImageNet has its files one folder deeper, in <wnid>/images
        return folders[-1] if folders else ""

    def open(self):
        """Fetch the images from the cache, which decodes those that are missing there."""
        if self.cache is None:
            return
        blocks, self.unreadable = self.cache.open()
        self.images = Images.of(*(block.images for block in blocks))
        self.checksums = [block.checksums for block in blocks]

    def subset(self, index):
        """The entries at `index` (M,) int64 as a Source under the same name; no image is copied."""
        sums = np.concatenate(self.checksums)[index]
        return replace(
            self,
            names=Names(self.names.raw(i) for i in index.tolist()),
            images=self.images.subset(torch.from_numpy(index)),
            checksums=in_blocks(sums),
            unreadable={
                new: self.unreadable[old]
                for new, old in enumerate(index.tolist())
                if old in self.unreadable
            },
            truth=None if self.truth is None else self.truth[index],
        )


def of_labelled(name, subset, inputs, truth=None):
    """LabelledImages as a source.  inputs, truth: see Source"""
    inputs = {**inputs, "kind": name, "entries": len(subset)}
    sums = in_blocks(subset.checksums)
    return Source(name, Names(subset.names), inputs, subset.images, sums, truth=truth)


def of_folder(name, folder, data_dir, size):
    if not folder.is_dir():
        raise FileNotFoundError(f"pool {name!r}: no folder {str(folder)!r}; remove the rest of it")
    listing = list_folder(folder)
    if listing.outside and distributed.is_first():
        print(
            f"{len(listing.outside)} images of the pool {folder} are links that lead out of it, "
            f"such as {listing.outside[0]!r}; they are read like the others",
            file=sys.stderr,
        )
    return of_listing(name, "folder", folder, listing, data_dir, size)


def of_listing(name, kind, path, listing, data_dir, size):
    if not len(listing):
        raise ValueError(f"pool {name!r}: no images in {str(path)!r}; see --unlabeled in --help")
    key = {"kind": kind, "path": shown(os.path.abspath(path))}
    safe = "".join(c if c.isalnum() else "_" for c in name)[:40]
    cache = Cache(data_dir / "cache", safe, listing, key, size)
    inputs = {**key, "digest": listing.digest, "entries": len(listing)}
    return Source(name, listing.names, inputs, cache=cache)
