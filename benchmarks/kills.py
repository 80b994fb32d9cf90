"""What kill -9 does: a step is killed at random moments, and --resume ends it.

    python benchmarks/kills.py --json docs/results/faults.json   # 100 kills

A step is killed at a random moment, again and again with --resume up to three times in a row, then
--resume ends it; every file is compared with those of a run that was never killed (metrics.jsonl
without its times), and the names of all files that are left.  State is saved after every step and
every chunk here.  Linux and macOS: it forks.
Writes   with --json FILE: {"kills": {step: ...}, ...}; what faults.py has written there stays
"""

import argparse
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

from benchmarks.faults import STEPS, contents, print_table, quick, step, write_part
from stages import flags


def kills(folder, count, chance):
    """{step: {"rounds", "kills", "resumed to the same bytes", "files left behind"}}"""
    whole, found = folder / "never", {}
    seconds = {stage: forked(stage, whole) for stage in STEPS}
    for number in range(count):
        stage = list(STEPS)[number % len(STEPS)]
        base = folder / "killed"
        for earlier in list(STEPS)[: list(STEPS).index(stage)]:
            shutil.copytree(whole / "run" / earlier, base / "run" / earlier)
        row = found.setdefault(stage, {"rounds": 0, "kills": 0, "same": 0, "left": 0})
        for _ in range(chance.randint(1, 3)):
            row["kills"] += forked(stage, base, chance.uniform(0, seconds[stage])) is None
        forked(stage, base)
        names = {path.name for path in (base / "run" / stage).iterdir()}
        left = {n for n in names if not (whole / "run" / stage / n).exists() and "events" not in n}
        left |= {path.name for path in (base / "data").rglob("*.partial-*")}
        row["rounds"] += 1
        row["left"] += bool(left)
        row["same"] += contents(base / "run" / stage) == contents(whole / "run" / stage)
        shutil.rmtree(base)
    return found


def forked(stage, base, kill_after=None):
    """Run a step in a process of its own; -> its seconds, None if it was killed."""
    fork = multiprocessing.get_context("fork")
    process, began = fork.Process(target=step_or_exit, args=(stage, base)), time.monotonic()
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    assert process.exitcode == 0, stage
    return time.monotonic() - began


def step_or_exit(stage, base):
    code, _, error = step(stage, base, "--resume")
    if code:
        print(error, file=sys.stderr)
    raise SystemExit(code)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=flags.number(int, 1), default=100, metavar="N", help="default 100")
    add("--seed", type=flags.number(int, 0), default=0, metavar="N", help="default 0")
    add("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    quick()
    with tempfile.TemporaryDirectory() as folder:
        rows = kills(Path(folder), args.kills, random.Random(args.seed))
    print_table(rows)
    if args.json:
        write_part(args.json, "kills", rows, args.seed)


if __name__ == "__main__":
    main()
