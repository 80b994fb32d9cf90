"""Labelled data sets, in an order that every copy of the same images shares."""

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity

from .cache import Cache
from .decode import fingerprints, fit_square, pixel_hash
from .download import downloading, require_answer
from .files import class_folders, list_folder, sha256_of_file
from .listing import Pictures

LABELLED_SETS = ("cifar100", "cifar10", "digits", "folder")
CIFAR = {"cifar100": ("CIFAR100", 100), "cifar10": ("CIFAR10", 10)}  # torchvision's class, classes
COLUMNS = ("images", "labels", "names", "hashes", "prints")
MAX_UNREADABLE = 0.01  # of a labelled set; more is no accident of single files


@dataclass(frozen=True)
class LabelledSet:
    """Train and test images, each sorted by class, then pixel hash, then name.

    *_images: uint8 (N, S, S, 3);  *_labels: int64 (N,), positions in `classes`;
    *_hashes: uint8 (N, 16), `pixel_hash`;  *_prints: uint8 (N, 16), `fingerprints` of the images;
    *_names: str (N,), path inside the set or its index;  inputs: JSON-able dict: kind, path, digest
    """

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    train_names: np.ndarray
    train_hashes: np.ndarray
    train_prints: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_names: np.ndarray
    test_hashes: np.ndarray
    test_prints: np.ndarray
    inputs: dict = field(default_factory=dict)


def load_labelled(name, data_dir, input_size):
    """Load a labelled set by name, its images `input_size` pixels square; -> LabelledSet

    cifar100, cifar10: DATA_DIR/<name>/{train,test}/<class>/*, else DATA_DIR/{train,test}/<class>/*
        where that has the right number of classes, else torchvision's archive, downloaded
    digits: scikit-learn's 1,797 handwritten digits, a fixed third of them the test set
    folder: DATA_DIR/{train,test}/<class>/*

    Raises ValueError or FileNotFoundError for data that cannot be used, ConnectionError for a
    download that fails.
    """
    data_dir = Path(data_dir)
    if name == "digits":
        return _load_digits(input_size)
    if name == "folder":
        return _load_folders(name, data_dir, data_dir, input_size)
    if name in CIFAR:
        return _load_cifar(name, data_dir, input_size)
    raise ValueError(f"unknown data set {name!r}; choose from {', '.join(LABELLED_SETS)}")


def load_cifar_copy(name, data_dir, input_size):
    """Like `load_labelled`, but never takes DATA_DIR/{train,test}: those may be another set."""
    return _load_cifar(name, Path(data_dir), input_size, bare=False)


def _load_cifar(name, data_dir, size, bare=True):
    class_name, count = CIFAR[name]
    archive = getattr(torchvision.datasets, class_name)  # at call time: a test may patch it
    if (data_dir / name / "train").is_dir() or (data_dir / name / "test").is_dir():
        return _load_folders(name, data_dir / name, data_dir, size, count)
    have_archive = any((data_dir / f).exists() for f in (archive.base_folder, archive.filename))
    if bare and not have_archive and len(class_folders(data_dir / "train")) == count:
        return _load_folders(name, data_dir, data_dir, size, count)
    return _load_archive(name, archive, data_dir, size)


def _load_archive(name, archive, data_dir, size):
    """torchvision's pickles, downloaded and checked by torchvision."""
    layout = data_dir / name / "{train,test}" / "<class>" / "*"
    way_out = (
        f"looked in {str(data_dir)!r}; put images at {str(layout)!r}, "
        "or work offline with --dataset digits (--preset demo)"
    )
    try:
        train = archive(data_dir, train=True)
    except RuntimeError:  # not there, or damaged
        with downloading(name, way_out):
            if not check_integrity(data_dir / archive.filename, archive.tgz_md5):
                require_answer(archive.url)
            train = archive(data_dir, train=True, download=True)
    test = archive(data_dir, train=False)

    folder = data_dir / archive.base_folder
    files = [archive.meta["filename"], *dict(archive.train_list), *dict(archive.test_list)]
    digest = {file: sha256_of_file(folder / file) for file in sorted(files)}
    parts = {}
    for part, pickles in (("train", train), ("test", test)):
        labels = np.array(pickles.targets, np.int64)
        names = np.arange(len(labels)).astype(str)
        key = {"part": part, "files": digest}
        source = Pictures(len(labels), pickles.data.__getitem__)
        parts[part] = _arranged(f"{name}-{part}", data_dir, key, labels, names, source, size)
    inputs = {"kind": "torchvision", "path": str(folder), "digest": digest}
    return _labelled_set(name, train.classes, parts, inputs)


