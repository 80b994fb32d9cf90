"""Start-up and peak memory of the four steps, each as the user starts it.

    python benchmarks/steps.py --json steps.json                  # digits, and a large pool
    python benchmarks/steps.py --pool 0                           # without the large pool
    python benchmarks/steps.py --pool 100000 --side 16 --files    # as many small files

The demo runs twice, so that the second run finds its data decoded.  Then step 2 scores a pool of
noise in tar shards or in files, --pool images of --side pixels, with the network --model, also
twice.

first    seconds from the start of the program to the end of its first optimizer step, or its first
         scored chunk: imports, reading, drawing the first pictures
imports  of these, until the program's modules are imported
peak     largest resident memory of the program in MB, its mapped files included
bound    for the pool: its uint8 size plus 1,000 MB
answers  seconds that a program takes for --help and for a wrong flag

Writes   with --json FILE: {"demo": {stage: {...}}, "pool": {...}, "answers": {...}}, figures of the
         second run
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import cv2
import numpy as np

from files import write_json
from models.networks import MODELS
from stages import flags
from stages.prepare import versions

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--epochs", 1, "--passes", 2]  # the demo's trainings, cut short: only their start matters
STEPS = {
    "teacher": ("main", SHORT),
    "samples": ("make_sample_data", []),
    "student": ("student_train", SHORT),
    "finetuned": ("main", ["--student-network", "True", *SHORT]),
}
PROGRAM = """
import importlib, json, resource, sys, time
spawned, name, flags = json.loads(sys.argv[1])
program = importlib.import_module(name)
from stages import training
import ranking
imported, first = time.time(), []
fit, add = training.fit, ranking.Selector.add
def noted_fit(*args):
    for state in fit(*args):
        first.append(time.time())
        yield state
def noted_add(*args):
    best = add(*args)
    first.append(time.time())
    return best
training.fit, ranking.Selector.add = noted_fit, noted_add
program.main(flags)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # KB; bytes on a Mac
print(json.dumps({"imports": imported - spawned, "first": first[0] - spawned, "peak": peak}))
"""


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=flags.number(int, 0), default=150_000, metavar="N", help="default 150,000")
    add("--side", type=flags.number(int, 8), default=64, metavar="N", help="pixels (default 64)")
    add("--model", choices=MODELS, default="resnet8", metavar="NAME", help="default resnet8")
    add("--files", action="store_true", help="the pool as a folder of files, not as tar shards")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def run(program, *flags):
    """One program from its start to its end; -> its figures, rounded, with its seconds."""
    began = time.time()
    order = json.dumps([began, program, [*map(str, flags), "--device", "cpu", "--overwrite"]])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, order], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.time() - began}
    return {name: round(value, 2) for name, value in found.items()}


def demo(folder):
    where = ["--preset", "demo", "--run-dir", folder / "demo", "--data-dir", folder / "data"]
    for _ in range(2):
        found = {stage: run(name, *where, *flags) for stage, (name, flags) in STEPS.items()}
    return found


def answers():
    """Seconds of what needs no torch, each the middle one of five: {name: seconds}."""
    asked = {"help": ["--help"], "wrong flag": ["--epoch", 1]}
    found = {}
    for name, words in asked.items():
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            command = [sys.executable, ROOT / "main.py", *words]
            done = subprocess.run([str(word) for word in command], capture_output=True)
            seconds.append(time.perf_counter() - began)
            assert done.returncode == (2 if name == "wrong flag" else 0), done.stderr
        found[name] = round(statistics.median(seconds), 2)
    return found


def noise(side):
    """1,000 JPEGs, coarse enough to be small."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (1000, side // 8, side // 8, 3), dtype=np.uint8)
    large = (cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in coarse)
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in large]


def write_shards(folder, contents, count):
    """Tar shards of 10,000 members; `contents` are repeated."""
    folder.mkdir()
    for first in range(0, count, 10_000):
        with tarfile.open(folder / f"{first:08d}.tar", "w") as shard:
            for number in range(first, min(first + 10_000, count)):
                content = contents[number % len(contents)]
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def large_pool(folder, args):
    pool, images = folder / "pool", noise(args.side)
    if args.files:
        pool.mkdir()
        for number in range(args.pool):
            (pool / f"{number}.jpg").write_bytes(images[number % len(images)])
    else:
        write_shards(pool, images, args.pool)
        pool /= "*.tar"
    where = ["--run-dir", folder / "run", "--data-dir", folder / "data"]
    small = ["--preset", "demo", "--model", args.model, "--input-size", args.side]
    run("main", *small, *where, *SHORT)
    for turn in ("first run", "second run"):
        found = run("make_sample_data", *where, "--unlabeled", pool, "--k", 100)
        print(f"pool, {turn}: {found}", flush=True)
    size = args.pool * args.side**2 * 3 / 1e6
    asked = {name: getattr(args, name) for name in ("files", "side", "model")}
    bound = {"uint8_mb": round(size), "bound": round(size + 1000)}
    return {"images": args.pool, **asked, **found, **bound}


def main(argv=None):
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = {"demo": demo(Path(folder)), "answers": answers()}
        for stage, found in result["demo"].items():
            print(f"{stage}: {found}", flush=True)
        print(f"answers: {result['answers']}", flush=True)
        if args.pool:
            result["pool"] = large_pool(Path(folder), args)
    result["versions"] = versions()
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
