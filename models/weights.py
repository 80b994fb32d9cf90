"""Weights from files: read without running code, fitted to a network.

It stands here because hubconf.py needs it, which imports nothing else of the project: it has to
work where only torch and torchvision are installed.
"""

import json
from pathlib import Path

import torch

from . import build_model, head_of
from .others import needed

FORMAT = 1  # of model.pt; save_model writes it, `rebuild` checks it
CONTENT = "content"  # what a safetensors file calls all that a model.pt has beside the weights
_KEYS = ("state_dict", "model")  # where training programs keep the weights in their checkpoints
_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before each name


def load(path, device="cpu"):
    """Read a file of tensors and plain types; runs no code from it.

    Raises FileNotFoundError where no file is; ValueError for a truncated file, or one of another
    kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.suffix == ".safetensors":
        needed("safetensors", path)
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, device)
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler trusts the file: damage raises errors of many kinds
        raise ValueError(
            f"{path} is truncated or not a checkpoint of tensors and plain types "
            f"({type(error).__name__}); make it anew or name another file"
        ) from error


def _load_safetensors(path, device):
    """The content that formats.write_safetensors has written, or the bare weights of others."""
    import safetensors

    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rest = (file.metadata() or {}).get(CONTENT)
    return json.loads(rest) | {"state_dict": tensors} if rest else tensors


def rebuild(state, source):
    """Build the network that a model.pt or an exported file describes, with its weights.

    state: the file's content;  source: its name, for the error
    Raises ValueError for any other content.
    """
    if not isinstance(state, dict) or not {"format", "arch", "state_dict"} <= state.keys():
        raise ValueError(f"{source} is not a model.pt of this project; it may be plain weights")
    if state["format"] != FORMAT:
        raise ValueError(f"{source} has format {state['format']}; this version reads {FORMAT}")
    model = build_model(**state["arch"])
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        name = state["arch"]["name"]
        raise ValueError(f"{source}: the weights are not those of a {name}") from error
    return model


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
