"""The demo's chain ends with the bits that trials.runs.NUMBERS stands for.

Where this fails after a change that was meant to leave numbers alone, the change is wrong.  Where
the change was meant to move them, raise NUMBERS, and write the new bits down with
`python tests/test_numbers.py`, in a commit that says why: the study's runs are then run again.
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a program
from stages.device import instruction_set
from trials.runs import NUMBERS

FILE = Path(__file__).with_name("numbers.json")
MACHINE = f"torch {torch.__version__}, {platform.machine()}, {instruction_set()}"


def bits_of(run):
    """{stage: sha256 of its numbers}, 16 digits each."""
    found = {}
    for stage in ("teacher", "student", "finetuned"):
        digest = hashlib.sha256()
        weights = torch.load(run / stage / "model.pt", weights_only=True)["state_dict"]
        for name in sorted(weights):
            digest.update(weights[name].numpy().tobytes())
        with np.load(run / stage / "predictions.npz") as arrays:
            for name in sorted(arrays):
                digest.update(arrays[name].tobytes())
        found[stage] = digest.hexdigest()[:16]
    selection = (run / "samples" / "selection.csv").read_bytes()
    return found | {"samples": hashlib.sha256(selection).hexdigest()[:16]}


def test_the_demo_ends_with_the_bits_that_numbers_stands_for(digits_run):
    known = json.loads(FILE.read_text())
    assert known["NUMBERS"] == NUMBERS, "write the new bits down: python tests/test_numbers.py"
    if MACHINE not in known:
        pytest.skip(f"no bits are known for {MACHINE}")
    assert bits_of(digits_run) == known[MACHINE]


if __name__ == "__main__":
    import conftest

    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    known = known if known.get("NUMBERS") == NUMBERS else {"NUMBERS": NUMBERS}
    with tempfile.TemporaryDirectory() as folder:
        run = conftest.make_digits_run(Path(folder))
        known[MACHINE] = bits_of(run)
    FILE.write_text(json.dumps(known, indent=1) + "\n")
