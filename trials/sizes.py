"""How many images an arm has in each step, and what one costs, before it runs."""

import functools
from dataclasses import dataclass

ALL = "all labels"
# data set -> classes, training images, fewest of a class
LABELLED = {"cifar100": (100, 50_000, 500), "cifar10": (10, 50_000, 5_000)}
LABELLED |= {"digits": (10, 1_198, 116)}
# (network, pixels, classes) -> multiply-adds: known, so that planning needs no timm.
KNOWN = {
    ("timm/tf_efficientnet_lite0", 64, 100): 31_467_392,
    ("timm/tf_efficientnet_lite0", 96, 100): 70_641_632,
}
POOLS = {"cifar10": 50_000, "tiny-imagenet": 100_000, "stl10": 100_000, "patches": 258}


@dataclass(frozen=True)
class Times:
    """`factor` times the preset's value; a whole number stays one, 1 at the least."""

    factor: float


@dataclass(frozen=True)
class Images:
    """As many images as `factor` times those of the preset's step `step` (None: the same one)."""

    factor: float
    step: str | None = None


@dataclass(frozen=True)
class Compute:
    """`factor` times the compute of a whole arm, rounded up to a whole pass over the images."""

    arm: str
    factor: float = 1.0


@dataclass(frozen=True)
class Share:
    """K such that K * classes is `factor` times the pool."""

    factor: float


@dataclass(frozen=True)
class Sizes:
    """How many images an arm has, as far as that is known before it runs."""

    classes: int
    labels_per_class: int
    pool: int
    p: int
    k: int
    ranked: bool
    joint: bool  # the student also learns the true labels

    @classmethod
    def of(cls, base, arm=None):
        """base: presets.Preset;  arm: trials.arms.Arm, None for what the preset says"""
        classes, images, fewest = LABELLED[base.dataset]
        teacher, samples = (arm.teacher, arm.samples) if arm else ({}, {})
        labels = teacher.get("labels_per_class", base.labels_per_class)
        labels = fewest - base.val_per_class if labels in (ALL, None) else labels
        specs = samples.get("unlabeled", base.unlabeled)
        heldout = images - classes * (labels + base.val_per_class)
        sizes = {"heldout": heldout, "labelled": classes * labels}
        pool = sum((POOLS | sizes)[spec] for spec in specs)
        pool = times(pool, samples.get("pool_size", pool))
        k = samples.get("k", base.k)
        k = round(k.factor * pool / classes) if isinstance(k, Share) else times(base.k, k)
        p = samples.get("p", base.p)
        joint = bool(arm and arm.student.get("joint"))
        return cls(classes, labels, pool, p, k, "strategy" not in samples, joint)

    def rows(self, step):
        """Training examples of a step, at the most."""
        labelled = self.labels_per_class * self.classes
        if not step.startswith("student"):
            return labelled
        kept = min(self.k * self.classes, self.pool * (self.p if self.ranked else 1))
        return kept + labelled * self.joint


def tagged_images(dataset):
    """Training images of a data set tags:POOL, at the most."""
    return POOLS[dataset.removeprefix("tags:")] * 9 // 10  # a tenth is for validation and test


def times(default, value):
    """A value that may be Times, against the preset's own, `default`."""
    if not isinstance(value, Times):
        return value
    new = default * value.factor
    return max(1, round(new)) if isinstance(default, int) else float(f"{new:.6g}")


@functools.cache
def multiply_adds(model, size, classes):
    """Multiply-adds of a network for one image of `size` pixels a side, counted by torch."""
    if (model, size, classes) in KNOWN:
        return KNOWN[model, size, classes]
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from models.networks import build_model

    network = build_model(model, classes).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() // 2
