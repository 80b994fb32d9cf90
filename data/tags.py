"""A pool as a labelled set: the names of its folders are tags, as hashtags are the paper's."""

import hashlib

import numpy as np
import torch

from .labelled import LabelledImages, LabelledSet
from .splits import Split

SHARE = 20  # one image in 20 is for validation, another one for the test


def tagged(pool, seed):
    """-> data.LabelledSet whose classes are the folders of a pool; its data.Split

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
    found = LabelledSet(name, tuple(classes.tolist()), whole, whole.subset(test), inputs)
    return found, Split(train, val, heldout=train[:0])
