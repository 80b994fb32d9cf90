"""Pools of unlabelled images: named sets, folders of any depth, tar shards."""

import glob
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

import distributed

from . import listing
from .cache import Cache
from .decode import fingerprints, fit_square, pixel_hash
from .download import downloading, require_answer
from .files import list_folder, list_tars, sha256_of_file
from .labelled import load_cifar_copy
from .listing import Names, Pictures

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
PATCH_SCALES = ((64, 64), (96, 96), (128, 64))  # side and stride, pixels; 258 patches
WAY_OUT = "give a folder of images with --unlabeled, or use heldout or patches (both offline)"


@dataclass(frozen=True)
class Pool:
    """One pool.  Positions 0 .. N-1 count every entry, those skipped as well.

    images: [uint8 (n, S, S, 3)], one read-only array a part, mostly a memory map; entry i is row i
        of the parts laid end to end, or row rows[i] where `rows` is given; zeros where skipped
    prints: [uint8 (n, 16)], `fingerprints` of these images, to be compared with those of others
    rows: int64 (N,), or None for all rows in their order
    names[i] -> str, path inside the pool or index;  skipped: {position: reason}
    truth: int64 (N,), classes of the labelled set, or None where they are not known
    tags(i) -> the name of the folder that entry lies in ("" at the top), or None without folders
    inputs: JSON-able dict: kind, path, digest, entries
    """

    name: str
    names: Names
    inputs: dict
    spec: str = ""
    images: list[np.ndarray] = field(default_factory=list)
    prints: list[np.ndarray] = field(default_factory=list)
    rows: np.ndarray | None = None
    skipped: dict[int, str] = field(default_factory=dict)
    truth: np.ndarray | None = None
    tags: Callable[[int], str] | None = None
    cache: Cache | None = None  # where the images come from, while they are not opened yet

    def __len__(self):
        return len(self.names)

    def name_of(self, i):
        """The entry's name as selection.csv has it: <pool>/<path inside it, or index>."""
        return f"{self.name}/{self.names[i]}"

    def opened(self):
        """This pool with its images, which are decoded now where they are missing."""
        if self.cache is None:
            return self
        parts = self.cache.open()
        skipped = {
            start + row: reason
            for (start, *_), part in zip(self.cache.parts, parts, strict=True)
            for row, reason in part.skipped.items()
        }
        return replace(
            self,
            images=[part.images for part in parts],
            prints=[part.prints for part in parts],
            skipped=skipped,
            cache=None,
        )


def open_pools(specs, data_dir, input_size, labelled=None, split=None):
    """Open the pools in the order given, each under a name of its own; -> list of Pool

    specs: heldout (needs `labelled` and `split`), cifar10, tiny-imagenet, stl10, patches, the path
        of a folder, or a path or glob pattern of tar shards that ends in .tar
    Several processes (see distributed.py) each decode a share of the parts.
    Raises ValueError or FileNotFoundError for a pool that cannot be used, ConnectionError for a
    download that fails, OSError where the cache cannot be written.
    """
    pools = []
    with distributed.in_turns():  # the first one downloads
        for spec in map(os.fspath, specs):
            pool = _open(spec, Path(data_dir), input_size, labelled, split)
            name, taken = pool.name, {other.name for other in pools}
            number = 1
            while name in taken:
                number += 1
                name = f"{pool.name}-{number}"
            pools.append(replace(pool, name=name, spec=spec))
    for pool in pools:
        if pool.cache is not None:
            pool.cache.build((distributed.rank(), distributed.size()))
    distributed.wait()
    return [pool.opened() for pool in pools]


def _open(spec, data_dir, size, labelled, split):
    if spec == "heldout":
        return _open_heldout(labelled, split)
    if spec in NAMED_POOLS:
        return NAMED_POOLS[spec](data_dir, size)
    return (_open_tars if spec.endswith(".tar") else _open_path)(spec, data_dir, size)


def _open_heldout(labelled, split):
    if labelled is None or split is None or not len(split.heldout):
        raise ValueError(
            "the pool 'heldout' is empty: every training image is labelled; train the teacher "
            "with --labels-per-class N, or choose another pool with --unlabeled"
        )
    rows = split.heldout
    return Pool(
        name="heldout",
        images=[labelled.train_images],
        prints=[labelled.train_prints],
        rows=rows,
        names=Names(labelled.train_names[rows]),
        truth=labelled.train_labels[rows],
        inputs={**labelled.inputs, "kind": "heldout", "entries": len(rows)},
    )


def _open_cifar10(data_dir, size):
    cifar = load_cifar_copy("cifar10", data_dir, size)
    return Pool(
        name="cifar10",
        images=[cifar.train_images],
        prints=[cifar.train_prints],
        names=Names(cifar.train_names),
        inputs={**cifar.inputs, "kind": "cifar10", "entries": len(cifar.train_images)},
    )


