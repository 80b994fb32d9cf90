"""How long a training will take on a CPU, from a few steps on a few images."""

import time

import torch

from data import Augment, Normalise
from engine import TrainState, fit
from models import build_model
from presets import Training

IMAGES, STEPS = 16, 3


def print_hours(recipe, num_classes, input_size, images_to_process):
    """Print the hours and name the preset that is made for a CPU."""
    model = build_model(recipe.model, num_classes).to(memory_format=torch.channels_last)
    images = torch.zeros(IMAGES * STEPS, input_size, input_size, 3, dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.int64)
    augment = Augment(Normalise([0.5] * 3, [0.25] * 3), "none", num_classes)
    few = Training(model=recipe.model, epochs=1, batch_size=IMAGES)
    began = time.monotonic()
    for state in fit(TrainState(model, few), images, labels, augment):
        state.metrics()
    rate = len(images) / (time.monotonic() - began)
    print(
        f"{recipe.model} at {input_size} px on this CPU: about {rate:.0f} images/s, so about "
        f"{images_to_process / rate / 3600:.1f} hours for this step.  `--preset lab` runs all "
        f"four steps on real CIFAR-100 in about 20 minutes on two cores.",
        flush=True,
    )
