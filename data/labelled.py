"""Labelled data sets, in an order that every copy of the same images shares."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.datasets.utils import check_integrity

from models.download import downloading, require_answer, sha256_of_file

from .cache import Cache
from .decode import checksums, fit_square, pixel_hash
from .files import called, class_folders, list_folder
from .images import Images
from .listing import MemorySource
from .splits import cut_test

LABELLED_SETS = ("cifar100", "cifar10", "digits", "folder")
CIFAR = {"cifar100": ("CIFAR100", 100), "cifar10": ("CIFAR10", 10)}  # torchvision's class, classes
TEST_SHARE = 0.2  # of the images of class folders without a test set
MAX_UNREADABLE = 0.01  # of a labelled set; above this share the set itself is taken to be broken


@dataclass(frozen=True)
class LabelledImages:
    """N images and their labels.

    labels: int64 (N,), positions in the set's classes
    names: str (N,), the path inside the set, or the index in its archive
    pixel_hashes: uint8 (N, 16), `pixel_hash` of the images as stored
    checksums: uint8 (N, 16), `checksums` of the images as resized
    """

    images: Images
    labels: torch.Tensor
    names: np.ndarray
    pixel_hashes: np.ndarray
    checksums: np.ndarray

    def __len__(self):
        return len(self.labels)

    def subset(self, index):
        """Those at `index` (M,) int64, in that order; no image is copied."""
        rest = (a[index.numpy()] for a in (self.names, self.pixel_hashes, self.checksums))
        return LabelledImages(self.images.subset(index), self.labels[index], *rest)


@dataclass(frozen=True)
class LabelledSet:
    """Train and test images, each in canonical order: by class, then pixel hash, then name.

    inputs: JSON-able dict: kind, path, digest, and `pixels`, the same for every copy of the set
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    inputs: dict


def load_labelled(name, data_dir, input_size, bare=True):
    """Load a labelled set by name, its images `input_size` pixels square; -> LabelledSet

    cifar100, cifar10: DATA_DIR/<name>/{train,test}/<class>/*, else (unless `bare` is False)
        DATA_DIR/{train,test}/<class>/* where that has the right number of classes, else
        torchvision's archive, downloaded
    digits: scikit-learn's 1,797 handwritten digits, of which a fixed third is the test set
    folder: DATA_DIR/{train,test}/<class>/*; where there is no test, a fifth of every class of train
        is the test set, which `inputs` says

    Raises ValueError or FileNotFoundError for data that cannot be used, ConnectionError for a
    download that fails.
    """
    data_dir = Path(data_dir)
    if name == "digits":
        return _load_digits(input_size)
    if name == "folder":
        loaded = _load_folders(name, data_dir, data_dir, input_size)
        return replace(loaded, name=called(name, data_dir))
    if name not in CIFAR:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(LABELLED_SETS)}")
    class_name, count = CIFAR[name]
    archive = getattr(torchvision.datasets, class_name)  # looked up here, because tests patch it
    if (data_dir / name / "train").is_dir() or (data_dir / name / "test").is_dir():
        return _load_folders(name, data_dir / name, data_dir, input_size, count)
    have_archive = any((data_dir / f).exists() for f in (archive.base_folder, archive.filename))
    if bare and not have_archive and len(class_folders(data_dir / "train")) == count:
        return _load_folders(name, data_dir, data_dir, input_size, count)
    return _load_archive(name, archive, data_dir, input_size)


def _load_archive(name, archive, data_dir, size):
    """torchvision's pickles; torchvision downloads and checks them."""
    layout = data_dir / name / "{train,test}" / "<class>" / "*"
    way_out = (
        f"looked in {str(data_dir)!r}; put images at {str(layout)!r}, "
        "or work offline with --dataset digits (--preset demo)"
    )
    try:
        train = archive(data_dir, train=True)
    except RuntimeError:  # missing or damaged
        with downloading(name, way_out):
            if not check_integrity(data_dir / archive.filename, archive.tgz_md5):
                require_answer(archive.url)
            train = archive(data_dir, train=True, download=True)
    test = archive(data_dir, train=False)

    folder = data_dir / archive.base_folder
    files = [archive.meta["filename"], *dict(archive.train_list), *dict(archive.test_list)]
    digest = {file: sha256_of_file(folder / file) for file in sorted(files)}
    subsets = []
    for subset, pickles in (("train", train), ("test", test)):
        labels = np.array(pickles.targets, np.int64)
        source = MemorySource(len(labels), pickles.data.__getitem__)
        key = {"subset": subset, "files": digest}
        cache = Cache(data_dir / "cache", f"{name}-{subset}", source, key, size, hashes=True)
        subsets.append(_from_cache(cache, labels, np.arange(len(labels)).astype(str)))
    return _labelled_set(name, train.classes, subsets, "torchvision", folder, digest)


