"""Weights from files: read without running code, fitted to a network.  Needs torch only."""

import errno
import json
import re
import zipfile
from pathlib import Path

import torch
from torch.serialization import safe_globals

from .download import check_hash
from .needed import needed
from .networks import MODELS, build_model, head_of

FORMAT = 1  # of model.pt; save_model writes it, `rebuild` checks it
CONTENT = "content"  # what a safetensors file calls all that a model.pt has beside the weights
_FIELDS = {"format", "arch", "state_dict", "classes", "normalisation", "input_size", "metrics"}
_FIELDS |= {"parent"}
_EXPORTED = rf"(?:{'|'.join(MODELS)})_.+-([0-9a-f]{{8}})\.(?:pth|safetensors)"  # as export.py names
_KEYS = ("state_dict", "model", "model_state_dict", "net")  # of several networks the first of these
# What torch.compile, FSDP and activation checkpointing put into names, at any place.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class _Unread:
    """Stands for an object beside the weights, such as a date: nothing of it is kept."""

    def __init__(self, *values):
        pass

    __setstate__ = __init__


# What training programs keep beside the weights.  NumPy's own classes would believe what a file
# says of pointers, so `load` makes an _Unread of each of these.
_HARMLESS = """argparse.Namespace builtins.bool builtins.bytes builtins.dict builtins.float
    builtins.frozenset builtins.int builtins.list builtins.range builtins.slice builtins.str
    builtins.tuple datetime.date datetime.datetime datetime.time
    datetime.timedelta datetime.timezone decimal.Decimal fractions.Fraction numpy.dtype
    numpy.ndarray numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar pathlib.PosixPath
    pathlib.PurePosixPath pathlib.PureWindowsPath pathlib.WindowsPath pathlib._local.PosixPath
    pathlib._local.PurePosixPath pathlib._local.PureWindowsPath pathlib._local.WindowsPath
    torch.torch_version.TorchVersion types.SimpleNamespace uuid.UUID"""
_READ = [(_Unread, name) for name in _HARMLESS.split()]
_READ += [(lambda *_: {}, "collections.defaultdict"), (lambda *_: [], "collections.deque")]


def load(path, device="cpu"):
    """The dict in a file of tensors and plain types; no code from the file is run.

    Raises FileNotFoundError where no file is; ValueError for a damaged file, one of another kind,
    one with objects of any but harmless classes, or an exported one without the hash in its name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if named := re.fullmatch(_EXPORTED, path.name):
        check_hash(path, named[1], "copy it here again")
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # the JSON after a safetensors file's first number
        needed("safetensors", path)
    whole = False
    try:
        if head[8:] == b"{":
            content = _load_safetensors(path, device)
        else:
            if head.startswith(b"PK"):  # torch writes CRCs of the tensors, and never looks at them
                with zipfile.ZipFile(path) as archive:
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(damaged)
                whole = True
            with safe_globals(_READ):
                content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the unpickler trusts the file: damage raises errors of many kinds
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a zip's bad offset
            raise
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors and plain types: {match[1]}, which could run "
                f"code; save the weights alone, torch.save(model.state_dict(), PATH)"
            ) from error
        raise ValueError(
            f"{path} is {'not' if whole else 'damaged or not'} a checkpoint of tensors and plain "
            f"types ({type(error).__name__}); make it anew or name another file"
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} holds no weights (tensors by name) but a {kind}; name another")
    return content


def _load_safetensors(path, device):
    """The content that formats.write_safetensors has written, or the bare weights of others."""
    import safetensors

    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = (file.metadata() or {}).get(CONTENT)
    return json.loads(facts) | {"state_dict": tensors} if facts else tensors


def rebuild(state, source):
    """The network that a model.pt or an exported file describes, with its weights.

    state: the file's content;  source: its name, for the error
    Raises ValueError for any other content.
    """
    if missing := _FIELDS - state.keys():
        raise ValueError(f"{source} is not a model.pt of this project: it lacks {min(missing)}")
    if str(state["format"]) != str(FORMAT):  # whatever it is
        raise ValueError(f"{source} has format {state['format']}; this version reads {FORMAT}")
    try:
        model = build_model(**state["arch"])
        model.load_state_dict(state["state_dict"])
        numbers = [state["normalisation"][name] for name in ("mean", "std")]
        same = torch.tensor(numbers, dtype=torch.float64).shape == (2, 3)
        same &= state["normalisation"].keys() == {"mean", "std"}
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
            raise ValueError(f"{source}: {name} holds numbers that are not finite; make it anew")


def start_from(model, content, source):
    """Load weights into `model`; a head (the last layer) of another class count keeps its own.

    content: tensors by name, or a checkpoint that has them somewhere; wrappers such as DataParallel
        and Lightning's modules may have put prefixes before their names
    source: where they come from, for the error
    -> whether the head kept its own weights.  Raises ValueError for weights of another network.
    """
    expected = model.state_dict()
    weights = _without_prefixes(_weights_in(content, source), expected)
    # Files from before torch 0.4.1 lack these counters; torch's load_state_dict accepts that too.
    weights = {n: t for n, t in expected.items() if n.endswith("num_batches_tracked")} | weights
    last, _ = head_of(model)
    head = [name for name in (f"{last}.weight", f"{last}.bias") if name in weights]
    other_head = any(weights[name].shape != expected[name].shape for name in head)
    if other_head:
        weights |= {name: expected[name] for name in head}
    wrong = sorted(set(expected) ^ set(weights))
    wrong += sorted(
        n for n in set(expected) & set(weights) if expected[n].shape != weights[n].shape
    )
    if wrong:
        raise ValueError(
            f"{source} holds another architecture: {len(wrong)} of its tensors do not fit "
            f"(such as {wrong[0]}); choose the --model that it was made with"
        )
    model.load_state_dict(weights)
    _check_finite(model, source)
    return other_head


def _weights_in(content, source):
    """The one dict of a network's tensors in a checkpoint, at any depth.

    An optimizer keeps its dicts of tensors under numbers, and random states have one dimension.
    """
    dicts, seen, places = [], set(), [("", content)]
    for place, tensors in places:  # grows
        if id(tensors) in seen:
            continue
        seen.add(id(tensors))
        if all(map(torch.is_tensor, tensors.values())) and any(
            t.ndim > 1 for t in tensors.values()
        ):
            dicts.append((place, tensors))
        places += [(n, x) for n, x in tensors.items() if isinstance(n, str) and isinstance(x, dict)]
    for key in _KEYS:
        dicts = [(place, tensors) for place, tensors in dicts if place == key] or dicts
    if not dicts:
        keys = ", ".join(map(str, list(content)[:8])) or "nothing"
        raise ValueError(f"{source} holds no weights (tensors by name) but {keys}; name another")
    if len(dicts) > 1:
        places = ", ".join(dict(dicts))
        raise ValueError(f"{source} holds several networks, {places}; save one of them alone")
    return dicts[0][1]


def _without_prefixes(weights, expected):
    """Weights under their network's own names: without what wrappers have put before or into them,
    and without the counter of torch's AveragedModel.
    """
    weights = {
        ".".join(part for part in str(name).split(".") if part not in _WRAPPERS): tensor
        for name, tensor in weights.items()
        if str(name).rpartition(".")[2] != "n_averaged"
    }
    roots = {name.partition(".")[0] for name in expected}
    while len(first := {name.partition(".")[0] for name in weights}) == 1 and first != roots:
        if not all("." in name for name in weights):
            break
        weights = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
    return weights
