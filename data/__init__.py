"""Images: labelled sets and unlabelled pools as uint8 arrays.

decode      bytes -> RGB pixels, the square crop, the hash of the pixels
files       image files in folders and tar shards, names, digests
cache       decoded images on the disk, memory-mapped
download    downloads that give up in time
labelled    cifar100, cifar10, digits, folders, each in its canonical order
splits      labelled, validation and held-out images
pools       heldout, cifar10, tiny-imagenet, stl10, patches, folders, tar shards
duplicates  pool images that equal, or nearly equal, a labelled one
"""

from . import selection
from .augment import Augment, Normalise
from .decode import IMAGE_SUFFIXES, Unreadable, decode, decode_file, fit_square, pixel_hash

from .images import Images
from .duplicates import find_duplicates
from .labelled import LABELLED_SETS, LabelledSet, load_labelled
from .pools import Pool, open_pools
from .splits import Split, split

__all__ = [
    "IMAGE_SUFFIXES",
    "LABELLED_SETS",
    "LabelledSet",
    "Pool",
    "Split",
    "Unreadable",
    "decode",
    "decode_file",
    "find_duplicates",
    "fit_square",
    "load_labelled",
    "open_pools",
    "pixel_hash",
    "split",
]
