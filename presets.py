"""The named settings, each number with its reason: `PRESETS["lab"]`.

Rates are per optimizer step on a whole batch.  "Paper" is Yalniz et al. 2019; its rule for rates is
0.1 for every 256 images of a batch in pre-training and 1/400 of that in fine-tuning.
"""

from dataclasses import dataclass, field, replace


def _setting(default, text):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Training:
    """One training run; every field is a flag of the scripts that train."""

    model: str = _setting("resnet50", "network by name, see models/__init__.py")
    epochs: int = _setting(100, "epochs to train for")
    learning_rate: float = _setting(0.1, "peak learning rate, for a whole batch")
    batch_size: int = _setting(256, "images in an optimizer step")
    passes: int = _setting(1, "passes over the images in an epoch, for very small sets")
    schedule: str = _setting(
        "cosine",
        "cosine: to zero; halving: 13 halvings at equal steps (paper, pre-training); "
        "steps: a tenth, three times, at equal steps (paper, fine-tuning)",
    )
    warmup: float = _setting(0.05, "share of the steps that the rate takes to rise to its peak")
    weight_decay: float = _setting(1e-4, "L2 penalty, on every parameter")  # paper
    label_smoothing: float = _setting(0.0, "label smoothing, 0 to 1")
    ema_decay: float = _setting(0.0, "average the weights with this decay a step; 0 for off")
    augment: str = _setting(
        "crop-flip", "none, crop, crop-flip, randaugment or trivialaugment (data/augment.py)"
    )
    mixup: float = _setting(0.0, "MixUp's alpha; 0 for off")
    cutmix: float = _setting(0.0, "CutMix's alpha; 0 for off")


@dataclass(frozen=True)
class Preset:
    """A whole study: data, pool, selection, and the three trainings."""

    dataset: str
    input_size: int  # pixels; every image is decoded to this square
    labels_per_class: int | None  # None: all that validation leaves
    val_per_class: int  # cut from the training images; every choice is made on these
    unlabeled: tuple[str, ...]  # the pool, in order
    p: int  # classes an image may stand for
    k: int  # images a class keeps
    teacher: Training
    student: Training
    finetune: Training


def override(settings, **changes):
    """A copy of a dataclass with those changes that are not None."""
    return replace(
        settings, **{name: value for name, value in changes.items() if value is not None}
    )


# --- cifar100: the study at the size of one GPU -------------------------------------------------

_RESNET50 = Training(
    model="resnet50",
    epochs=60,  # at 128 px about 4x the pixels of 240 epochs at 32 px; not yet tuned on validation
    batch_size=512,  # 88 steps an epoch, and enough work a step to fill one GPU
    learning_rate=0.2,  # paper: 0.1 for every 256 images
    label_smoothing=0.1,
    weight_decay=5e-4,  # usual for CIFAR from scratch; the paper's 1e-4 goes with 1.2 M images
)
CIFAR100 = Preset(
    dataset="cifar100",
    # The ImageNet stem turns 128 px into the 32 x 32 positions a CIFAR stem has at 32 px, at the
    # same multiply-adds (1.34 against 1.30 G), and keeps the detail of the pool's larger images.
    input_size=128,
    labels_per_class=None,
    val_per_class=50,  # 5,000: a tenth of the training images; Hoeffding +-1.9 % at 95 %
    unlabeled=("tiny-imagenet", "cifar10"),  # 100,000 + 50,000
    p=10,  # paper
    k=1000,  # the predecessor's K for 150,000 images; by the paper's K * classes / pool it is 66 %
    teacher=_RESNET50,
    # Paper: 4x the images of the supervised optimum.  The selection is about twice the labelled
    # set (at most 100,000 rows), so 120 epochs are 4x the teacher's images.
    student=replace(
        _RESNET50, epochs=120, schedule="halving", weight_decay=1e-4, label_smoothing=0.0
    ),
    finetune=replace(
        _RESNET50,
        epochs=30,  # paper
        learning_rate=0.2 / 400,  # paper
        schedule="steps",
        warmup=0.0,
        weight_decay=1e-4,
        label_smoothing=0.0,
    ),
)

# --- lab: real CIFAR-100 on two CPU cores -------------------------------------------------------

_SMALL = Training(
    model="resnet20",
    epochs=40,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=5e-4,
)
LAB = Preset(
    dataset="cifar100",
    input_size=32,
    labels_per_class=50,
    val_per_class=20,
    unlabeled=("heldout",),
    p=10,
    k=400,
    teacher=_SMALL,
    student=replace(_SMALL, epochs=10),
    finetune=replace(_SMALL, epochs=15, learning_rate=0.01, warmup=0.0),
)

# --- demo: scikit-learn's digits, anywhere, offline ---------------------------------------------

_TINY = Training(
    model="resnet8",
    epochs=20,
    batch_size=32,
    passes=10,
    learning_rate=0.05,
    augment="crop",  # a flipped digit is another sign
)
DEMO = Preset(
    dataset="digits",
    input_size=32,
    labels_per_class=5,
    val_per_class=10,
    unlabeled=("heldout", "patches"),
    p=2,
    k=60,
    teacher=_TINY,
    student=replace(_TINY, epochs=10, passes=3),
    finetune=replace(_TINY, epochs=5, learning_rate=0.005, warmup=0.0),
)

PRESETS = {"cifar100": CIFAR100, "lab": LAB, "demo": DEMO}
