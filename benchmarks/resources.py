"""Peak memory of every way, and on a GPU the share of the time in which it has nothing to do."""

import gc
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import baselines, timing

_STEPS = 3
_PROFILED = 20  # steps


def memory(job, task):
    """{way: MB at its peak}.

    CUDA: what tensors took on the device.  CPU: resident memory of a fresh process with this way
    alone, libraries and images included, and on Linux what its workers hold for themselves.
    """
    peak = _cuda_peak if job.device.type == "cuda" else _cpu_peak
    return {name: peak(job, task, name) for name in baselines.WAYS}


def _walk(job, task, name):
    """A few steps -> the most bytes that its workers held for themselves after one."""
    way, most = baselines.TASKS[task][name](job), 0
    for _ in range(_STEPS):
        next(way)
        most = max(most, sum(_private(child.pid) for child in multiprocessing.active_children()))
    way.close()
    return most


def _private(pid):
    """Bytes of a process's pages that no other has; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _cuda_peak(job, task, name):
    gc.collect()
    torch.cuda.reset_peak_memory_stats(job.device)
    before = torch.cuda.memory_allocated(job.device)
    _walk(job, task, name)
    return (torch.cuda.max_memory_allocated(job.device) - before) / 1e6


def _cpu_peak(job, task, name):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        return fresh.submit(_resident_peak, job, task, name, torch.get_num_threads()).result()


def _resident_peak(job, task, name, threads):
    import resource  # not on Windows

    torch.set_num_threads(threads)
    workers = _walk(job, task, name)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + workers) / 1e6


def idle_percent(job, task, seconds):
    """Percent of the time in which our loop leaves the GPU without work.

    Busy seconds an image come from a profile, seconds an image from a run without one: a profiler
    slows the CPU's part, not the kernels.
    """
    way = baselines.TASKS[task]["ours"](job)
    rate = timing.median(timing.turns({"ours": way}, job.device, 3, seconds)["ours"])
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        images = sum(next(way) for _ in range(_PROFILED))
        timing.synchronise(job.device)
    spans = [
        (event.time_range.start, event.time_range.end)  # microseconds
        for event in trace.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    if not spans:
        raise RuntimeError("the profiler recorded no kernels; is CUPTI allowed here?")
    return 100 * (1 - rate * covered(spans) / 1e6 / images)


def covered(spans):
    """The length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