def _load_folders(name, root, data_dir, size, expected=None):
    """ROOT/{train,test}/<class>/*, with exactly `expected` classes unless that is None."""
    classes = _checked_classes(name, root, expected)
    parts, digest = {}, {}
    for part in ("train", "test"):
        folder = root / part
        present = [c for c in classes if (folder / c).is_dir()]
        listing = list_folder(folder, present)
        names = np.array(list(listing.names), str)
        position = {c: i for i, c in enumerate(classes)}
        labels = np.array([position[name.split("/")[0]] for name in names], np.int64)
        for c, filled in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
            if not filled and c in present:
                raise ValueError(
                    f"the class folder {str(folder / c)!r} holds no images; fill it or remove it"
                )
        stamps = [stamp for *_, stamp in listing.parts]
        key = {"part": part, "path": str(folder.resolve()), "stamps": stamps}
        digest[part] = listing.digest
        parts[part] = _arranged(f"{name}-{part}", data_dir, key, labels, names, listing, size)
    inputs = {"kind": "folder", "path": str(root), "digest": digest}
    return _labelled_set(name, classes, parts, inputs)


def _checked_classes(name, root, expected):
    """The class names of ROOT/train, sorted, once they and those of ROOT/test make sense."""
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"data set {name!r}: no folder {str(root / part)!r}; put images at "
                f"{str(root / part / '<class>' / '*')!r} or choose another --data-dir"
            )
    train, test = class_folders(root / "train"), class_folders(root / "test")
    for part, found in (("train", train), ("test", test)):
        if expected is not None and len(found) != expected:
            raise ValueError(
                f"{str(root / part)!r} has {len(found)} class folders, {name} has {expected}; "
                "complete it, or move it away to have the official archive downloaded"
            )
    if len(train) < 2:
        raise ValueError(
            f"{str(root / 'train')!r} has {len(train)} class folder(s); put images of at least "
            "2 classes there, one folder each"
        )
    if not test:
        raise ValueError(f"{str(root / 'test')!r} has no class folders; put test images there")
    if strangers := sorted(set(test) - set(train)):
        shown = ", ".join(map(repr, strangers[:5]))
        raise ValueError(
            f"{str(root / 'test')!r} has classes that train lacks: {shown}; rename or remove them"
        )
    return train


def _arranged(name, data_dir, key, labels, names, source, size):
    """One part in its canonical order; -> its columns of LabelledSet."""

    def arrange(hashes, skipped):
        keep = np.setdiff1d(np.arange(len(labels)), list(skipped))
        keep = sorted(keep, key=lambda i: (labels[i], hashes[i].tobytes(), names[i]))
        return np.array(keep, np.int64)

    whole = [(0, len(labels), key)] if len(labels) else []
    [cache] = Cache(data_dir / "cache", name, source, whole, size, arrange).open()
    if cache.skipped:
        position, reason = next(iter(cache.skipped.items()))
        found = (
            f"{name}: {len(cache.skipped)} of {len(labels)} labelled images cannot be read, "
            f"the first is {str(names[position])!r} ({reason})"
        )
        if len(cache.skipped) > MAX_UNREADABLE * len(labels):
            raise ValueError(f"{found}; replace or remove them")
        warnings.warn(f"{found}; left out", stacklevel=2)
    if lost := set(labels.tolist()) - set(labels[cache.order].tolist()):
        raise ValueError(f"{name}: no image of class {min(lost)} can be read; replace them")
    order = cache.order
    return cache.images, labels[order], names[order], cache.hashes, cache.prints


def _labelled_set(name, classes, parts, inputs):
    columns = {
        f"{part}_{column}": values
        for part, arrays in parts.items()
        for column, values in zip(COLUMNS, arrays, strict=True)
    }
    inputs = {**inputs, "pixels": _pixels_digest(columns)}
    return LabelledSet(name=name, classes=tuple(classes), inputs=inputs, **columns)


def _pixels_digest(columns):
    """sha256 over the labels and pixel hashes of both parts: the same for every copy of a set."""
    digest = hashlib.sha256()
    for part in ("train", "test"):
        digest.update(columns[f"{part}_labels"].tobytes())
        digest.update(np.ascontiguousarray(columns[f"{part}_hashes"]).tobytes())
    return digest.hexdigest()


def _load_digits(size):
    from sklearn.datasets import load_digits  # here: a second to import, for this set alone
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0..16 in the source
    images = [np.ascontiguousarray(image) for image in np.repeat(grey[..., None], 3, axis=3)]
    hashes = np.array([list(pixel_hash(image)) for image in images], np.uint8)
    fitted = np.stack([fit_square(image, size) for image in images])
    names = np.arange(len(labels)).astype(str)
    labels = labels.astype(np.int64)
    # A fixed third, whatever --seed is: results of different seeds share one test set.
    parts = train_test_split(names.astype(int), test_size=1 / 3, stratify=labels, random_state=0)
    arrays = {}
    for part, chosen in zip(("train", "test"), parts, strict=True):
        order = sorted(chosen, key=lambda i: (labels[i], hashes[i].tobytes(), i))
        images = fitted[order]
        columns = labels[order], names[order], hashes[order], fingerprints(images)
        arrays[part] = images, *columns
    inputs = {
        "kind": "digits",
        "path": "sklearn.datasets.load_digits",
        "digest": hashlib.sha256(hashes).hexdigest(),
    }
    return _labelled_set("digits", map(str, range(10)), arrays, inputs)
