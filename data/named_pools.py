"""The pools that have a name of their own: three data sets, and patches of two photographs."""

import hashlib
import os

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

import distributed
from models.download import downloading, require_answer, sha256_of_file

from .cache import Cache
from .decode import checksums, fit_square, pixel_hash
from .images import Images
from .labelled import load_labelled
from .listing import MemorySource, Names, in_blocks
from .source import NO_CLASS, Source, of_folder, of_labelled
from .whole_file import clear_abandoned, remove

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
PATCH_SCALES = ((64, 64), (96, 96), (128, 64))  # side and stride, pixels; 258 patches
WAY_OUT = "give a folder of images with --unlabeled, or use heldout or patches (both offline)"


def _cifar10(data_dir, size):
    """The 50,000 training images; a folder DATA_DIR/cifar10/* is taken as it is."""
    folder = data_dir / "cifar10"
    if folder.is_dir() and not (folder / "train").is_dir():
        return of_folder("cifar10", folder, data_dir, size)
    cifar = load_labelled("cifar10", data_dir, size, bare=False)
    return of_labelled("cifar10", cifar.train, cifar.inputs)


def _tiny_imagenet(data_dir, size):
    """The 100,000 training images; a folder DATA_DIR/tiny-imagenet/<wnid>/* is taken as it is."""
    copy, folder = data_dir / "tiny-imagenet", data_dir / "tiny-imagenet-200"
    if copy.is_dir() and not folder.is_dir():
        return of_folder("tiny-imagenet", copy, data_dir, size)
    if not folder.is_dir():
        clear_abandoned(data_dir, "tiny-imagenet-200")
        partial = data_dir / f"tiny-imagenet-200.partial-{distributed.unique_name()}"
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
    return of_folder("tiny-imagenet", folder / "train", data_dir, size)


def _stl10(data_dir, size):
    """The 100,000 unlabelled images.  torchvision downloads and checks, but would load 2.6 GB."""
    stl10 = torchvision.datasets.STL10
    try:
        stl10(data_dir, split="test")
    except RuntimeError:  # missing or damaged
        with downloading("stl10", f"looked in {str(data_dir)!r}; {WAY_OUT}"):
            if not check_integrity(data_dir / stl10.filename, stl10.tgz_md5):
                require_answer(stl10.url)
            stl10(data_dir, split="test", download=True)
    path = data_dir / stl10.base_folder / "unlabeled_X.bin"
    pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96)

    def get(i):
        return np.ascontiguousarray(pixels[i].transpose(2, 1, 0))  # stored as (3, W, H)

    count, digest = len(pixels), sha256_of_file(path)
    inputs = {"kind": "torchvision", "path": str(path), "digest": digest, "entries": count}
    cache = Cache(data_dir / "cache", "stl10", MemorySource(count, get), inputs, size)
    return Source("stl10", Names(map(str, range(count))), inputs, cache=cache)


def _patches(data_dir, size):
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
