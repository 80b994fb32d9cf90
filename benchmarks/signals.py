"""What SIGTERM and Ctrl-C do in every phase of the four steps, in one process and in two.

    python benchmarks/signals.py --json docs/results/signals.json   # a quarter of an hour
    python benchmarks/signals.py --phases imports training --ranks 1

The signal comes when the first process enters a phase's function; under torchrun it goes to the
launcher, as from a terminal or a batch system.  Figures of a row, of both signals the worse:

    line    seconds from the signal to our first line on stderr
    end     seconds from the signal to the end of the program, or of torchrun
    load    processes of the machine that want to run
    lines   of ours on stderr;  a traceback of ours counts as 100
    code    as it should be: 143 and 130;  torchrun itself ends with 1
    same    whether --resume then ends with the same bytes as a run that was never stopped

The images are 100 noise pictures of 8 pixels, so every step is far shorter than a second.  With
--json a phase that is not tried keeps the figures that FILE has.  Linux.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import cv2
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

import main as training_program
import make_sample_data
import student_train
from benchmarks.faults import call, contents
from files import write_json
from stages import flags
from stages.prepare import versions

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("line", "end", "load", "lines", "code", "same")
TRAINED = ["--batch-size", "6", "--epochs", "3", "--passes", "1"]
STEPS = {
    "teacher": ["main.py", "--preset", "demo", "--dataset", "folder", "--input-size", "8",
                "--labels-per-class", "3", "--val-per-class", "2", *TRAINED],
    "samples": ["make_sample_data.py", "--k", "5", "--p", "2", "--batch-size", "8"],
    "student": ["student_train.py", *TRAINED],
    "finetuned": ["main.py", "--student-network", "True", *TRAINED],
}  # fmt: skip
PROGRAMS = {"main.py": training_program, "make_sample_data.py": make_sample_data,
            "student_train.py": student_train}  # fmt: skip
PHASES = {  # phase -> the steps it is tried in, the function that begins it
    "imports": ("teacher", "/torch/__init__.py:<module>"),
    "listing": ("samples", "/data/listing.py:_walk"),
    "decoding": ("teacher samples", "/data/workers.py:decode_all"),
    "leak guard": ("samples", "/data/duplicates.py:find"),
    "training": ("teacher", "/engine.py:learning_rate"),
    "evaluation": ("student", "/stages/training.py:evaluate"),
    "scoring": ("samples", "/stages/scoring.py:add"),
    "last test": ("finetuned", "/stages/training.py:test_once"),
    "drawing": ("teacher", "/report/board.py:test_results"),
    "pictures": ("samples", "/report/board.py:selection"),
    "result": ("student", "/stages/lifetime.py:finish"),
}
# Waits a moment where the phase begins, so that the signal finds it there.
PROBE = """
import os, runpy, sys, time
file, function = sys.argv[1].split(":")
def look(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_name == function and code.co_filename.endswith(file):
        sys.setprofile(None)
        if os.environ.get("RANK", "0") == "0":
            os.write(1, b"here\\n")
        time.sleep(0.3)
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
sys.setprofile(look)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def parse(argv):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--phases", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE")
    add("--ranks", nargs="+", type=flags.number(int, 1), default=[1, 2], metavar="N")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def command(base, stage, ranks, *more, probe=()):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--"]
    script, *own = STEPS[stage]
    words = [*(launch if ranks > 1 else ()), *probe, ROOT / script, *own, "--device", "cpu"]
    if stage in ("teacher", "samples"):
        words += ["--data-dir", base / "data"]
    if stage == "samples":
        words += ["--unlabeled", "heldout", base / "pool"]
    return [sys.executable, *map(str, words), "--run-dir", str(base / "run"), *more]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def finish(base, stage, ranks, *more):
    """Run a step to its end; one process does that here, which saves its imports."""
    words = command(base, stage, ranks, *more)
    if ranks == 1:
        code, _, error = call(PROGRAMS[STEPS[stage][0]].main, *words[2:])
    else:
        done = subprocess.run(words, env=environment(), capture_output=True, text=True)
        code, error = done.returncode, done.stderr
    assert code == 0, error


