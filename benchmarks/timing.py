"""Rates side by side: every way in turn, again and again.

A busy neighbour slows single turns by a quarter and more.  So a ratio is the median of the ratios
of the rounds, whose turns follow each other, and is given with the lowest and the highest of them.
"""

import functools
import os
import re
import statistics
import subprocess
import sys
import time

import torch

_CONVOLUTION = """
import torch
torch.nn.functional.conv2d(torch.randn(16, 64, 32, 32), torch.randn(64, 64, 3, 3))
"""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_WAIT_POLICY")


def synchronise(device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def turns(ways, device, repeats, seconds, prefetched=None):
    """Images/s of each way -> {name: [rate of each of its turns]}, None for one that failed.

    ways        {name: generator of image counts}
    repeats     rounds, in the order A B C, C B A, A B C, ..., after one that warms up
    seconds     of a turn, at least; a turn is whole steps
    prefetched  {name: batches that its workers make while the others run}; a turn first uses them
                up, unmeasured

    Before its turn every way takes a step that is not measured, since the memory is as the way
    before has left it.  Every second round runs backwards, since a way's place in the order moves
    its rate: on a shared CPU, with imitated bfloat16 in the round, by a tenth and more.
    """
    found = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        order = list(found) if repeat % 2 else list(reversed(found))
        for name in [name for name in order if found[name] is not None]:
            try:
                for _ in range(1 + (prefetched or {}).get(name, 0)):
                    next(ways[name])
                rate = turn(ways[name], device, seconds)
            except (RuntimeError, OSError) as error:  # out of memory, a killed worker, no compiler
                print(f"{name}: {str(error).strip().splitlines()[0]}", file=sys.stderr, flush=True)
                ways[name].close()
                found[name] = None
                continue
            if repeat:
                found[name].append(rate)
    return found


def median(rates):
    return statistics.median(rates) if rates else None


def ratio(rates, others):
    """Of two ways' turns: {"median", "lowest", "highest"}, None where one failed."""
    if not (rates and others):
        return None
    found = sorted(one / other for one, other in zip(rates, others, strict=True))
    return {"median": statistics.median(found), "lowest": found[0], "highest": found[-1]}


def turn(way, device, seconds):
    synchronise(device)
    began = time.perf_counter()
    images = next(way)
    while time.perf_counter() - began < seconds:
        images += next(way)
    synchronise(device)
    return images / (time.perf_counter() - began)


def machine(device):
    """What the rates depend on, in a line: version, device, instructions."""
    parts = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        return ", ".join([*parts, torch.cuda.get_device_name(device)])
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    parts.append(f"oneDNN: {_onednn()}")
    return ", ".join([*parts, f"ATen: {torch.backends.cpu.get_cpu_capability()}", *limits])


@functools.cache
def _onednn():
    """The instruction set that oneDNN says it uses: only its log tells what is in force."""
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CONVOLUTION], env=environment, capture_output=True, text=True
    )
    found = re.search(r"cpu,isa:(.*)", done.stdout)
    return found[1].strip() if found else "unknown"
