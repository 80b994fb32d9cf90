"""What kill -9 does: a step is killed at random moments, and at every file it renames.

    python benchmarks/kills.py --json docs/results/kills.json             # 100 random rounds
    python benchmarks/kills.py --renames --json docs/results/kills.json   # each rename, twice

A step is killed at a random moment, again and again with --resume up to three times in a row; or it
kills itself right before, and in another round right after, its n-th call of os.rename or
os.replace, for every n.  Then --resume ends it; every file is compared with those of a run that was
never killed (metrics.jsonl without its times), and the names of all files that are left.  State is
saved after every step and every chunk here, and every round has a cache of its own, into which step
2 decodes a folder of pictures.  Linux and macOS: it forks.
Writes   with --json FILE: {"kills": {step: ...}} or {"kills at renames": {step: ...}}; the rest of
         FILE stays
"""

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

from tqdm import tqdm

from benchmarks.faults import STEPS, contents, pictures, print_table, quick, step, write_part
from stages import flags


def kills(folder, count, chance):
    """{step: {"rounds", "kills", "same", "left"}}: of the rounds those that ended with the same
    bytes, and those that left a file behind.
    """
    whole, found = folder / "never", {}
    seconds = {stage: forked(stage, whole) for stage in STEPS}
    for number in tqdm(range(count), unit="round"):
        stage = list(STEPS)[number % len(STEPS)]
        times = [chance.uniform(0, seconds[stage]) for _ in range(chance.randint(1, 3))]
        add_round(found, folder, stage, [{"kill_after": time} for time in times])
    return found


def kills_at_renames(folder):
    """The same for each step, killed before and after each of its renames, a round each."""
    whole, found = folder / "never", {}
    for stage in STEPS:
        forked(stage, whole)
        for after in (False, True):
            for number in tqdm(itertools.count(1), stage, unit="rename"):
                if not add_round(found, folder, stage, [{"rename": (number, after)}]):
                    break
        found[stage]["renames"] = number - 1
    return found


def add_round(found, folder, stage, deaths):
    """Kill a step as each of `deaths` says, end it and compare; -> how often it was killed."""
    whole, base = folder / "never", folder / "killed"
    for earlier in list(STEPS)[: list(STEPS).index(stage)]:
        shutil.copytree(whole / "run" / earlier, base / "run" / earlier)
    struck = sum(forked(stage, base, **death) is None for death in deaths)
    forked(stage, base)
    names = {path.name for path in (base / "run" / stage).iterdir()}
    left = {n for n in names if not (whole / "run" / stage / n).exists() and "events" not in n}
    left |= {path.name for path in (base / "data").rglob("*.partial-*")}
    row = found.setdefault(stage, {"rounds": 0, "kills": 0, "same": 0, "left": 0})
    same = contents(base / "run" / stage) == contents(whole / "run" / stage)
    for name, more in zip(row, (1, struck, same, bool(left)), strict=False):
        row[name] += more
    shutil.rmtree(base)
    return struck


def forked(stage, base, kill_after=None, rename=None):
    """Run a step in a process of its own; -> its seconds, None if it was killed.

    kill_after: seconds;  rename: (n, after), see `dying_at_rename`
    """
    fork = multiprocessing.get_context("fork")
    process, began = fork.Process(target=step_or_exit, args=(stage, base, rename)), time.monotonic()
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0, stage
    return time.monotonic() - began


def step_or_exit(stage, base, rename):
    if rename:
        dying_at_rename(*rename)
    code, _, error = step(stage, base, "--resume")
    if code:
        print(error, file=sys.stderr)
    raise SystemExit(code)


def dying_at_rename(number, after):
    """From here on this process kills itself at its `number`th rename, `after` it or before."""
    left = itertools.count(number, -1)

    def dying(rename):
        def call(*args, **kwargs):
            last = next(left) == 1
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    os.rename, os.replace = dying(os.rename), dying(os.replace)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=flags.number(int, 1), default=100, metavar="N", help="rounds (default 100)")
    add("--renames", action="store_true", help="at every rename instead")
    add("--seed", type=flags.number(int, 0), default=0, metavar="N", help="default 0")
    add("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    quick()
    with tempfile.TemporaryDirectory() as folder:
        pictures(Path(folder) / "pictures")
        if args.renames:
            rows = kills_at_renames(Path(folder))
        else:
            rows = kills(Path(folder), args.kills, random.Random(args.seed))
    print_table(rows)
    if args.json:
        write_part(args.json, "kills at renames" if args.renames else "kills", rows, args.seed)


if __name__ == "__main__":
    main()