def interrupt(base, stage, ranks, where, signum):
    """Send a signal where a phase begins; -> the row, less "same"."""
    (base / "probe.py").write_text(PROBE)
    words = command(base, stage, ranks, probe=(base / "probe.py", where))
    with open(base / "stderr", "wb") as error:
        process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=error)
        while process.stdout.readline() not in (b"here\n", b""):
            pass
        process.send_signal(signum)
        sent, line = time.monotonic(), None
        while process.poll() is None:
            if line is None and ours(base, stage):
                line = time.monotonic() - sent
            time.sleep(0.01)
        end = time.monotonic() - sent
        process.stdout.close()
    found = ours(base, stage)
    print("   ", *found, sep="\n    ", flush=True)
    line = end if line is None and found else line
    code = process.returncode == (128 + signum if ranks == 1 else 1)
    return {"line": line, "end": end, "lines": len(found) + 100 * broken(base, ranks), "code": code}


def ours(base, stage):
    """The lines on stderr that are the program's own."""
    lines = (base / "stderr").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(STEPS[stage][0])]


def broken(base, ranks):
    """Whether stderr has a traceback beside torchrun's own."""
    return (base / "stderr").read_text(errors="replace").count("Traceback") > (ranks > 1)


def pictures(folder, count, seed):
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        cv2.imwrite(str(folder / f"{number}.png"), pixels)


def measure(folder, ranks, phases):
    """Yield "phase, step", row for a number of processes."""
    whole, fresh, stages = folder / "whole", folder / "fresh", list(STEPS)
    for number, name in enumerate(("ant", "bee", "crab", "dove")):
        pictures(fresh / "data/train" / name, 14, number)
        pictures(fresh / "data/test" / name, 6, 100 + number)
    pictures(fresh / "pool", 20, 200)
    shutil.copytree(fresh, whole)
    wanted = [(phase, stage) for phase in phases for stage in PHASES[phase][0].split()]
    for stage in stages[: 1 + max(stages.index(stage) for _, stage in wanted)]:
        finish(whole, stage, ranks)
    for phase, stage in wanted:
        found = []
        for signum in (signal.SIGTERM, signal.SIGINT):
            base = shutil.copytree(fresh, folder / "stopped")
            for earlier in stages[: stages.index(stage)]:
                shutil.copytree(whole / "run" / earlier, base / "run" / earlier)
            row = interrupt(base, stage, ranks, PHASES[phase][1], signum)
            finish(base, stage, ranks, "--resume")
            row["same"] = contents(base / "run" / stage) == contents(whole / "run" / stage)
            found.append(row)
            shutil.rmtree(base)
        yield f"{phase}, {stage}", worse(*found) | {"load": os.getloadavg()[0]}


def worse(one, other):
    """The row of both signals; a line that never came is None."""
    row = {name: max(one[name], other[name]) for name in ("end", "lines")}
    row |= {name: one[name] and other[name] for name in ("code", "same")}
    both = one["line"], other["line"]
    return {"line": None if None in both else max(both)} | row


def print_table(ranks, rows):
    print(f"\n{ranks + ' process(es)':24}" + "".join(f"{name:>8}" for name in COLUMNS))
    for name, row in rows.items():
        seconds = ["-" if row[x] is None else f"{row[x]:.2f}" for x in COLUMNS[:3]]
        print(f"{name:24}" + "".join(f"{x!s:>8}" for x in (*seconds, *map(row.get, COLUMNS[3:]))))


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    for name in ("add_figure", "add_pr_curve", "add_embedding"):  # of the runs in this process
        setattr(SummaryWriter, name, lambda *arguments, **options: None)
    found = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text())["processes"]
    for ranks in map(str, args.ranks):
        with tempfile.TemporaryDirectory() as folder:
            for name, row in measure(Path(folder), int(ranks), args.phases):
                found.setdefault(ranks, {})[name] = row
                if args.json:
                    write_json(args.json, {"processes": found, "versions": versions()})
        print_table(ranks, found[ranks])


if __name__ == "__main__":
    main()
