"""model.pt and resume.pt: written whole or not at all, read safely, fingerprinted."""

import hashlib
import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from models import build_model

FORMAT = 1


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
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except RuntimeError as error:  # how torch reports a full disk
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path, device="cpu"):
    """Read what `save` wrote; runs no code from the file.

    Raises FileNotFoundError, or ValueError for a file that is truncated or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{path} is truncated or not a checkpoint of tensors and plain types "
            f"({type(error).__name__}); make it anew or name another file"
        ) from error


def fingerprint(path):
    """sha256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(path, checkpoint):
    """Write a Checkpoint as model.pt."""
    parts = {
        "format": FORMAT,
        "arch": {"name": checkpoint.name, "num_classes": len(checkpoint.classes)},
        "classes": list(checkpoint.classes),
        "normalisation": {"mean": list(checkpoint.mean), "std": list(checkpoint.std)},
        "input_size": checkpoint.input_size,
        "state_dict": checkpoint.model.state_dict(),
        "metrics": checkpoint.metrics,
        "parent": checkpoint.parent,
    }
    save(parts, path)


def load_model(path, device="cpu"):
    """Read model.pt as a Checkpoint, its network on `device`; ValueError for anything else."""
    state = load(path, device)
    if not isinstance(state, dict) or not {"format", "arch", "state_dict"} <= state.keys():
        raise ValueError(f"{path} is not a model.pt of this project; it may be plain weights")
    if state["format"] != FORMAT:
        raise ValueError(f"{path} has format {state['format']}; this version reads {FORMAT}")
    model = build_model(**state["arch"])
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights are not those of a {state['arch']['name']}"
        ) from error
    return Checkpoint(
        model.to(device, memory_format=torch.channels_last),
        state["arch"]["name"],
        state["classes"],
        state["normalisation"]["mean"],
        state["normalisation"]["std"],
        state["input_size"],
        state["metrics"],
        state["parent"],
    )


def start_from(model, weights, source):
    """Load a state_dict into `model`, all of it but a head of another class count.

    weights: a state_dict, or model.pt's content; source: its name, for the error.
    Returns whether the head was replaced.  Raises ValueError for weights of another architecture.
    """
    if isinstance(weights, dict):
        weights = weights.get("state_dict", weights)
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise ValueError(f"{source} holds no weights (tensors by name); name another file")
    own = model.state_dict()
    # Files from before torch 0.4.1 lack these counters, and torch itself lets them.
    weights = {n: t for n, t in own.items() if n.endswith("num_batches_tracked")} | weights
    head = [name for name in ("fc.weight", "fc.bias") if name in weights]
    replaced = any(weights[name].shape != own[name].shape for name in head)
    if replaced:
        weights = {**weights, **{name: own[name] for name in head}}
    wrong = sorted(set(own) ^ set(weights))
    wrong += sorted(n for n in set(own) & set(weights) if own[n].shape != weights[n].shape)
    if wrong:
        raise ValueError(
            f"{source} holds another architecture: {len(wrong)} of its tensors do not fit "
            f"(such as {wrong[0]}); choose the --model that it was made with"
        )
    model.load_state_dict(weights)
    return replaced