def _load_folders(name, root, data_dir, size, expected=None):
    """ROOT/{train,test}/<class>/*, with exactly `expected` classes unless that is None."""
    classes = _checked_classes(name, root, expected)
    position = {c: i for i, c in enumerate(classes)}
    subsets, digest, cut = [], {}, {}
    for subset in ("train", "test") if (root / "test").is_dir() else ("train",):
        folder = root / subset
        present = [c for c in classes if (folder / c).is_dir()]
        listing = list_folder(folder, present)
        names = np.array(list(listing.names), str)
        labels = np.array([position[name.split("/")[0]] for name in names], np.int64)
        if empty := set(present) - {classes[label] for label in labels}:
            shown = str(folder / min(empty))
            raise ValueError(f"the class folder {shown!r} holds no images; fill it or remove it")
        digest[subset] = listing.digest
        key = {"subset": subset, "path": str(folder.resolve())}
        cache = Cache(data_dir / "cache", f"{name}-{subset}", listing, key, size, hashes=True)
        subsets.append(_from_cache(cache, labels, names))
    if len(subsets) == 1:
        cut = {"test": {"cut_from": "train", "share": TEST_SHARE}}
        subsets = _without_test(*subsets, TEST_SHARE, classes)
        warnings.warn(
            f"no folder {str(root / 'test')!r}: {len(subsets[1])} images, {TEST_SHARE:.0%} of "
            "every class of train, are the test set and not trained on",
            stacklevel=2,
        )
    return _labelled_set(name, classes, subsets, "folder", root, digest, **cut)


def _checked_classes(name, root, expected):
    """The class names of ROOT/train, sorted, once they and those of ROOT/test make sense."""
    for subset in ("train", "test"):
        if not (root / subset).is_dir() and (subset == "train" or expected is not None):
            raise FileNotFoundError(
                f"data set {name!r}: no folder {str(root / subset)!r}; put images at "
                f"{str(root / subset / '<class>' / '*')!r} or choose another --data-dir"
            )
    train, test = class_folders(root / "train"), class_folders(root / "test")
    for subset, found in (("train", train), ("test", test)):
        if expected is not None and len(found) != expected:
            raise ValueError(
                f"{str(root / subset)!r} has {len(found)} class folders, {name} has {expected}; "
                "complete it, or move it away to have the official archive downloaded"
            )
    if len(train) < 2:
        raise ValueError(
            f"{str(root / 'train')!r} has {len(train)} class folder(s); put images of at least "
            "2 classes there, one folder each"
        )
    if not test and (root / "test").is_dir():
        raise ValueError(f"{str(root / 'test')!r} has no class folders; put test images there")
    if strangers := sorted(set(test) - set(train)):
        shown = ", ".join(map(repr, strangers[:5]))
        raise ValueError(
            f"{str(root / 'test')!r} has classes that train lacks: {shown}; rename or remove them"
        )
    return train


def _from_cache(cache, labels, names):
    """The readable images of a cache, in canonical order; -> LabelledImages

    labels: int64 (N,), names: str (N,), both in the order of the cache's source
    """
    blocks, unreadable = cache.open()
    if unreadable:
        position, reason = next(iter(unreadable.items()))
        found = (
            f"{cache.name}: {len(unreadable)} of {len(labels)} labelled images cannot be read, "
            f"the first is {str(names[position])!r} ({reason})"
        )
        if len(unreadable) > MAX_UNREADABLE * len(labels):
            raise ValueError(f"{found}; replace or remove them")
        warnings.warn(f"{found}; left out", stacklevel=2)
    whole = LabelledImages(
        Images.of(*(block.images for block in blocks)),
        torch.from_numpy(labels),
        names,
        np.concatenate([block.pixel_hashes for block in blocks]),
        np.concatenate([block.checksums for block in blocks]),
    )
    order = canonical_order(whole)
    readable = whole.subset(order[~np.isin(order, list(unreadable))])
    if lost := set(labels.tolist()) - set(readable.labels.tolist()):
        raise ValueError(f"{cache.name}: no image of class {min(lost)} can be read; replace them")
    return readable


def canonical_order(labelled):
    """The positions of LabelledImages by class, then pixel hash, then name: int64 (N,)"""
    first, second = labelled.pixel_hashes.view(">u8").T  # compare like the bytes they hold
    order = np.lexsort((labelled.names, second, first, labelled.labels.numpy()))
    return torch.from_numpy(order)


def _without_test(whole, share, classes):
    """LabelledImages -> those for training and those for the test, which are cut from them."""
    order = canonical_order(whole)
    parts = cut_test(whole.labels.numpy(), share, classes)
    return [whole.subset(order[np.isin(order, part)]) for part in parts]


def _labelled_set(name, classes, subsets, kind, path, digest, **more):
    """subsets: LabelledImages for training and for the test;  the others: of `inputs`"""
    pixels = hashlib.sha256()
    for subset in subsets:
        pixels.update(subset.labels.numpy().tobytes())
        pixels.update(subset.pixel_hashes.tobytes())
    inputs = {"kind": kind, "path": str(path), "digest": digest, "pixels": pixels.hexdigest()}
    inputs |= more
    return LabelledSet(name, tuple(classes), *subsets, inputs)


def _load_digits(size):
    from sklearn.datasets import load_digits  # here: a second to import, for this set alone

    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0..16 in the source
    images = [np.ascontiguousarray(image) for image in np.repeat(grey[..., None], 3, axis=3)]
    hashes = np.array([list(pixel_hash(image)) for image in images], np.uint8)
    fitted = np.stack([fit_square(image, size) for image in images])
    names, labels = np.arange(len(labels)).astype(str), torch.from_numpy(labels.astype(np.int64))
    whole = LabelledImages(Images.of(fitted), labels, names, hashes, checksums(fitted))
    subsets = _without_test(whole, 1 / 3, "0123456789")
    path, digest = "sklearn.datasets.load_digits", hashlib.sha256(hashes).hexdigest()
    return _labelled_set("digits", "0123456789", subsets, "digits", path, digest)
