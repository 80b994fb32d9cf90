"""model.pt and resume.pt: written whole or not at all, read safely."""

from dataclasses import dataclass

import torch

from data import whole_file
from models import others
from models.weights import FORMAT, load, rebuild
from models.weights import start_from as start_from  # for those who load a checkpoint with `load`


@dataclass
class Checkpoint:
    """What model.pt holds: a network and all that its use on new images needs."""

    model: torch.nn.Module
    name: str
    classes: list[str]
    mean: list[float]  # of the training images, per channel, on the scale 0 to 1
    std: list[float]
    input_size: int  # pixels
    metrics: dict
    parent: dict | None  # {"stage", "sha256"} of what it was made from


def save(state, path):
    """Write tensors and plain types to `path`: a reader sees the old file or the new one."""
    with whole_file(path) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(f"cannot write {path}: {error}") from error


def save_model(path, checkpoint):
    """Write a Checkpoint as model.pt."""
    content = {
        "format": FORMAT,
        "arch": {"name": checkpoint.name, "num_classes": len(checkpoint.classes)},
        "library": others.library_of(checkpoint.name),
        "classes": list(checkpoint.classes),
        "normalisation": {"mean": list(checkpoint.mean), "std": list(checkpoint.std)},
        "input_size": checkpoint.input_size,
        "state_dict": checkpoint.model.state_dict(),
        "metrics": checkpoint.metrics,
        "parent": checkpoint.parent,
    }
    save(content, path)


def load_model(path, device="cpu"):
    """Read model.pt, or an exported file, as a Checkpoint, its network on `device`.

    Raises FileNotFoundError, or ValueError for anything else.
    """
    state = load(path, device)
    model = rebuild(state, path).to(device, memory_format=torch.channels_last)
    rest = {field: state[field] for field in ("classes", "input_size", "metrics", "parent")}
    return Checkpoint(model, state["arch"]["name"], **state["normalisation"], **rest)
