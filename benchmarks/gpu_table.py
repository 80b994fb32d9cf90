"""One short GPU booking fills the table: the program's own runs, one after the other.

Each runs in its own process under its own time limit, and the table is written again after each:
a run that fails or hangs costs its own row, and a table that was cut off goes on where it stopped.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.timing import machine
from files import write_json
from stages.prepare import versions

SECONDS = 560  # in all
_NETWORKS = (("resnet50", 128, 512), ("resnet50-cifar", 32, 512))
_NETWORKS += (("resnet18-cifar", 32, 1024), ("resnet50", 64, 1024))  # model, pixels, batch size
_NO_TIME = "no time left"


def _rates(model, size, batch, *more):
    job = ["--model", model, "--input-size", str(size), "--batch-size", str(batch)]
    return ["throughput.py", *job, "--device", "cuda", *more]


# command, limit in seconds: the rates first, then what explains them
RUNS = [
    *((_rates(*job, "--repeats", "2", "--seconds", "1.5"), 150) for job in _NETWORKS),
    (_rates("resnet50", 128, 512, "--switches", "--repeats", "2", "--seconds", "1"), 240),
    (_rates("resnet18-cifar", 32, 1024, "--switches", "--repeats", "2", "--seconds", "1"), 240),
]


def fill(file, runs=RUNS, seconds=SECONDS, resume=False):
    """Do `runs`; write {"machine", "project", "rows": [{"command", "seconds", "result" or
    "error"}]} to `file` after each.  Returns the number of rows that failed.

    resume: keep the rows of `file` that are done, the failed ones too; not those that had no time
    """
    rows, end = [], time.monotonic() + seconds
    if resume:
        rows = [row for row in _rows(file) if row.get("error") != _NO_TIME]
    for command, limit in runs:
        words = " ".join(command)
        if any(row["command"] == words for row in rows):
            continue
        began = time.monotonic()
        row = _row(command, limit, end - began)
        rows.append({"command": words, "seconds": time.monotonic() - began, **row})
        print(f"{rows[-1]['seconds']:6.0f} s  {words}", row.get("error", "done"), flush=True)
        written = {
            "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "project": versions()["project"],
            "rows": rows,
        }
        write_json(file, written)
    return sum("error" in row for row in rows)


def _rows(file):
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []


def unfinished(file):
    """Whether rows are left that had no time."""
    return any(row.get("error") == _NO_TIME for row in _rows(file))


def _row(command, limit, left):
    """limit: seconds of this run;  left: of all"""
    if left <= 0:
        return {"error": _NO_TIME}
    program, *flags = command
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        words = [sys.executable, str(Path(__file__).with_name(program)), *flags]
        try:
            done = subprocess.run(
                [*words, "--json", str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=min(limit, left),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": _NO_TIME if left < limit else f"not finished after {limit} s"}
        row = {"result": json.loads(file.read_text(encoding="utf-8"))} if file.exists() else {}
        if done.returncode:
            row["error"] = " | ".join(done.stdout.strip().splitlines()[-3:])
        return row
