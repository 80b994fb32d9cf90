"""config.json and result.json: what they must hold, and what they say of a stage's other files.

Each ends with the sha256 of its own fields.  result.json, written last, also has that of every
other file of the stage, so that a flipped bit, a cut or a file of another run is noticed by whoever
reads one.  Nothing here imports torch: a finished stage answers at once, see flags.answer_early.
"""

import dataclasses
import functools
import hashlib
import json
import math
import sys
from pathlib import Path

from files import sha256_of_file
from presets import PRESETS, Training

from .folder import PRODUCTS, STAGES

LARGEST = 2**48  # of a whole number: random number generators take no seed much above it

# The kinds of a JSON value: a type, a set of choices, a list [kind of each], a tuple of several
# kinds, or a dict of what an object must hold (a ? marks what may be absent; the key `str` gives
# the kind of everything in it).
_TRAINING = {f"{f.name}?": type(f.default) for f in dataclasses.fields(Training)}
_CONFIG = {
    "stage": set(STAGES),
    "preset": set(PRESETS),
    **dict.fromkeys(("dataset", "data_dir", "device"), str),
    **dict.fromkeys(("seed", "val_per_class", "input_size", "threads"), int),
    "labels_per_class": (int, None),
    "normalisation": {"mean": [float], "std": [float]},
    "precision": {"float32", "bfloat16"},
    "versions": dict,
    "compile?": bool,
    "weights?": (str, None),
    "inputs": {"labelled": {"pixels": str}},
    "parent": ({"stage": set(STAGES), "path": str, "sha256": str}, None),
}
_TRAINED = {"training": _TRAINING}
_POOLS = {
    "unlabeled": [str],
    "pools": {str: {"digest": (str, dict), "entries": int}},
    "p": int,
    "k": int,
}
_POOLS |= {"strategy": str, "keep_duplicates": bool}
_RESULT = {"stage": set(STAGES), **dict.fromkeys(("dataset", "model"), str), "num_parameters": int}
_RESULT |= {"files?": {str: str}}
_SCORES = dict.fromkeys(("val_top1", "test_top1", "test_top5"), float)
_COUNTS = dict.fromkeys(("scored", "skipped", "selected", "unique_images"), int)
_COUNTS |= {"pseudo_label_accuracy?": float}
FIELDS = {  # file -> of every stage, of a training, of step 2
    "config.json": (_CONFIG, _TRAINED, _POOLS),
    "result.json": (_RESULT, _SCORES, _COUNTS),
}


def sealed(content):
    """The content of a config.json or result.json with the sha256 of its fields as the last one."""
    return {**content, "sha256": _digest(content)}


def read_record(path):
    """The content of a config.json or result.json, without its seal.

    Raises FileNotFoundError, and ValueError, naming the field, for any other content.  A file from
    before there were seals is read all the same: its fields are looked at, not their values.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    wrong = _misfit(content, FIELDS[path.name][0], "")
    if not wrong:
        wrong = _misfit(content, FIELDS[path.name][1 + (content["stage"] == "samples")], "")
    if wrong:
        raise _damaged(path, wrong)
    seal = content.pop("sha256", None)
    if seal not in (None, _digest(content)):
        raise _damaged(path, "its fields do not have the sha256 at its end")
    return content


def hashes_of(folder):
    """{name: sha256} of the files that a stage has written so far, result.json left out."""
    return {p.name: sha256_of_file(p) for name in PRODUCTS for p in sorted(folder.glob(name))}


def check_file(path):
    """-> the sha256 of a file, once it is the one that its stage wrote.

    Raises OSError, or ValueError for another one.  A file passes that is in no finished stage, and,
    with a word on stderr, one of a stage from before result.json had hashes.
    """
    path, found = Path(path), sha256_of_file(path)
    expected = _expected(path.parent).get(path.name, found)
    if found != expected:
        raise ValueError(
            f"{path} is not what {_step(path.parent)} wrote (sha256 {found[:8]}.. instead of "
            f"{expected[:8]}..); put the right file back, or {_again(path.parent)}"
        )
    return found


def check_stage(folder):
    """Check every file of a finished stage; one that was deleted is missed by whoever needs it.

    Raises ValueError.
    """
    read_record(folder / "config.json")
    for name in _expected(folder):
        if (folder / name).exists():
            check_file(folder / name)


def _expected(folder):
    """{name: sha256} of a finished stage's files; {} where nobody says."""
    if not all((folder / name).exists() for name in FIELDS):
        return {}
    files = read_record(folder / "result.json").get("files")
    if files is None:
        _say_unchecked(folder.resolve())
    return files or {}


@functools.cache
def _say_unchecked(folder):
    print(f"{folder} is from before result.json had hashes: its files are read unchecked",
          file=sys.stderr)  # fmt: skip


def _digest(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _misfit(value, kind, name):
    """What in a JSON value is not of its kind, in words, `name` being its own; None for nothing."""
    if isinstance(kind, tuple):
        wrongs = [_misfit(value, one, name) for one in kind]
        return None if None in wrongs else wrongs[value is None]
    if isinstance(kind, list) and isinstance(value, list):
        parts = [(item, kind[0], f"{name}[{i}]") for i, item in enumerate(value)]
    elif isinstance(kind, dict) and isinstance(value, dict):
        kinds = dict.fromkeys(value, kind[str]) if str in kind else kind
        dot = f"{name}." if name else ""
        if missing := {key for key in kinds if not key.endswith("?")} - value.keys():
            return f"it lacks {dot}{min(missing)}"
        given = [(key.removesuffix("?"), own) for key, own in kinds.items()]
        parts = [(value[key], own, dot + key) for key, own in given if key in value]
    else:
        return None if _is(value, kind) else f"{name or 'its content'} is {json.dumps(value)[:40]}"
    return next(filter(None, (_misfit(*part) for part in parts)), None)


def _is(value, kind):
    if kind is None or isinstance(kind, set):
        return value is None if kind is None else isinstance(value, str) and value in kind
    if isinstance(value, bool) or not isinstance(value, int | float):
        return isinstance(kind, type) and kind not in (int, float) and isinstance(value, kind)
    return kind in (float, type(value)) and abs(value) <= LARGEST and math.isfinite(value)


def _damaged(path, why):
    return ValueError(f"{path} is damaged ({why}); {_again(path.parent)}")


def _step(folder):
    """Which step writes a stage's folder."""
    stages = list(STAGES)
    return f"step {stages.index(folder.name) + 1}" if folder.name in stages else "its step"


def _again(folder):
    command = f" with `{STAGES[folder.name][1]} --overwrite`" if folder.name in STAGES else ""
    return f"run {_step(folder)} again{command}"
