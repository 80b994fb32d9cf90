"""Peak memory and page faults of every way; on a GPU the share of the time in which it is idle."""

import gc
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import baselines, timing
from stages.device import set_up_device

_STEPS = 6  # the memory of the first ones is new
_PROFILED = 20  # steps


def memory(job, task):
    """{"peak_mb": {way: MB at its peak}}, on a CPU also {"page_faults": {way: in the last step}}.

    CUDA: what tensors took on the device.  CPU: resident memory of a fresh process with this way
    alone, libraries and images included, and on Linux what its workers hold for themselves.  Page
    faults are those of this process without its workers; a step without new memory has about none.
    """
    if job.device.type == "cuda":
        return {"peak_mb": {name: _cuda_peak(job, task, name) for name in baselines.WAYS}}
    found = {name: _in_fresh_process(job, task, name) for name in baselines.WAYS}
    return {
        "peak_mb": {name: peak for name, (peak, _) in found.items()},
        "page_faults": {name: faults for name, (_, faults) in found.items()},
    }


def _walk(job, task, name):
    """A few steps of a way; yields after each."""
    way = baselines.TASKS[task][name](job)
    for _ in range(_STEPS):
        next(way)
        yield
    way.close()


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
    for _ in _walk(job, task, name):
        pass
    return (torch.cuda.max_memory_allocated(job.device) - before) / 1e6


def _in_fresh_process(job, task, name):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        return fresh.submit(_resident, job, task, name, torch.get_num_threads()).result()


def _resident(job, task, name, threads):
    """-> peak MB, page faults of the last step."""
    import resource  # not on Windows

    set_up_device(job.device.type)
    torch.set_num_threads(threads)
    workers = before = faults = 0
    for _ in _walk(job, task, name):
        used = resource.getrusage(resource.RUSAGE_SELF)
        before, faults = used.ru_minflt, used.ru_minflt - before
        children = multiprocessing.active_children()
        workers = max(workers, sum(_private(child.pid) for child in children))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return (used.ru_maxrss * unit + workers) / 1e6, faults


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
