"""The labelled set of a run, and its split."""

from pathlib import Path

import torch

import distributed
from data.labelled import load_labelled
from data.splits import split


def load_dataset(settings, earlier=None, classes=None):
    """-> data.LabelledSet, data.Split

    settings: of `inherit`;  earlier: config.json of the stage before, where there is one;  classes:
    the class names that its network knows
    Raises ValueError when the data set is not the one that the stage before was made with.
    """
    with distributed.in_turns():  # the first process downloads and decodes
        name, folder, size = (settings[n] for n in ("dataset", "data_dir", "input_size"))
        labelled = load_labelled(name, folder, size, cache_of(settings))
    if classes is not None and list(labelled.classes) != list(classes):
        raise ValueError(
            f"the teacher knows {len(classes)} classes ({classes[0]}, ...) and the data set "
            f"{labelled.name} has {len(labelled.classes)} ({labelled.classes[0]}, ...); choose "
            f"the --dataset and --data-dir that the teacher was trained on"
        )
    if earlier and labelled.inputs["pixels"] != earlier["inputs"]["labelled"]["pixels"]:
        raise ValueError(
            f"the data set {labelled.name} has changed since the stage {earlier['stage']} was "
            f"made; name its --data-dir, or start from step 1 with --overwrite"
        )
    per_class = settings["labels_per_class"], settings["val_per_class"]
    seed, names = settings["seed"], labelled.classes
    return labelled, split(labelled.train.labels, seed, *per_class, names, labelled.val)


def cache_of(settings):
    """The folder of decoded images.  One's own class folders may be read-only: not beside them."""
    usual = "datasets" if settings["dataset"] == "folder" else settings["data_dir"]
    return Path(settings.get("cache_dir") or Path(usual, "cache"))


def normalisation_of(images):
    """Mean and standard deviation of the images per channel, on the scale 0 to 1.

    images: data.Images;  -> two lists of three numbers, rounded to four digits, so that they print
    as they are
    """
    total, square = torch.zeros(2, 3, dtype=torch.float64)
    step = max(1, 2**22 // images.shape[1] ** 2)  # 50 MB of float32
    for first in range(0, len(images), step):
        batch = images[first : first + step].float() / 255
        total += batch.mean((1, 2)).double().sum(0)  # a mean an image is exact enough in float32
        square += batch.square().mean((1, 2)).double().sum(0)
    mean = total / len(images)
    std = (square / len(images) - mean**2).clamp(min=1e-4).sqrt()
    return [round(x, 4) for x in mean.tolist()], [round(x, 4) for x in std.tolist()]
