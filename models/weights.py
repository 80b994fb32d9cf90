"""Weights from files: read without running code, fitted to a network.

It stands here because hubconf.py needs it, which imports nothing else of the project: it has to
work where only torch and torchvision are installed.
"""

import errno
import json
import re
import zipfile
from pathlib import Path

import torch

from . import MODELS, build_model, head_of
from .download import sha256_of_file
from .others import needed

FORMAT = 1  # of model.pt; save_model writes it, `rebuild` checks it
CONTENT = "content"  # what a safetensors file calls all that a model.pt has beside the weights
_KEYS = ("state_dict", "model")  # where training programs keep the weights in their checkpoints
_EXPORTED = rf"(?:{'|'.join(MODELS)})_.+-([0-9a-f]{{8}})\.(?:pth|safetensors)"  # as export.py names
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name


def load(path, device="cpu"):
    """Read a file of tensors and plain types; runs no code from it.

    Raises FileNotFoundError where no file is; ValueError for a damaged file, one of another kind,
    or an exported one that has not the hash in its name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.suffix == ".safetensors":
        needed("safetensors", path)
    named = re.fullmatch(_EXPORTED, path.name)
    if named and not (found := sha256_of_file(path)).startswith(named[1]):
        raise ValueError(
            f"{path} is damaged: its sha256 begins with {found[:8]}, not as its name says; copy it "
            f"here again"
        )
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, device)
        _check_sums(path)
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the unpickler trusts the file: damage raises errors of many kinds
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a zip's bad offset
            raise
        raise ValueError(
            f"{path} is damaged or not a checkpoint of tensors and plain types "
            f"({type(error).__name__}); make it anew or name another file"
        ) from error


def _load_safetensors(path, device):
    """The content that formats.write_safetensors has written, or the bare weights of others."""
    import safetensors

    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rest = (file.metadata() or {}).get(CONTENT)
    return json.loads(rest) | {"state_dict": tensors} if rest else tensors


def _check_sums(path):
    """Raises zipfile.BadZipFile for a flipped bit: torch writes a zip, with a CRC of each tensor,
    and reads it back without a look at them.  Files from before torch 1.6 are no zip and have none.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)


def rebuild(state, source):
    """Build the network that a model.pt or an exported file describes, with its weights.

    state: the file's content;  source: its name, for the error
    Raises ValueError for any other content.
    """
    if not isinstance(state, dict) or not {"format", "arch", "state_dict"} <= state.keys():
        raise ValueError(f"{source} is not a model.pt of this project; it may be plain weights")
    if state["format"] != FORMAT:
        raise ValueError(f"{source} has format {state['format']}; this version reads {FORMAT}")
    if missing := {"classes", "normalisation", "input_size", "metrics", "parent"} - state.keys():
        raise ValueError(f"{source} lacks {min(missing)}; make it anew or name another file")
    try:
        model = build_model(**state["arch"])
        model.load_state_dict(state["state_dict"])
        numbers = [state["normalisation"][name] for name in ("mean", "std")]
        same = torch.tensor(numbers, dtype=torch.float64).shape == (2, 3)
        same &= len(state["classes"]) == head_of(model)[1].out_features
        if not (same and int(state["input_size"]) > 0):
            raise ValueError("the numbers do not fit together")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: its weights, classes or normalisation are not those of a network "
            f"{str(state['arch'])[:80]} ({str(error)[:200]}); make it anew or name another file"
        ) from error
    _check_finite(model, source)
    return model


def _check_finite(model, source):
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{source}: {name} holds numbers that are not finite; name another file, or make "
                f"it anew"
            )


def start_from(model, weights, source):
    """Load weights into `model`; a head (the last layer) of another class count keeps its own.

    weights: tensors by name, alone or under "state_dict" (model.pt, timm) or "model" (torchvision's
    references), their names with or without the prefixes of DataParallel and torch.compile
    source: where they come from, for the error
    -> whether the head kept its own weights.  Raises ValueError for weights of another network.
    """
    weights = _tensors_by_name(weights, source)
    own = model.state_dict()
    # Files from before torch 0.4.1 lack these counters; torch's load_state_dict accepts that too.
    weights = {n: t for n, t in own.items() if n.endswith("num_batches_tracked")} | weights
    last, _ = head_of(model)
    head = [name for name in (f"{last}.weight", f"{last}.bias") if name in weights]
    other_head = any(weights[name].shape != own[name].shape for name in head)
    if other_head:
        weights = {**weights, **{name: own[name] for name in head}}
    wrong = sorted(set(own) ^ set(weights))
    wrong += sorted(n for n in set(own) & set(weights) if own[n].shape != weights[n].shape)
    if wrong:
        raise ValueError(
            f"{source} holds another architecture: {len(wrong)} of its tensors do not fit "
            f"(such as {wrong[0]}); choose the --model that it was made with"
        )
    model.load_state_dict(weights)
    _check_finite(model, source)
    return other_head


def _tensors_by_name(content, source):
    """The dict of tensors in a checkpoint, its names without a wrapper's prefix."""
    for key in _KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not (isinstance(content, dict) and content and all(map(torch.is_tensor, content.values()))):
        raise ValueError(f"{source} holds no weights (tensors by name); name another file")
    for prefix in _WRAPPERS:
        if all(str(name).startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content
