"""What threads give on a quiet machine, and what they cost on one that has other work to do.

    python benchmarks/load.py --json docs/results/throughput/load.json    # some five minutes
    python benchmarks/load.py --busy 4                                    # a busier machine

Training (engine.fit with crop-flip) of the demo's network and of a larger one, with one thread and
with one for every core.  Threads wait for each other at every layer of a network: under the policy
ACTIVE they spin, under PASSIVE they sleep, and under none, OpenMP's default, they spin for some
milliseconds and then sleep.

quiet      nothing else to do: the only one of the three whose figures a neighbour spoils
busy       beside --busy processes that only count, without end (default 1)
two runs   beside a second run of the same kind: the mean of the two

Every policy, network and number of threads is a process of its own, since OpenMP reads its policy
when a process begins.

Writes   with --json FILE: {cores, busy, repeats, machine, rows}, a row {model, batch_size,
         precision, policy, threads, quiet, busy, "two runs"}, in images/s, medians of --repeats
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import torch

from benchmarks import baselines, timing
from data.workers import cores
from files import write_json
from stages import flags
from stages.device import set_up_device

NETWORKS = (("resnet8", 32), ("resnet20", 128))  # model, batch size; the first: the demo's step 4
POLICIES = (None, "PASSIVE", "ACTIVE")
LOADS = ("quiet", "busy", "two runs")
_SPAWN = multiprocessing.get_context("spawn")


class Run:
    """A training in a process of its own, which goes on for a turn when it is asked to."""

    def __init__(self, model, batch_size, policy, threads):
        self.pipe, theirs = _SPAWN.Pipe()
        order = theirs, model, batch_size, threads
        self.process = _SPAWN.Process(target=_train, args=order, daemon=True)
        with _policy(policy):
            self.process.start()
        theirs.close()
        self.precision = self.pipe.recv()  # it has done its first steps

    def start(self, seconds):
        self.pipe.send(seconds)

    def rate(self):
        return self.pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.join()


def _train(pipe, model, batch_size, threads):
    """The process: a warm training that waits for the seconds of its next turn."""
    device = set_up_device("cpu")
    job = baselines.settled_job(model, 32, batch_size, device, threads)
    way = baselines.train_ours(job)
    for _ in range(5):
        next(way)
    pipe.send(str(job.precision).removeprefix("torch."))
    with suppress(EOFError):  # the parent has gone
        while True:
            pipe.send(timing.turn(way, device, pipe.recv()))


@contextmanager
def _policy(name):
    """OMP_WAIT_POLICY for the processes that start in this context; None: not set."""
    before = os.environ.pop("OMP_WAIT_POLICY", None)
    if name:
        os.environ["OMP_WAIT_POLICY"] = name
    try:
        yield
    finally:
        os.environ.pop("OMP_WAIT_POLICY", None)
        if before:
            os.environ["OMP_WAIT_POLICY"] = before


def _count():
    while True:
        pass


@contextmanager
def busy_loops(count):
    loops = [_SPAWN.Process(target=_count, daemon=True) for _ in range(count)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.terminate()
            loop.join()


def measure(kind, args):
    """kind: the arguments of Run;  -> {load: images/s}, the precision"""
    rates = {load: [] for load in LOADS}
    with Run(*kind) as run:
        for load in ("quiet", "busy"):
            with busy_loops(args.busy if load == "busy" else 0):
                for _ in range(args.repeats):
                    run.start(args.seconds)
                    rates[load].append(run.rate())
        with Run(*kind) as other:  # not before: even a waiting run may spin
            for _ in range(args.repeats):
                run.start(args.seconds)
                other.start(args.seconds)
                rates["two runs"].append((run.rate() + other.rate()) / 2)
    return {
        load: round(statistics.median(found), 1) for load, found in rates.items()
    }, run.precision


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--busy", type=flags.number(int, 1), default=1, metavar="N", help="default 1")
    add("--repeats", type=flags.number(int, 1), default=3, metavar="N", help="turns (default 3)")
    seconds = flags.number(float, 0, exclusive=True)
    add("--seconds", type=seconds, default=1.5, help="of a turn (default 1.5)")
    add("--json", type=Path, metavar="FILE")
    add("--quick", action="store_true", help="one network, one policy: does it run at all?")
    args = parser.parse_args(argv)
    if args.quick:
        args.repeats, args.seconds = 1, 0.05
    return args


def main(argv=None):
    args = parse(argv)
    numbers = sorted({1, cores()})
    kinds = list(product(NETWORKS, POLICIES, numbers))
    kinds = kinds[:1] if args.quick else kinds
    print("".join(f"{title:>12}" for title in ("network", "batch", "policy", "threads", *LOADS)))
    rows = []
    for (model, batch_size), policy, threads in kinds:
        rates, precision = measure((model, batch_size, policy, threads), args)
        head = {"model": model, "batch_size": batch_size, "policy": policy, "threads": threads}
        rows.append({**head, "precision": precision, **rates})
        print("".join(f"{value!s:>12}" for value in (*head.values(), *rates.values())), flush=True)
    result = {"cores": cores(), "busy": args.busy, "repeats": args.repeats}
    result |= {"machine": timing.machine(torch.device("cpu")), "rows": rows}
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
