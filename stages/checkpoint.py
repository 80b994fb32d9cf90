"""model.pt and resume.pt: written whole or not at all, read safely."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from files import whole_file
from models import others, weights
from models.weights import FORMAT, rebuild
from models.weights import start_from as start_from  # for those who load a checkpoint with `load`

from .folder import check_file


class Ensemble(torch.nn.Module):
    """Several networks as one: its softmax is the mean of theirs.  Images (B,3,S,S) -> (B,C)."""

    def __init__(self, networks):
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, images):
        each = torch.stack([network(images).log_softmax(1) for network in self.networks])
        return each.logsumexp(0)  # up to a constant: softmax takes it away


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
            reason = str(error).splitlines()[0]
            raise OSError(f"cannot write {path} (is the disk full?): {reason}") from error


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


def load(path, device="cpu"):
    """`weights.load` of a file that is the one that its stage wrote, see `records.check_file`."""
    if Path(path).is_file():
        check_file(path)
    return weights.load(path, device)


@contextmanager
def resuming(path):
    """ValueError, naming the file, where what is done inside finds in resume.pt anything else than
    the state of this stage.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path} is not the state that this stage has saved ({reason}); start the stage anew "
            f"with --overwrite"
        ) from error


def load_model(path, device="cpu"):
    """Read model.pt, or an exported file, as a Checkpoint, its network on `device`.

    Raises FileNotFoundError, or ValueError for anything else.
    """
    state = load(path, device)
    model = rebuild(state, path).to(device, memory_format=torch.channels_last)
    facts = {field: state[field] for field in ("classes", "input_size", "metrics", "parent")}
    return Checkpoint(model, state["arch"]["name"], **state["normalisation"], **facts)


def load_models(paths, device="cpu"):
    """`load_model` of one path, or of several as one Ensemble.

    Raises ValueError also where they differ in classes, input size or normalisation.
    """
    first, *others = [load_model(path, device) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        for name in ("classes", "input_size", "mean", "std"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(
                    f"{path} has other {name.replace('_', ' ')} than {paths[0]}; the teachers of "
                    f"one selection need the same"
                )
    if others:
        first.model = Ensemble([first.model, *(other.model for other in others)])
        first.name = " + ".join([first.name, *(other.name for other in others)])
    return first
