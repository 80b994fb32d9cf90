"""One short GPU booking fills the table: the program's own runs, one after the other.

Each runs in its own process under its own time limit, and the table is written again after each:
a run that fails or hangs costs its own row.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.timing import machine
from presets import CIFAR100
from stages.config import versions

PROGRAM = Path(__file__).with_name("throughput.py")
SECONDS = 560  # in all
_NETWORKS = (("resnet50", 128, 512), ("resnet50-cifar", 32, 512))
_NETWORKS += (("resnet18-cifar", 32, 1024), ("resnet50", 64, 1024))  # model, pixels, batch size


def _flags(model, size, batch, *more):
    job = ["--model", model, "--input-size", str(size), "--batch-size", str(batch)]
    return [*job, "--device", "cuda", *more]


# flags, limit in seconds: the rates first, then what explains them
RUNS = [
    *((_flags(*job, "--repeats", "2", "--seconds", "1.5"), 150) for job in _NETWORKS),
    *((_flags(*job, "--resources", "--seconds", "1.5"), 90) for job in _NETWORKS),
    (_flags("resnet50", 128, 512, "--switches", "--repeats", "2", "--seconds", "1"), 240),
    (_flags("resnet18-cifar", 32, 1024, "--switches", "--repeats", "2", "--seconds", "1"), 240),
]


def fill(file, runs=RUNS, seconds=SECONDS):
    """Do `runs`; write {"rows": [{"flags", "seconds", "result" or "error"}], "cifar100_minutes"}
    to `file` after each.  Returns the number of rows that failed.
    """
    rows, end = [], time.monotonic() + seconds
    for flags, limit in runs:
        began = time.monotonic()
        row = _row(flags, min(limit, end - began))
        rows.append({"flags": " ".join(flags), "seconds": time.monotonic() - began, **row})
        print(f"{rows[-1]['seconds']:6.0f} s  {rows[-1]['flags']}", row.get("error", "done"))
        written = {
            "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "project": versions()["project"],
            "rows": rows,
            "cifar100_minutes": cifar100_minutes(rows),
        }
        file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return sum("error" in row for row in rows)


def _row(flags, limit):
    if limit <= 0:
        return {"error": "no time left"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, str(PROGRAM), *flags, "--json", str(file)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, timeout=limit)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"not finished after {limit:.0f} s"}
        row = {"result": json.loads(file.read_text(encoding="utf-8"))} if file.exists() else {}
        if done.returncode:
            row["error"] = " | ".join(done.stdout.strip().splitlines()[-3:])
        return row


def cifar100_minutes(rows):
    """The preset's four steps at the rates of its network and size, without evaluation, or None.

    The student sees at most K images of each of 100 classes.
    """
    for row in rows:
        result = row.get("result", {})
        if (result.get("model"), result.get("input_size")) == ("resnet50", CIFAR100.input_size):
            train, infer = (result.get(task, {}).get("ours") for task in ("train", "infer"))
            if train and infer:
                labelled = 50_000 - 100 * CIFAR100.val_per_class
                images = (CIFAR100.teacher.epochs + CIFAR100.finetune.epochs) * labelled
                images += CIFAR100.student.epochs * 100 * CIFAR100.k
                return (images / train + 150_000 / infer) / 60
    return None
