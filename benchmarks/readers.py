"""Whatever a file holds, its reader returns or raises ValueError: arbitrary content, many times.

    python benchmarks/readers.py --json docs/results/readers.json   # 10,500 inputs

Each input is the file of a small run with a few bytes cut out or put in, or (records, checkpoints)
with arbitrary values in place of some of its own and no hash to protect them.  hypothesis chooses;
the same number of examples gives the same inputs.
Writes   with --json FILE: {reader: {"read": inputs, "refused": inputs}}
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.faults import STEPS, quick, step
from data import selection
from files import write_json
from models.weights import load, rebuild
from stages import flags
from stages.folder import read_record

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ANYWHERE = st.integers(0, 2**31)
# Of bytes: a place, how many are cut out there, what is put in.
EDIT = st.tuples(ANYWHERE, st.integers(0, 40), st.binary(max_size=9))
EDITS = st.lists(EDIT, min_size=1, max_size=3)
# Of a dict: a key at any depth, and a value to put there; () takes the key out.
CHANGES = st.lists(st.tuples(ANYWHERE, st.just(()) | st.tuples(VALUES)), min_size=1, max_size=2)


def damaged(content, edits):
    for place, cut, added in edits:
        at = place % (len(content) + 1)
        content = content[:at] + added + content[at + cut :]
    return content


def changed(content, changes):
    content = copy.deepcopy(content)
    for place, value in changes:
        places = list(keys_of(content))
        inside, key = places[place % len(places)]
        del inside[key]
        if value:
            inside[key] = value[0]
        elif not content:
            break
    return content


def keys_of(inside):
    """Yields (dict, key) for every key of a dict and of the dicts in it."""
    for key, value in inside.items():
        yield inside, key
        if isinstance(value, dict):
            yield from keys_of(value)


class Reader(NamedTuple):
    file: str
    content: bytes | dict
    read: Callable  # path -> anything, or ValueError
    write: Callable = lambda path, content: path.write_bytes(content)


def readers(run):
    """{name: Reader}; run: a run folder with its first two stages finished"""
    found = {}
    for stage, file in (("teacher", "config.json"), ("samples", "result.json")):
        content = (run / stage / file).read_bytes()
        unsealed = {key: x for key, x in json.loads(content).items() if key != "sha256"}
        found[f"{file}, bytes"] = Reader(file, content, read_record)
        found[f"{file}, values"] = Reader(file, unsealed, read_record, write_json)
    content = (run / "samples/selection.csv").read_bytes()
    ten = partial(selection.read_selection, num_classes=10)
    found["selection.csv, bytes"] = Reader("selection.csv", content, ten)
    content, state = (run / "teacher/model.pt").read_bytes(), load(run / "teacher/model.pt")
    found["model.pt, bytes"] = Reader("model.pt", content, rebuilt)
    found["model.pt, values"] = Reader(
        "model.pt", state, rebuilt, lambda path, content: torch.save(content, path)
    )
    return found


def rebuilt(path):
    return rebuild(load(path), path)


def count(reader, folder, examples):
    """{"read": inputs, "refused": inputs} of a Reader; any error but ValueError comes through."""
    counts, path = {"read": 0, "refused": 0}, folder / reader.file
    change, ways = (changed, CHANGES) if isinstance(reader.content, dict) else (damaged, EDITS)

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(ways)
    def check(how):
        reader.write(path, change(reader.content, how))
        try:
            reader.read(path)
            counts["read"] += 1
        except ValueError as error:
            assert str(path) in str(error), error
            counts["refused"] += 1

    check()
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=flags.number(int, 1), default=1500, metavar="N",
                        help="of each reader (default 1,500)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    quick()
    with tempfile.TemporaryDirectory() as folder:
        for stage in list(STEPS)[:2]:
            code, _, error = step(stage, Path(folder))
            assert code == 0, error
        found = {}
        for name, reader in readers(Path(folder, "run")).items():
            found[name] = count(reader, Path(folder), args.examples)
            print(f"{name:24}", *(f"{x:8} {kind}" for kind, x in found[name].items()), flush=True)
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
