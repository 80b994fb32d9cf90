"""Rates side by side: every way in turn, again and again, and the median of its turns."""

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
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def synchronise(device):
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def rates(ways, device, repeats, seconds, prefetched=None):
    """Images/s of each way -> {name: median of its turns}, None for one that failed.

    ways        {name: generator of image counts}
    repeats     turns a way, in the order A B C A B C ..., after one that warms up
    seconds     of a turn, at least; a turn is whole steps
    prefetched  {name: batches that its workers make while the others run}; a turn first uses them
                up, unmeasured
    """
    turns = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name in [name for name in turns if turns[name] is not None]:
            try:
                for _ in range((prefetched or {}).get(name, 0)):
                    next(ways[name])
                rate = _turn(ways[name], device, seconds)
            except (RuntimeError, OSError) as error:  # out of memory, a killed worker, no compiler
                print(f"{name}: {str(error).strip().splitlines()[0]}", file=sys.stderr, flush=True)
                ways[name].close()
                turns[name] = None
                continue
            if repeat:
                turns[name].append(rate)
    return {name: statistics.median(found) if found else None for name, found in turns.items()}


def _turn(way, device, seconds):
    synchronise(device)
    began = time.perf_counter()
    images = next(way)
    while time.perf_counter() - began < seconds:
        images += next(way)
    synchronise(device)
    return images / (time.perf_counter() - began)


def machine(device):
    """What the rates depend on, in a line: versions, device, threads, precision, instructions."""
    parts = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        return ", ".join([*parts, torch.cuda.get_device_name(device)])
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    parts += [f"{torch.get_num_threads()} threads", f"oneDNN: {_onednn()}"]
    return ", ".join([*parts, f"ATen: {torch.backends.cpu.get_cpu_capability()}", *limits])


def _onednn():
    """The instruction set that oneDNN says it uses: only its log tells what is in force."""
    environment = os.environ | {"ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CONVOLUTION], env=environment, capture_output=True, text=True
    )
    found = re.search(r"cpu,isa:(.*)", done.stdout)
    return found[1].strip() if found else "unknown"