def _open_tiny_imagenet(data_dir, size):
    """The 100,000 training images; a folder DATA_DIR/tiny-imagenet/<wnid>/* is taken as it is."""
    copy, folder = data_dir / "tiny-imagenet", data_dir / "tiny-imagenet-200"
    if copy.is_dir() and not folder.is_dir():
        return _open_folder("tiny-imagenet", copy, data_dir, size)
    if not folder.is_dir():
        partial = data_dir / f"tiny-imagenet-200.partial-{distributed.unique_name()}"
        try:
            with downloading("tiny-imagenet", f"looked in {str(folder)!r}; {WAY_OUT}"):
                archive = data_dir / TINY_IMAGENET_URL.rpartition("/")[2]
                if not check_integrity(archive, TINY_IMAGENET_MD5):
                    require_answer(TINY_IMAGENET_URL)
                download_and_extract_archive(
                    TINY_IMAGENET_URL, data_dir, partial, archive.name, TINY_IMAGENET_MD5
                )
            # Renamed when complete: an interrupted extraction must not pass for the data set.
            os.rename(partial / "tiny-imagenet-200", folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _open_folder("tiny-imagenet", folder / "train", data_dir, size)


def _open_stl10(data_dir, size):
    """The 100,000 unlabelled images.  torchvision downloads and checks, but would load 2.6 GB."""
    stl10 = torchvision.datasets.STL10
    try:
        stl10(data_dir, split="test")
    except RuntimeError:  # not there, or damaged
        with downloading("stl10", f"looked in {str(data_dir)!r}; {WAY_OUT}"):
            if not check_integrity(data_dir / stl10.filename, stl10.tgz_md5):
                require_answer(stl10.url)
            stl10(data_dir, split="test", download=True)
    path = data_dir / stl10.base_folder / "unlabeled_X.bin"
    pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96)

    def get(i):
        return np.ascontiguousarray(pixels[i].transpose(2, 1, 0))  # stored (3, W, H), columns first

    inputs = {"kind": "torchvision", "path": str(path), "digest": sha256_of_file(path)}
    inputs["entries"] = count = len(pixels)
    starts = range(0, count, listing.PART)
    parts = [(i, min(i + listing.PART, count), [inputs, i]) for i in starts]
    cache = Cache(data_dir / "cache", "stl10", Pictures(count, get), parts, size)
    return Pool("stl10", Names(map(str, range(count))), inputs, cache=cache)


def _open_patches(data_dir, size):
    """Pieces of scikit-learn's two photographs, a temple and a flower: images of no class."""
    from sklearn.datasets import load_sample_images  # here: a second to import, for this pool alone

    photographs, images, hashes, names = load_sample_images(), [], [], []
    for file, photograph in zip(photographs.filenames, photographs.images, strict=True):
        height, width = photograph.shape[:2]
        for side, stride in PATCH_SCALES:
            for top in range(0, height - side + 1, stride):
                for left in range(0, width - side + 1, stride):
                    patch = photograph[top : top + side, left : left + side]
                    images.append(fit_square(patch, size))
                    hashes.append(np.frombuffer(pixel_hash(patch), np.uint8))
                    names.append(f"{os.path.basename(file)}/{side}px-{top}-{left}")
    images, hashes = np.stack(images), np.stack(hashes)
    inputs = {"kind": "patches", "path": "sklearn.datasets.load_sample_images"}
    inputs |= {"digest": hashlib.sha256(hashes).hexdigest(), "entries": len(names)}
    prints = fingerprints(images)
    return Pool("patches", Names(names), inputs, images=[images], prints=[prints])


def _open_path(spec, data_dir, size):
    folder = Path(spec).expanduser()
    if not spec or not folder.is_dir():
        raise FileNotFoundError(
            f"unlabelled pool {spec!r} is neither a folder nor one of heldout, "
            f"{', '.join(NAMED_POOLS)}, nor tar shards (*.tar)"
        )
    name = os.fsencode(folder.resolve().name or "root").decode("utf-8", "backslashreplace")
    return _open_folder(name, folder, data_dir, size)


def _open_folder(name, folder, data_dir, size):
    if not folder.is_dir():
        raise FileNotFoundError(
            f"pool {name!r}: no folder {str(folder)!r}; remove what is there of it"
        )
    return _open_listing(name, "folder", folder, list_folder(folder), data_dir, size)


def _open_tars(spec, data_dir, size):
    path = os.path.expanduser(spec)
    shards = [path] if os.path.isfile(path) else [p for p in glob.glob(path) if os.path.isfile(p)]
    if not shards:
        raise FileNotFoundError(
            f"no tar shard matches {spec!r}; check the path, and quote the pattern"
        )
    stem = Path(path).stem if shards == [path] else Path(shards[0]).resolve().parent.name
    stem = os.fsencode(stem).decode("utf-8", "backslashreplace")
    return _open_listing(stem, "tar", path, list_tars(shards), data_dir, size)


def _open_listing(name, kind, path, entries, data_dir, size):
    if not len(entries):
        raise ValueError(f"pool {name!r}: no images in {str(path)!r}; see --unlabeled in --help")
    shown = os.fsencode(os.path.abspath(path)).decode("utf-8", "backslashreplace")
    inputs = {"kind": kind, "path": shown, "digest": entries.digest, "entries": len(entries)}
    parts = [
        (*span, {"kind": kind, "path": shown, "stamp": stamp}) for *span, stamp in entries.parts
    ]
    safe = "".join(c if c.isalnum() else "_" for c in name)[:40]
    return Pool(
        name=name,
        names=entries.names,
        inputs=inputs,
        tags=lambda i: _folder_of(entries.names[i]),
        cache=Cache(data_dir / "cache", safe, entries, parts, size),
    )


def _folder_of(name):
    """The folder a file lies in; Tiny-ImageNet keeps its files one deeper, in <wnid>/images."""
    folders = name.split("/")[:-1]
    if len(folders) > 1 and folders[-1] == "images":
        folders.pop()
    return folders[-1] if folders else ""


NAMED_POOLS = {
    "cifar10": _open_cifar10,
    "tiny-imagenet": _open_tiny_imagenet,
    "stl10": _open_stl10,
    "patches": _open_patches,
}
