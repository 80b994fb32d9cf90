"""Labelled data sets, in an order that every copy of the same images shares."""

import hashlib
import unicodedata
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.datasets.utils import check_integrity

from files import sha256_of_file
from models.download import downloading, require_answer

from .cache import Cache
from .decode import checksums, fit_square, pixel_hash
from .images import Images
from .listing import MemorySource, class_folders, list_folder, spelled
from .splits import Split, cut_test

LABELLED_SETS = ("cifar100", "cifar10", "digits", "folder")
CIFAR = {"cifar100": ("CIFAR100", 100), "cifar10": ("CIFAR10", 10)}  # torchvision's class, classes
TEST_SHARE = 0.2  # of the images of class folders without a test set
VALIDATION = ("val", "valid", "validation")  # names of a folder of validation images
SHARE = 20  # of the images with tags one in 20 is for validation, another one for the test
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
        columns = (a[index.numpy()] for a in (self.names, self.pixel_hashes, self.checksums))
        return LabelledImages(self.images.subset(index), self.labels[index], *columns)


@dataclass(frozen=True)
class LabelledSet:
    """Train and test images, each in canonical order: by class, then pixel hash, then name.

    inputs: JSON-able dict: kind, path, digest, and `pixels`, the same for every copy of the set
    val: int64 positions in `train` of the images that are for validation, None where none are given
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    inputs: dict
    val: torch.Tensor | None = None


def display_name(dataset, data_dir):
    """What tables, titles and file names call a data set: `folder` by the name of its folder."""
    return (dataset == "folder" and spelled(Path(data_dir).resolve().name)) or dataset


def load_labelled(name, data_dir, input_size, cache_dir=None, bare=True):
    """Load a labelled set by name, its images `input_size` pixels square; -> LabelledSet

    cifar100, cifar10: DATA_DIR/<name>/{train,test}/<class>/*, else (unless `bare` is False)
        DATA_DIR/{train,test}/<class>/* where that has the right number of classes, else
        torchvision's archive, downloaded
    digits: scikit-learn's 1,797 handwritten digits, of which a fixed third is the test set
    folder: DATA_DIR/{train,test}/<class>/*; DATA_DIR/val (or valid, validation) has the validation
        images, or is the test set where there is no test; without either, a fifth of every class
        of train is the test set, which `inputs` says
    cache_dir: where decoded images are kept, None for DATA_DIR/cache

    Raises ValueError or FileNotFoundError for data that cannot be used, ConnectionError for a
    download that fails.
    """
    data_dir = Path(data_dir)
    cache_dir = Path(cache_dir or data_dir / "cache")
    if name == "digits":
        return _load_digits(input_size)
    if name == "folder":
        loaded = _load_folders(name, data_dir, cache_dir, input_size)
        return replace(loaded, name=display_name(name, data_dir))
    if name not in CIFAR:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(LABELLED_SETS)}")
    class_name, count = CIFAR[name]
    archive = getattr(torchvision.datasets, class_name)  # looked up here, because tests patch it
    if (data_dir / name / "train").is_dir() or (data_dir / name / "test").is_dir():
        return _load_folders(name, data_dir / name, cache_dir, input_size, count)
    have_archive = any((data_dir / f).exists() for f in (archive.base_folder, archive.filename))
    if bare and not have_archive and len(class_folders(data_dir / "train")) == count:
        return _load_folders(name, data_dir, cache_dir, input_size, count)
    return _load_archive(name, archive, data_dir, cache_dir, input_size)


def from_torchvision(name, archive, data_dir, way_out, **part):
    """A data set of torchvision, which downloads and checks it where it is missing or damaged."""
    try:
        return archive(data_dir, **part)
    except RuntimeError:
        with downloading(name, way_out):
            if not check_integrity(data_dir / archive.filename, archive.tgz_md5):
                require_answer(archive.url)
            return archive(data_dir, download=True, **part)


def _load_archive(name, archive, data_dir, cache_dir, size):
    """torchvision's pickles."""
    layout = data_dir / name / "{train,test}" / "<class>" / "*"
    way_out = (
        f"looked in {str(data_dir)!r}; put images at {str(layout)!r}, "
        "or work offline with --dataset digits (--preset demo)"
    )
    train = from_torchvision(name, archive, data_dir, way_out, train=True)
    test = archive(data_dir, train=False)

    folder = data_dir / archive.base_folder
    files = [archive.meta["filename"], *dict(archive.train_list), *dict(archive.test_list)]
    digest = {file: sha256_of_file(folder / file) for file in sorted(files)}
    subsets = []
    for subset, pickles in (("train", train), ("test", test)):
        labels = np.array(pickles.targets, np.int64)
        source = MemorySource(len(labels), pickles.data.__getitem__)
        key = {"subset": subset, "files": digest}
        cache = Cache(cache_dir, f"{name}-{subset}", source, key, size, hashes=True)
        subsets.append(_from_cache(cache, labels, np.arange(len(labels)).astype(str)))
    return _labelled_set(name, train.classes, subsets, "torchvision", folder, digest)


def _load_folders(name, root, cache_dir, size, expected=None):
    """ROOT/{train,val,test}/<class>/*;  expected: how many classes there must be, None for any"""
    places = _places(name, root, expected)
    classes = _checked_classes(name, places, expected)
    position = {_nfc(c): i for i, c in enumerate(classes)}
    subsets, digest, more = {}, {}, {}
    for subset, folder in places.items():
        present = class_folders(folder)
        listing = list_folder(folder, present)
        names = np.array(list(listing.names), str)
        number = {spelled(c): position[_nfc(c)] for c in present}
        labels = np.array([number[name.split("/")[0]] for name in names], np.int64)
        if empty := {number[spelled(c)] for c in present} - set(labels.tolist()):
            shown = str(folder / classes[min(empty)])
            raise ValueError(f"the class folder {shown!r} holds no images; fill it or remove it")
        if left_out := listing.left_out():
            warnings.warn(f"{str(folder)!r}: {left_out}", stacklevel=2)
        digest[subset] = listing.digest
        key = {"subset": subset, "path": str(folder.resolve())}
        cache = Cache(cache_dir, f"{name}-{subset}", listing, key, size, hashes=True)
        subsets[subset] = _from_cache(cache, labels, names)
    train, test, val = (subsets.get(subset) for subset in ("train", "test", "val"))
    if val is not None:
        train, val = _joined(train, val)
        warnings.warn(
            f"{str(places['val'])!r}: its {len(val)} images are for validation, in place of "
            "--val-per-class images cut from train",
            stacklevel=2,
        )
    if test is None:
        more = {"test": {"cut_from": "train", "share": TEST_SHARE}}
        train, test = _without_test(train, TEST_SHARE, classes)
        warnings.warn(
            f"no folder {str(root / 'test')!r}: {len(test)} images, {TEST_SHARE:.0%} of "
            "every class of train, are the test set and not trained on",
            stacklevel=2,
        )
    return _labelled_set(name, classes, (train, test), "folder", root, digest, val, **more)


def _places(name, root, expected):
    """The folder of each subset: train, perhaps test, perhaps val."""
    places = {subset: root / subset for subset in ("train", "test") if (root / subset).is_dir()}
    val = [root / folder for folder in VALIDATION if (root / folder).is_dir()]
    if len(val) > 1:
        raise ValueError(f"{str(val[0])!r} and {str(val[1])!r}: which one validates? remove one")
    if val and "test" in places:
        places["val"] = val[0]
    elif val:
        places["test"] = val[0]
        warnings.warn(
            f"no folder {str(root / 'test')!r}: {str(val[0])!r} is the test set", stacklevel=2
        )
    for subset in ("train", "test"):
        if subset not in places and (subset == "train" or expected is not None):
            raise FileNotFoundError(
                f"data set {name!r}: no folder {str(root / subset)!r}; put images at "
                f"{str(root / subset / '<class>' / '*')!r} or choose another --data-dir"
            )
    return places


def _checked_classes(name, places, expected):
    """The class names of train, sorted, once they and those of the other folders make sense."""
    train = class_folders(places["train"])
    for subset, place in places.items():
        folders, place = class_folders(place), str(place)
        if subset != "val" and expected is not None and len(folders) != expected:
            raise ValueError(
                f"{place!r} has {len(folders)} class folders, {name} has {expected}; "
                "complete it, or move it away to have the official archive downloaded"
            )
        if subset == "train" and len(train) < 2:
            raise ValueError(
                f"{place!r} has {len(train)} class folder(s); put images of at least "
                "2 classes there, one folder each"
            )
        if not folders:
            raise ValueError(f"{place!r} has no class folders; put {subset} images there")
        if len({_nfc(c) for c in folders}) < len(folders):
            twice = next(
                c for c in folders if [_nfc(other) for other in folders].count(_nfc(c)) > 1
            )
            raise ValueError(
                f"{place!r} has the class {twice!r} twice, in two Unicode forms; merge the folders"
            )
        if strangers := sorted({_nfc(c) for c in folders} - {_nfc(c) for c in train}):
            shown = ", ".join(map(repr, strangers[:5]))
            raise ValueError(
                f"{place!r} has classes that train lacks: {shown}; rename or remove them"
            )
    return train


def _nfc(name):
    """The name in one of the Unicode forms: file systems and archives spell é in two ways."""
    return unicodedata.normalize("NFC", name)


def _joined(train, val):
    """LabelledImages for training and for validation as one, in canonical order; and where in it
    the latter are.
    """
    whole = LabelledImages(
        Images.joined(train.images, val.images),
        torch.cat([train.labels, val.labels]),
        *(
            np.concatenate([getattr(part, name) for part in (train, val)])
            for name in ("names", "pixel_hashes", "checksums")
        ),
    )
    order = canonical_order(whole)
    return whole.subset(order), (order >= len(train)).nonzero()[:, 0]


def _from_cache(cache, labels, names):
    """The readable images of a cache, in canonical order; -> LabelledImages

    labels: int64 (N,), names: str (N,), both in the order of the cache's source
    """
    blocks, unreadable = cache.open()
    if unreadable:
        position, reason = next(iter(unreadable.items()))
        message = (
            f"{cache.name}: {len(unreadable)} of {len(labels)} labelled images cannot be read, "
            f"the first is {str(names[position])!r} ({reason})"
        )
        if len(unreadable) > MAX_UNREADABLE * len(labels):
            raise ValueError(f"{message}; replace or remove them")
        warnings.warn(f"{message}; left out", stacklevel=2)
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


def _labelled_set(name, classes, subsets, kind, path, digest, val=None, **more):
    """subsets: LabelledImages for training and for the test;  val: see LabelledSet;  the others:
    of `inputs`
    """
    pixels = hashlib.sha256()
    for subset in subsets:
        pixels.update(subset.labels.numpy().tobytes())
        pixels.update(subset.pixel_hashes.tobytes())
    if val is not None:
        pixels.update(val.numpy().tobytes())
    inputs = {"kind": kind, "path": str(path), "digest": digest, "pixels": pixels.hexdigest()}
    inputs |= more
    return LabelledSet(name, tuple(classes), *subsets, inputs, val)


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


# --- a pool as a labelled set -------------------------------------------------------------------


def tagged(pool, seed):
    """The names of a pool's folders are tags, as hashtags are the paper's.

    -> LabelledSet whose classes are the folders of a pool; its Split

    What the pool skips, and what lies in no folder, is left out.  Validation and test images are
    drawn at random, so that a folder of few images is no error.
    Raises ValueError for a source that has no folders, and for too few images or folders.
    """
    for source in pool.sources:
        if source.tag(0) is None:
            raise ValueError(
                f"the pool {source.name} has no folder names that could be tags; name "
                f"tiny-imagenet, a folder of class folders, or tar shards of them"
            )
    folders = np.array([pool.folder_of(position) for position in range(len(pool))])
    position = np.flatnonzero(pool.scorable(0, len(pool)) & (folders != ""))
    classes, labels = np.unique(folders[position], return_inverse=True)
    if len(classes) < 2 or len(position) < SHARE:
        raise ValueError(
            f"the pool {pool.sources[0].name} has {len(position)} images in {len(classes)} folders "
            f"whose names could be tags; 2 folders and {SHARE} images are needed"
        )
    sums = pool.checksums(position)  # of the images as resized: what a pool keeps of them
    whole = LabelledImages(
        pool.images.subset(torch.from_numpy(position)),
        torch.from_numpy(labels.astype(np.int64)),
        np.array([pool.name_of(i) for i in position]),
        sums,
        sums,
    )
    order, part = np.random.default_rng(seed).permutation(len(whole)), len(whole) // SHARE
    val, test, train = (torch.from_numpy(np.sort(p)) for p in np.split(order, [part, 2 * part]))
    pixels = hashlib.sha256(labels.astype(np.int64).tobytes() + sums.tobytes()).hexdigest()
    inputs = {"kind": "tags", **{source.name: source.inputs for source in pool.sources}}
    name = f"tags of {', '.join(source.name for source in pool.sources)}"
    inputs |= {"pixels": pixels}
    labelled = LabelledSet(name, tuple(classes.tolist()), whole, whole.subset(test), inputs)
    return labelled, Split(train, val, heldout=train[:0])
