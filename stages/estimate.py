"""How long a training will take on a CPU, from a few steps on a few images."""

import time

import torch

from data.augment import Augment, Normalise
from engine import TrainState, count_steps, fit
from models import build_model
from presets import Training

IMAGES, STEPS = 16, 3


def print_hours(recipe, num_classes, input_size, examples, yes):
    """Print the hours of a training and the preset that is made for a CPU.

    examples: about how many there will be;  yes: whether to go on
    Raises ValueError, which says the same, where it is not to go on.
    """
    rate = _images_a_second(recipe.model, num_classes, input_size)
    steps, batch_size = count_steps(examples, recipe)
    hours = steps * batch_size / rate / 3600
    words = (
        f"{recipe.model} at {input_size} px on this CPU: about {rate:.0f} images/s, so about "
        f"{hours:.1f} hours for this step.  `--preset lab` runs all four steps on real CIFAR-100 "
        f"in about 20 minutes on two cores"
    )
    if not yes:
        raise ValueError(f"{words}; --yes starts this one all the same")
    print(words, flush=True)


def _images_a_second(name, num_classes, input_size):
    model = build_model(name, num_classes).to(memory_format=torch.channels_last)
    images = torch.zeros(IMAGES * STEPS, input_size, input_size, 3, dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.int64)
    augment = Augment(Normalise([0.5] * 3, [0.25] * 3), "none", num_classes)
    few = Training(model=name, epochs=1, batch_size=IMAGES)
    began = time.monotonic()
    for state in fit(TrainState(model, few), images, labels, augment):
        state.metrics()
    return len(images) / (time.monotonic() - began)
