"""Images: labelled sets and unlabelled pools as uint8 arrays.

decode      bytes -> RGB pixels, the square crop, the hash of the pixels
rows        many images to rows of pixels in a file
worker      a program that does so, for
workers     decoding in processes of its own
listing     the entries of a pool: names, stamps, parts
files       image files in folders and tar shards
tar         the members of a tar archive
cache       decoded images on the disk, memory-mapped
download    downloads that give up in time
labelled    cifar100, cifar10, digits, folders, each in its canonical order
splits      labelled, validation and held-out images
pools       heldout, cifar10, tiny-imagenet, stl10, patches, folders, tar shards
joined      several pools as one
duplicates  pool images that equal, or nearly equal, a labelled one
images      many images as uint8, wherever they lie, batch by batch
augment     whole batches augmented and normalised on their device
selection   the files between step 2 and step 3
"""

import os

# OpenCV reads these two while it is imported, and every part of this package imports it later than
# here.  Its own pixel limit lets a small file with a false header claim gigabytes; 2**26 pixels
# (8192 x 8192) are 200 MB and more than any camera makes.  Broken files are expected and reported
# by name in skipped.csv, so OpenCV's own lines about them are noise.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")

from . import selection
from .augment import POLICIES, Augment, Normalise
from .decode import (
    IMAGE_SUFFIXES,
    Unreadable,
    decode,
    fingerprints,
    fit_square,
    pixel_hash,
    read_file,
)
from .duplicates import LeakGuard
from .images import Images
from .joined import JoinedPools
from .labelled import LABELLED_SETS, LabelledSet, load_labelled
from .pools import Pool, open_pools
from .splits import Split, split

__all__ = [
    "IMAGE_SUFFIXES",
    "LABELLED_SETS",
    "POLICIES",
    "Augment",
    "Images",
    "JoinedPools",
    "LabelledSet",
    "LeakGuard",
    "Normalise",
    "Pool",
    "Split",
    "Unreadable",
    "decode",
    "fingerprints",
    "fit_square",
    "load_labelled",
    "open_pools",
    "pixel_hash",
    "read_file",
    "selection",
    "split",
]
