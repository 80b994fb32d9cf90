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

    model: str = _setting(
        "resnet50", "network by name, see models/__init__.py; teacher and student may differ"
    )
    epochs: int = _setting(100, "epochs to train for; more where validation still rises at the end")
    learning_rate: float = _setting(
        0.1, "peak learning rate, for a whole batch; lower where the loss is not finite"
    )
    batch_size: int = _setting(
        256, "images in an optimizer step; fewer where memory runs out, then at a lower rate"
    )
    passes: int = _setting(1, "passes over the images in an epoch; more for sets of few images")
    schedule: str = _setting(
        "cosine",
        "cosine: to zero; halving: 13 halvings at equal steps (paper, pre-training); "
        "steps: a tenth, three times, at equal steps (paper, fine-tuning)",
    )
    warmup: float = _setting(
        0.05, "share of the steps that the rate takes to rise to its peak; more for high rates"
    )
    weight_decay: float = _setting(
        1e-4, "L2 penalty, on every parameter; more where few images are learnt by heart"
    )  # paper
    label_smoothing: float = _setting(
        0.0, "share of a label that all classes get, 0 to 1; for long trainings"
    )
    ema_decay: float = _setting(
        0.0, "average the weights with this decay a step, 0 for off; steadies a noisy end"
    )
    augment: str = _setting(
        "crop-flip",
        "random changes of the training images (data/augment.py), from none to trivialaugment; "
        "stronger ones for long trainings of few images",
    )
    mixup: float = _setting(
        0.0, "MixUp's alpha, 0 for off; keeps few images from being learnt by heart"
    )
    cutmix: float = _setting(0.0, "CutMix's alpha, 0 for off; the same, for long trainings")
    mixed: float = _setting(1.0, "share of the batches that MixUp or CutMix changes, 0 to 1")
    resize: str = _setting(
        "",
        "first steps at smaller inputs, SIZE:SHARE of the steps each, such as 32:0.3,48:0.3; a "
        "smaller image costs less; none for off",
    )

    def sizes(self, input_size):
        """[(pixels, share of the steps)], smaller inputs first and `input_size` last; shares sum
        to 1.  Raises ValueError for a `resize` that is no such list.
        """
        try:
            pairs = [part.split(":") for part in filter(None, self.resize.split(","))]
            small = [(int(size), float(share)) for size, share in pairs]
        except ValueError:
            small = [(0, 0.0)]
        last = 1 - sum(share for _, share in small)
        if any(not (8 <= size < input_size and share > 0) for size, share in small) or last <= 0:
            raise ValueError(
                f"--resize {self.resize}: must be SIZE:SHARE,..., each size from 8 to below the "
                f"input size {input_size}, the shares above 0 and below 1 in all"
            )
        return [*small, (input_size, last)]


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

# 14.7 million images in the four steps: 15 minutes at the 16,000 images/s that one H200 should
# reach (docs/performance.md).  Chosen by short runs of a small network, docs/results/recipe/, and
# scaled up; it has not run on a GPU yet.
_RESNET50 = Training(
    model="resnet50",
    epochs=100,  # 4.5 M images, half of the 200 epochs that are usual for CIFAR
    batch_size=512,  # 88 steps an epoch, and enough work a step to fill one GPU
    # Twice the usual 0.1 for every 128 images, for half the usual epochs: the sum of rate times
    # decay is then 1.8, near the usual 2.  In short runs four times the rate gained 6.6 points.
    learning_rate=0.8,
    weight_decay=5e-4,  # usual for CIFAR; 2e-3 and 5e-3 lose 5 and 19 points in short runs
    label_smoothing=0.1,
    # Over hundreds of epochs MixUp and CutMix gain alike (Yun et al. 2019); in three epochs MixUp
    # costs 2.5 points and CutMix 10.
    mixup=0.2,
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
    # The predecessor's K for 150,000 images: K * classes / pool is 67 %, where the paper tried 1 to
    # 64 %.
    k=1000,
    teacher=_RESNET50,
    student=replace(
        _RESNET50,
        epochs=90,  # 8.7 M images of the 97,000 rows, twice the teacher's; the paper has 4 times
        schedule="cosine",  # 13 halvings end 11.6 points lower in a short run
        label_smoothing=0.0,
        weight_decay=2e-4,  # the sum of rate times decay is 1.4
    ),
    finetune=replace(
        _RESNET50,
        epochs=30,  # paper
        learning_rate=0.08,  # a tenth of the peak: 1/400 and 1/40 end a point lower in a short run
        schedule="steps",  # paper
        warmup=0.0,
        weight_decay=1e-4,  # paper
        label_smoothing=0.0,
        mixup=0.0,
    ),
)

