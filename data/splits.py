"""The seeded, stratified split of a training set."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """int64 positions in a training set: sorted, disjoint, together all of it."""

    labelled: np.ndarray
    val: np.ndarray
    heldout: np.ndarray


def split(labels, seed, labels_per_class=None, val_per_class=0):
    """Cut a training set into labelled, validation and held-out images.

    labels: int64 (N,), in canonical order;  seed: 0 .. 2**32 - 1
    -> Split: of every class exactly val_per_class and labels_per_class images (None: all the
    rest, nothing held out)

    The validation images do not depend on labels_per_class, and fewer labels are a subset of more
    with the same seed, so that a study over the number of labels compares like with like.
    Raises ValueError where a class has too few images.
    """
    labels = np.asarray(labels)
    if labels_per_class is not None and labels_per_class < 1:
        raise ValueError(f"--labels-per-class is {labels_per_class}; it must be at least 1")
    if val_per_class < 0:
        raise ValueError(f"--val-per-class is {val_per_class}; it must be at least 0")
    random = np.random.RandomState(seed)
    parts = {"labelled": [], "val": [], "heldout": []}
    needed = val_per_class + (labels_per_class or 1)
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        if len(members) < needed:
            raise ValueError(
                f"class {label} has {len(members)} training images, {needed} are needed "
                f"(--labels-per-class {labels_per_class or 'all'}, at least 1, and --val-per-class "
                f"{val_per_class}); lower one of them"
            )
        members = random.permutation(members)
        end = len(members) if labels_per_class is None else needed
        parts["val"].append(members[:val_per_class])
        parts["labelled"].append(members[val_per_class:end])
        parts["heldout"].append(members[end:])
    sorted_parts = {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}
    return Split(**{name: chosen.astype(np.int64) for name, chosen in sorted_parts.items()})
