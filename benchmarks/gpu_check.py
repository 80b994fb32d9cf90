"""All that a GPU has to show, in bookings of ten minutes: `make gpu-check`, again and again.

    make gpu-check                              # until it says that all is done
    make gpu-check FLAGS="--data-dir /data"     # for the four steps of the preset

1  tests/test_gpu.py: a failure ends the check
2  benchmarks/throughput.py --gpu-table: a row that fails costs that row
3  the four steps of the preset cifar100, with --resume

Every call goes on where the last one stopped, and stops in time by itself.  The tests and the table
begin anew after a new commit.

Writes   runs/gpu-check: table.json, and progress.json, the steps that are done; runs/cifar100
Exit     0 all is done; 75 the time is over, call it again; 1 a failure
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import torch

from benchmarks import gpu_table
from files import write_json
from stages.prepare import versions

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 540  # of a call; a training that is stopped then still saves its state
SAVING = 30
FOLDER = ROOT / "runs" / "gpu-check"
TESTS = ["-m", "pytest", "tests/test_gpu.py", "-rs"]
STEPS = [
    ["main.py"],
    ["make_sample_data.py"],
    ["student_train.py"],
    ["main.py", "--student-network", "True"],
]


def main(argv=None):
    flags = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return 0
    if not torch.cuda.is_available():
        print("gpu_check.py: torch sees no GPU here", file=sys.stderr)
        return 1
    return check(FOLDER, [[*step, "--resume", *flags] for step in STEPS])


def check(folder, steps, tests=TESTS, runs=gpu_table.RUNS, seconds=SECONDS):
    """Go on with the check in `folder`; -> the exit code."""
    end = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.json")
    for words in [tests, None, *steps]:
        name = "table" if words is None else " ".join(words)
        if name in progress.done:
            continue
        print(f"--- {name}", flush=True)
        if words is None:
            code = _table(folder / "table.json", runs, end, resume=progress.begun)
        else:
            code = _command(words, end)
        if code:
            print("the time is over: call it again" if code == 75 else f"failed: {name}")
            return code
        progress.add(name)
    print(f"all is done: see {folder / 'table.json'} and the result.json files of the four steps")
    return 0


class Progress:
    """The steps that are done with this commit."""

    def __init__(self, path):
        self.path, self.project, self.done = path, versions()["project"], []
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["project"] == self.project:
                self.done = saved["done"]
        self.begun = bool(self.done)

    def add(self, name):
        self.done.append(name)
        write_json(self.path, {"project": self.project, "done": self.done})


def _table(file, runs, end, resume):
    failed = gpu_table.fill(file, runs, end - time.monotonic(), resume)
    if gpu_table.unfinished(file):
        return 75
    print(f"{failed} of {len(runs)} rows failed" if failed else "no row failed")
    return 0


def _command(words, end):
    """Run a program of the project until `end` at most; -> 0, 75 or 1."""
    left = end - time.monotonic()
    if left <= 0:
        return 75
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    try:
        return int(process.wait(left) != 0)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves its state
        try:
            process.wait(SAVING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return 75


if __name__ == "__main__":
    sys.exit(main())