# --- cifar100-cpu: the same at 64 px, for a night on two CPU cores --------------------------------

# A core with AMX trains ResNet-50 with 115 images/s at 64 px, 180 at 48, 320 at 32; one without it
# trains with about 50 at 64 px.  The four steps, the labels alone with their whole compute, and the
# student of a strong teacher are short enough for six core hours with AMX.
_SHORT = replace(
    _RESNET50,
    epochs=10,  # 0.45 M images
    batch_size=128,
    learning_rate=0.1,  # of four rates in two epochs: docs/trials.md
    mixup=0.0,  # mixing costs a short training more than it gives
    resize="32:0.3,48:0.3",  # 0.64 of the multiply-adds; trial: docs/trials.md
)
CIFAR100_CPU = replace(
    CIFAR100,
    input_size=64,
    teacher=_SHORT,
    student=replace(_SHORT, epochs=5, label_smoothing=0.0, weight_decay=2e-4),  # 0.49 M images
    finetune=replace(
        CIFAR100.finetune,
        epochs=2,
        batch_size=128,
        learning_rate=0.01,  # a tenth of the peak
    ),
)

# --- cifar100-paper: the same with the paper's own schedule -------------------------------------

# Pre-training with 13 halvings, four times the images of the supervised training, and fine-tuning
# at 1/400 of the rate.  All were made for 10^9 images.
CIFAR100_PAPER = replace(
    CIFAR100,
    student=replace(
        CIFAR100.student,
        epochs=186,  # 18 M images
        learning_rate=0.2,  # 0.1 for every 256 images
        schedule="halving",
        mixup=0.0,
        weight_decay=1e-4,
    ),
    finetune=replace(CIFAR100.finetune, learning_rate=0.2 / 400),
)

# --- lab: real CIFAR-100 on two CPU cores -------------------------------------------------------

# 32 px and a small network: docs/trials.md, "What was chosen", has it against upsampled inputs.
# The rate is He et al.'s 0.1 for a batch of 128, a batch of 128 fills two cores.  CutMix and a
# weight decay of 5e-4 keep 2,500 images from being learnt by heart (the same table).
_LAB = Training(
    model="resnet20",
    epochs=12,
    passes=10,  # 300,000 images: docs/trials.md has more and fewer
    batch_size=128,
    learning_rate=0.1,
    weight_decay=5e-4,
    cutmix=1.0,
)
LAB = Preset(
    dataset="cifar100",
    input_size=32,
    # The paper's pool is 80 times its labelled set; with all 50,000 labels there is no pool, with
    # 2,500 the other training images are 18 times as many.
    labels_per_class=25,
    val_per_class=20,  # 2,000: no more than the labels, as a user with 2,500 labels would have it
    unlabeled=("heldout",),
    p=10,  # paper
    k=200,  # K * classes / pool = 44 %; the paper tried 1 to 64 %
    teacher=_LAB,
    # 360,000 images, more than the teacher's, and all that 20 minutes leave; no CutMix, since a
    # student of 20,000 images does not learn them by heart in this time.
    student=replace(_LAB, epochs=9, passes=2, cutmix=0.0),
    # A tenth of the peak: the paper's 1/400 cannot repair a pre-training this short.
    finetune=replace(_LAB, epochs=2, learning_rate=0.01, warmup=0.0, cutmix=0.0),
)

