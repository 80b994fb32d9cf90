"""The sources of a pool, by what the user calls them: names, folders of any depth, tar shards."""

import glob
import hashlib
import itertools
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

import distributed
from files import clear_abandoned, remove, sha256_of_file, unfinished
from models.download import downloading, require_answer

from .cache import Cache
from .decode import SHARD_SUFFIXES, checksums, fit_square, pixel_hash
from .images import Images
from .labelled import from_torchvision, load_labelled
from .listing import MemorySource, Names, in_blocks, list_folder, list_tars, spelled

UNKNOWN, NO_CLASS = -1, -2  # in place of a true class; an image of no class is never labelled right
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
PATCH_SCALES = ((64, 64), (96, 96), (128, 64))  # side and stride, pixels; 258 patches
WAY_OUT = "give a folder of images with --unlabeled, or use heldout or patches (both offline)"
MAX_SHARDS = 100_000  # that a range such as {000..999} may name


@dataclass
class Source:
    """One source of a pool.  Its positions 0 .. N-1 count every entry, also unreadable ones.

    names[i] -> str, the path inside the source, or an index
    inputs: JSON-able dict: kind, path, digest, entries
    images: Images of all N, zeros where unreadable
    checksums: [uint8 (n, 16)], one array a block of listing.BLOCK entries
    unreadable: {position: reason}
    unused: [(name, reason)] of what is no entry but may be an image;  notices: for stderr
    truth: int64 (N,), classes of the labelled set or NO_CLASS, or None where they are not known
    """

    name: str
    names: Names
    inputs: dict
    images: Images | None = None
    checksums: list[np.ndarray] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    unused: list[tuple[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
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
        new_of = {old: new for new, old in enumerate(index.tolist())}
        return replace(
            self,
            names=Names(map(self.names.raw, new_of)),
            images=self.images.subset(torch.from_numpy(index)),
            checksums=in_blocks(np.concatenate(self.checksums)[index]),
            unreadable={new_of[i]: why for i, why in self.unreadable.items() if i in new_of},
            truth=None if self.truth is None else self.truth[index],
        )


def open_sources(specs, data_dir, input_size, labelled=None, split=None, cache_dir=None):
    """Open the sources in the order given, each under a name of its own; -> [Source]

    specs: heldout or labelled (both need `labelled` and `split`), cifar10, tiny-imagenet, stl10,
        patches, the path of a folder, or a path, a glob pattern or a range such as {000..009} of
        tar shards that ends in .tar, .tar.gz or .tgz
    cache_dir: where decoded images are kept, None for DATA_DIR/cache
    Several processes (see distributed.py) each decode a part of the blocks.
    Raises ValueError or FileNotFoundError for a source that cannot be used, ConnectionError for a
    download that fails, OSError where the cache cannot be written.
    """
    sources, data_dir = [], Path(data_dir)
    where = data_dir, Path(cache_dir or data_dir / "cache")
    with distributed.in_turns():  # the first process downloads
        for spec in map(os.fspath, specs):
            if spec in _PARTS:
                source = _part(spec, labelled, split)
            elif spec in NAMED:
                source = NAMED[spec](where, input_size)
            else:
                find = _tars if spec.endswith(SHARD_SUFFIXES) else _path
                source = find(spec, where, input_size)
            source.name, source.spec = unique(source.name, sources), spec
            sources.append(source)
    for cache in filter(None, (source.cache for source in sources)):
        cache.build(distributed.rank(), distributed.size())
    distributed.wait()
    for source in sources:
        source.open()
    return sources


def unique(name, sources):
    """`name`, or the first of name-2, name-3, ... that none of the sources has."""
    taken = {source.name for source in sources}
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def absolute(spec):
    """A source as the user gave it, so that it means the same in another working directory."""
    spec = os.fspath(spec)
    known = spec in (*_PARTS, *NAMED, "") or "://" in spec
    return spec if known else os.path.abspath(os.path.expanduser(spec))


# --- parts of the labelled set ------------------------------------------------------------------

_PARTS = ("heldout", "labelled")


def _part(name, labelled, split):
    """The training images that are not labelled, or those that are."""
    index = getattr(split, name, ())
    if labelled is None or not len(index):
        raise ValueError(
            f"the pool {name!r} is empty: every training image is labelled; train the teacher "
            "with --labels-per-class N, or choose another pool with --unlabeled"
        )
    part = labelled.train.subset(index)
    return _of_labelled(name, part, labelled.inputs, part.labels.numpy())


def _of_labelled(name, subset, inputs, truth=None):
    """LabelledImages as a source.  inputs, truth: see Source"""
    inputs = {**inputs, "kind": name, "entries": len(subset)}
    sums = in_blocks(subset.checksums)
    return Source(name, Names(subset.names), inputs, subset.images, sums, truth=truth)


# --- folders and tar shards ---------------------------------------------------------------------


def _path(spec, where, size):
    folder = Path(spec).expanduser()
    if not spec or not folder.is_dir():
        raise FileNotFoundError(
            f"unlabelled pool {spec!r} is neither a folder nor one of heldout, "
            f"{', '.join(NAMED)}, nor tar shards (*.tar, *.tar.gz)"
        )
    return _of_folder(spelled(folder.resolve().name or "root"), folder, where, size)


def _of_folder(name, folder, where, size):
    if not folder.is_dir():
        raise FileNotFoundError(f"pool {name!r}: no folder {str(folder)!r}; remove the rest of it")
    return _of_listing(name, "folder", folder, list_folder(folder), where, size)


def _tars(spec, where, size):
    path = os.path.expanduser(spec)
    shards = [path] if os.path.isfile(path) else []
    for pattern in () if shards else numbered(path):
        paths = [p for p in glob.glob(_literal_folder(pattern)) if os.path.isfile(p)]
        if not paths:
            raise FileNotFoundError(
                f"no tar shard matches {pattern!r}; check the path, quote the pattern"
            )
        shards += paths
    name = (
        Path(path.rpartition(".t")[0]).name
        if shards == [path]
        else Path(shards[0]).resolve().parent.name
    )
    return _of_listing(spelled(name), "tar", path, list_tars(shards), where, size)


def numbered(path):
    """webdataset's {000000..000009} as the ten paths it stands for."""
    match = re.fullmatch(r"(.*)\{(\d{1,18})\.\.(\d{1,18})\}(.*)", path)
    if not match:
        return [path]
    before, first, last, after = match.groups()
    if (count := int(last) - int(first) + 1) > MAX_SHARDS:
        raise ValueError(f"{path!r} names {count:,} shards; give at most {MAX_SHARDS:,} at a time")
    return [f"{before}{n:0{len(first)}}{after}" for n in range(int(first), int(last) + 1)]


def _literal_folder(pattern):
    """The pattern, but where a folder of it is there as written, its brackets mean themselves."""
    if os.path.exists(pattern):
        return glob.escape(pattern)
    folder, name = os.path.split(pattern)
    return os.path.join(_literal_folder(folder), name) if name and folder != pattern else pattern


def _of_listing(name, kind, path, listing, where, size):
    left_out = listing.left_out()
    if not len(listing):
        hint = f" ({left_out})" if left_out else ""
        raise ValueError(
            f"pool {name!r}: no images in {str(path)!r}{hint}; see --unlabeled in --help"
        )
    notices = [f"pool {name!r}: {left_out}"] if left_out else []
    if listing.outside:
        notices.append(
            f"{len(listing.outside)} images of the pool {path} are behind links that lead out "
            f"of it, such as {listing.outside[0]!r}; they are read like the others"
        )
    key = {"kind": kind, "path": os.path.abspath(os.fspath(path))}
    safe = "".join(c if c.isalnum() else "_" for c in name)[:40]
    cache = Cache(where[1], safe, listing, key, size)
    inputs = {**key, "digest": listing.digest, "entries": len(listing)}
    return Source(name, listing.names, inputs, unused=listing.unused, notices=notices, cache=cache)


# --- pools that have a name of their own --------------------------------------------------------


def _cifar10(where, size):
    """The 50,000 training images; a folder DATA_DIR/cifar10/* is taken as it is."""
    data_dir, cache_dir = where
    folder = data_dir / "cifar10"
    if folder.is_dir() and not (folder / "train").is_dir():
        return _of_folder("cifar10", folder, where, size)
    cifar = load_labelled("cifar10", data_dir, size, cache_dir, bare=False)
    return _of_labelled("cifar10", cifar.train, cifar.inputs)


def _tiny_imagenet(where, size):
    """The 100,000 training images; a folder DATA_DIR/tiny-imagenet/<wnid>/* is taken as it is."""
    data_dir = where[0]
    copy, folder = data_dir / "tiny-imagenet", data_dir / "tiny-imagenet-200"
    if copy.is_dir() and not folder.is_dir():
        return _of_folder("tiny-imagenet", copy, where, size)
    if not folder.is_dir():
        clear_abandoned(data_dir, "tiny-imagenet-200")
        partial = unfinished(folder)
        try:
            with downloading("tiny-imagenet", f"looked in {str(folder)!r}; {WAY_OUT}"):
                url, md5 = TINY_IMAGENET_URL, TINY_IMAGENET_MD5
                archive = data_dir / url.rpartition("/")[2]
                if not check_integrity(archive, md5):
                    require_answer(url)
                download_and_extract_archive(url, data_dir, partial, archive.name, md5)
            os.rename(partial / "tiny-imagenet-200", folder)
        finally:
            remove(partial)
    return _of_folder("tiny-imagenet", folder / "train", where, size)


def _stl10(where, size):
    """The 100,000 unlabelled images, memory-mapped: torchvision would load 2.6 GB."""
    (data_dir, cache_dir), stl10 = where, torchvision.datasets.STL10
    way_out = f"looked in {str(data_dir)!r}; {WAY_OUT}"
    from_torchvision("stl10", stl10, data_dir, way_out, split="test")
    path = data_dir / stl10.base_folder / "unlabeled_X.bin"
    pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96)

    def get(i):
        return np.ascontiguousarray(pixels[i].transpose(2, 1, 0))  # stored as (3, W, H)

    count, digest = len(pixels), sha256_of_file(path)
    inputs = {"kind": "torchvision", "path": str(path), "digest": digest, "entries": count}
    cache = Cache(cache_dir, "stl10", MemorySource(count, get), inputs, size)
    return Source("stl10", Names(map(str, range(count))), inputs, cache=cache)


def _patches(where, size):
    """Pieces of scikit-learn's two photographs, a temple and a flower: images of no class."""
    from sklearn.datasets import load_sample_images  # here: a second to import, for this alone

    photographs, images, hashes, names = load_sample_images(), [], [], []
    for file, photograph in zip(photographs.filenames, photographs.images, strict=True):
        height, width = photograph.shape[:2]
        for side, stride in PATCH_SCALES:
            for top in range(0, height - side + 1, stride):
                for left in range(0, width - side + 1, stride):
                    patch = photograph[top : top + side, left : left + side]
                    images.append(fit_square(patch, size))
                    hashes.append(pixel_hash(patch))
                    names.append(f"{os.path.basename(file)}/{side}px-{top}-{left}")
    images, digest = np.stack(images), hashlib.sha256(b"".join(hashes)).hexdigest()
    inputs = {"kind": "patches", "path": "sklearn.datasets.load_sample_images"}
    inputs |= {"digest": digest, "entries": len(names)}
    sums = in_blocks(checksums(images))
    truth = np.full(len(names), NO_CLASS)
    return Source("patches", Names(names), inputs, Images.of(images), sums, truth=truth)


NAMED = {"cifar10": _cifar10, "tiny-imagenet": _tiny_imagenet, "stl10": _stl10, "patches": _patches}
