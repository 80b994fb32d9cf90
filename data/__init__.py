"""Images: labelled sets and unlabelled pools as uint8 arrays.

To be read in this order:

images      many images as uint8, wherever they lie, batch by batch
splits      labelled, validation and held-out images
labelled    cifar100, cifar10, digits and folders, each in canonical order
sources     what a pool is made of: heldout, named pools, folders, tar shards
pool        several sources as one
tags        a pool as a labelled set, its folder names as classes
duplicates  pool images that equal, or nearly equal, a labelled one
selection   the files that step 2 writes
augment     whole batches, augmented and normalised on their device
policies    RandAugment and TrivialAugment for whole batches
mixing      MixUp and CutMix

What carries these:

source      one source of a pool: its names, its images, what is known of them
named_pools cifar10, tiny-imagenet, stl10, patches
listing     the entries of a source: names, sizes, blocks
files       the image files in folders and tar shards, as listings
cache       decoded images on the disk, memory-mapped
workers     decoding in processes of our own
worker      what such a process does
decode      bytes -> RGB pixels, the square crop, hashes
whole_file  files that appear whole or not at all
"""

import os

# OpenCV reads both settings while it is imported, which every file of this package does later.
# The pixel limit bounds the memory that one image can take: 2**26 pixels (8192 x 8192) are 201 MB.
# With OpenCV's own limit, 2**30, a small damaged file that claims to be large could take 3.2 GB.
# Larger pictures (some phones make 200 megapixels) are listed in skipped.csv, unless the user sets
# a higher limit.  Damaged files are listed too, so OpenCV's own messages about them are not shown.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")

# ruff: noqa: F401 - what the rest of the project takes from here
from . import selection
from .augment import POLICIES, Augment, Normalise
from .decode import Unreadable, checksums, decode, fit_square, pixel_hash, read_file
from .duplicates import LeakGuard
from .files import called
from .images import Images
from .labelled import LABELLED_SETS, LabelledImages, LabelledSet, load_labelled
from .pool import Pool, draw, open_pool, reopen_pool
from .source import NO_CLASS, UNKNOWN, Source
from .splits import Split, split
from .tags import tagged
from .whole_file import named, whole_file, write_json, write_text