# --- study: the sweeps of study.py, a run in a minute and a half on one core ---------------------

# 16 px: 160,000 images end within a point of 32 px (validation 19.8 and 21.0), at 2.5 times the
# images a second.  So every run can be so long that the labels alone have little more to give:
# 320,000 images end at 22.9, 675,000 at 23.9.  docs/results/regime.json has these trials.
_STUDY = replace(
    _LAB,
    model="resnet8",
    epochs=4,
    passes=32,  # 320,000 images of 2,500
    learning_rate=0.2,  # between 0.1 and 0.4, which end at 19.9 and 21.0 after 160,000 images
)
STUDY = replace(
    LAB,
    input_size=16,
    teacher=_STUDY,
    student=replace(_STUDY, passes=4, cutmix=0.0),  # as many images of 20,000
    # So few steps need a high rate: 0.03, 0.1 and 0.2 end at 23.9, 25.0 and 24.6.
    finetune=replace(_STUDY, epochs=10, passes=1, learning_rate=0.1, warmup=0.0, cutmix=0.0),
)

# --- cifar10: a first class, and the study's few-label regime, on one CPU core -------------------

# Ten classes whose pictures one can judge by eye, a pool 78 times as large as the labelled set, as
# the paper's (98 times with all 50,000 training images), and a teacher that is right on half of the
# images, so that its copies are worth something.  docs/results/cifar10.json has the trials behind
# these numbers, validation only.
_CIFAR10 = replace(
    _LAB,
    model="resnet8",
    epochs=8,
    passes=160,  # 640,000 images of 500; 1,000,000 end 1.7 points higher: little more to learn
    learning_rate=0.4,  # with TrivialAugment the best for the labels alone in the study's claims
    augment="trivialaugment",
)
CIFAR10 = Preset(
    dataset="cifar10",
    input_size=16,  # as in study
    labels_per_class=50,
    val_per_class=50,  # no more than the labels
    unlabeled=("heldout",),
    p=3,  # of 10 classes
    k=2000,  # K * classes / pool = 41 %, as in lab
    teacher=_CIFAR10,
    student=replace(_CIFAR10, passes=2, cutmix=0.0),  # 320,000 images of 20,000
    # A student of this quality is easily spoilt by 500 labels: rates of 0.1 and 0.01, 25,000
    # images, end 2.7 points below and 1.3 above where it came from.
    finetune=replace(
        _CIFAR10,
        epochs=5,
        passes=10,
        learning_rate=0.01,
        warmup=0.0,
        augment="crop-flip",
        cutmix=0.0,
    ),
)

# --- demo: scikit-learn's digits, anywhere, offline ---------------------------------------------

_DEMO = Training(
    model="resnet8",
    epochs=30,
    passes=10,  # 50 images: an epoch of one pass would be two steps
    batch_size=32,
    learning_rate=0.05,
    augment="crop",  # a flipped digit is another sign
    # Without them the teacher is surer of flower petals than of digits: they fill whole classes.
    mixup=1.0,
    cutmix=1.0,
)
DEMO = Preset(
    dataset="digits",
    input_size=32,  # the digits' 8 px, upsampled
    labels_per_class=5,
    val_per_class=10,
    unlabeled=("heldout", "patches"),
    p=2,  # of 10 classes
    k=60,  # of about 105 pool digits a class
    teacher=_DEMO,
    student=replace(_DEMO, epochs=10, passes=3),  # 18,000 images against the teacher's 15,000
    finetune=replace(_DEMO, epochs=5, learning_rate=0.005, warmup=0.0, mixup=0.0, cutmix=0.0),
)

PRESETS = {
    "cifar100": CIFAR100,
    "cifar100-paper": CIFAR100_PAPER,
    "cifar100-cpu": CIFAR100_CPU,
    "lab": LAB,
    "study": STUDY,
    "cifar10": CIFAR10,
    "demo": DEMO,
}
