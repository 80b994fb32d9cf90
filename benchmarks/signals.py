"""What SIGTERM and Ctrl-C do in every phase of the four steps, in one process and in two.

    python benchmarks/signals.py --json docs/results/signals.json   # a quarter of an hour
    python benchmarks/signals.py --phases imports training --ranks 1

The signal comes when the first process enters a phase's function; under torchrun it goes to the
launcher, as from a terminal or a batch system.  Figures of a row, of both signals the worse:

    line    seconds from the signal to our first line on stderr
    end     seconds from the signal to the end of the program, or of torchrun
    lines   of ours on stderr;  a traceback of ours counts as 100
    code    as it should be: 143 and 130;  torchrun itself ends with 1
    same    whether --resume then ends with the same bytes as a run that was never stopped

The images are 56 + 24 noise pictures of 8 pixels: every step is shorter than a second.  Linux.
"""

import argparse
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

from benchmarks.faults import contents
from data import write_json
from stages import flags
from stages.config import versions

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ["--batch-size", "6", "--epochs", "3", "--passes", "1"]
STEPS = {
    "teacher": ["main.py", "--preset", "demo", "--dataset", "folder", "--input-size", "8",
                "--labels-per-class", "3", "--val-per-class", "2", *TRAINED],
    "samples": ["make_sample_data.py", "--k", "5", "--p", "2", "--batch-size", "8"],
    "student": ["student_train.py", *TRAINED],
    "finetuned": ["main.py", "--student-network", "True", *TRAINED],
}  # fmt: skip
PHASES = {  # phase -> the steps that have it, the function that begins it
    "imports": ("teacher samples", "/torch/__init__.py:<module>"),
    "listing": ("teacher samples", "/data/files.py:_walk"),
    "decoding": ("teacher samples", "/data/workers.py:decode_all"),
    "leak guard": ("samples", "/data/duplicates.py:find"),
    "training": ("teacher student finetuned", "/engine.py:learning_rate"),
    "evaluation": ("teacher student", "/stages/training.py:evaluate"),
    "scoring": ("samples", "/stages/scoring.py:add"),
    "last test": ("teacher finetuned", "/stages/training.py:test_once"),
    "drawing": ("teacher samples", "/report/board.py:add_figure"),
    "result": ("teacher samples", "/stages/lifetime.py:finish"),
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
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
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
    done = subprocess.run(
        command(base, stage, ranks, *more), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def interrupt(base, stage, ranks, where, signum):
    """Send a signal where a phase begins; -> {"line", "end", "lines", "code"}"""
    (base / "probe.py").write_text(PROBE)
    words = command(base, stage, ranks, probe=(base / "probe.py", where))
    with (
        open(base / "stderr", "wb") as err,
        subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=err) as process,
    ):
        while process.stdout.readline() not in (b"here\n", b""):
            pass
        assert process.poll() is None, (base / "stderr").read_text()
        process.send_signal(signum)
        sent, line = time.monotonic(), None
        while process.poll() is None:
            if line is None and ours(base, stage):
                line = time.monotonic() - sent
            time.sleep(0.01)
            if time.monotonic() - sent > 120:
                process.kill()
        end = time.monotonic() - sent
    found = ours(base, stage)
    line = end if line is None and found else line
    print("   ", *found, sep="\n    ", flush=True)
    expected = 128 + signum if ranks == 1 else 1
    return {"line": line, "end": end, "lines": len(found) + 100 * broken(base, ranks),
            "code": process.returncode == expected}  # fmt: skip


def ours(base, stage):
    text = (base / "stderr").read_text(errors="replace")
    return [line for line in text.splitlines() if STEPS[stage][0] + ":" in line
            or STEPS[stage][0] + " (" in line]  # fmt: skip


def broken(base, ranks):
    """Whether stderr has a traceback, of the launcher's own one apart."""
    text = (base / "stderr").read_text(errors="replace")
    return text.count("Traceback") > (ranks > 1)


def pictures(folder, count, seed):
    folder.mkdir(parents=True)
    noise = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        cv2.imwrite(str(folder / f"{number}.png"), pixels)


def measure(folder, ranks, phases):
    """{"phase, step": row} for a number of processes."""
    whole, rows = folder / f"whole-{ranks}", {}
    for number, name in enumerate(("ant", "bee", "crab", "dove")):
        pictures(whole / "data/train" / name, 14, number)
        pictures(whole / "data/test" / name, 6, 100 + number)
    pictures(whole / "pool", 20, 200)
    shutil.copytree(whole, folder / "fresh")  # without a cache
    wanted = [(phase, stage) for phase in phases for stage in PHASES[phase][0].split()]
    for stage in STEPS:
        if any(
            later >= list(STEPS).index(stage) for later in (list(STEPS).index(s) for _, s in wanted)
        ):
            finish(whole, stage, ranks)
    for phase, stage in wanted:
        print(f"{phase}, {stage}, {ranks} processes", flush=True)
        found = []
        for signum in (signal.SIGTERM, signal.SIGINT):
            base = folder / "stopped"
            shutil.copytree(folder / "fresh", base)
            for earlier in list(STEPS)[: list(STEPS).index(stage)]:
                shutil.copytree(whole / "run" / earlier, base / "run" / earlier)
            found.append(interrupt(base, stage, ranks, PHASES[phase][1], signum))
            finish(base, stage, ranks, "--resume")
            same = contents(base / "run" / stage) == contents(whole / "run" / stage)
            found[-1]["same"] = same
            shutil.rmtree(base)
        rows[f"{phase}, {stage}"] = worse(*found)
        print("   ", rows[f"{phase}, {stage}"], flush=True)
    shutil.rmtree(folder / "fresh")
    return rows


def worse(one, other):
    never = [row["line"] is None for row in (one, other)]
    row = {name: max(one[name], other[name]) for name in ("end", "lines")}
    row |= {name: one[name] and other[name] for name in ("code", "same")}
    line = None if any(never) else max(one["line"], other["line"])
    return {"line": line} | row


def main(argv=None):
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = {str(n): measure(Path(folder), n, args.phases) for n in args.ranks}
    for ranks, rows in found.items():
        print(
            f"\n{ranks + ' process(es)':24}{'line':>8}{'end':>8}{'lines':>8}{'code':>8}{'same':>8}"
        )
        for name, row in rows.items():
            line = "never" if row["line"] is None else f"{row['line']:.2f}"
            print(
                f"{name:24}{line:>8}{row['end']:8.2f}",
                *(f"{row[n]:>7}" for n in ("lines", "code", "same")),
            )
    if args.json:
        write_json(args.json, {"processes": found, "versions": versions()})


if __name__ == "__main__":
    main()
