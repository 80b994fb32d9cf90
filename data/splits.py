"""The stratified splits of a training set."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Split:
    """int64 positions in a training set: each sorted, disjoint, together all of it."""

    labelled: torch.Tensor
    val: torch.Tensor
    heldout: torch.Tensor


def split(labels, seed, labels_per_class=None, val_per_class=0, classes=None, val=None):
    """Cut a training set into labelled, validation and held-out images.

    labels: int64 (N,), in canonical order;  seed: 0 .. 2**32 - 1;  classes: names, for the error
    val: int64, positions of the validation images where they are given; none are cut then
    -> Split with, of every class, val_per_class validation images, labels_per_class labelled ones
    (None: all the others, so that none are held out), and the rest held out

    The validation images do not depend on labels_per_class.  With the same seed a smaller labelled
    set is a subset of a larger one, so that runs with different numbers of labels are comparable.
    Raises ValueError where a class has too few images.
    """
    labels = np.asarray(labels)
    if labels_per_class is not None and labels_per_class < 1:
        raise ValueError(f"--labels-per-class is {labels_per_class}; it must be at least 1")
    if val_per_class < 0:
        raise ValueError(f"--val-per-class is {val_per_class}; it must be at least 0")
    given, free = [], np.ones(len(labels), bool)
    if val is not None:
        given, val_per_class = [val.numpy()], 0
        free[val.numpy()] = False
    random = np.random.RandomState(seed)
    chosen = {"labelled": [], "val": [], "heldout": []}
    needed = val_per_class + (labels_per_class or 1)
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero((labels == label) & free)
        if len(members) < needed:
            name = classes[label] if classes else label
            raise ValueError(
                f"class {name} has {len(members)} training images, {needed} are needed "
                f"(--labels-per-class {labels_per_class or 'all'}, at least 1, and --val-per-class "
                f"{val_per_class}); lower one of them"
            )
        members = random.permutation(members)
        end = len(members) if labels_per_class is None else needed
        chosen["val"].append(members[:val_per_class])
        chosen["labelled"].append(members[val_per_class:end])
        chosen["heldout"].append(members[end:])
    chosen["val"] += given
    positions = {name: np.sort(np.concatenate(several)) for name, several in chosen.items()}
    return Split(**{name: torch.from_numpy(index).long() for name, index in positions.items()})


def cut_test(labels, share, classes):
    """Cut a test set from images that have none: `share` of every class.

    labels: int64 (N,);  classes: names, for the error
    -> int64 positions for training and for the test, the same whatever --seed is: results of
    different seeds share one test set.
    Raises ValueError for a class too small to give any.
    """
    from sklearn.model_selection import train_test_split  # imported here: it takes a second

    counts = np.bincount(labels)
    if (least := counts.min()) * share < 1:
        raise ValueError(
            f"class {classes[counts.argmin()]} has {least} images and the data set no test folder; "
            f"make one, or give {round(1 / share)} images of a class, of which the test set is cut"
        )
    index = np.arange(len(labels))
    return train_test_split(index, test_size=share, stratify=labels, random_state=0)
