"""What each switch costs or gives: the bare step with one thing changed, beside the default."""

import time

import torch

from benchmarks import baselines, timing
from data.workers import cores


def _threads(way, count):
    """`way` with `count` CPU threads; the others keep theirs."""
    before = torch.get_num_threads()
    while True:
        torch.set_num_threads(count)
        try:
            images = next(way)
        finally:
            torch.set_num_threads(before)
        yield images


def _timed_start(way, seconds, name):
    """`way`, with the seconds of its first step in seconds[name]: compilation is part of it."""
    began = time.perf_counter()
    images = next(way)
    seconds[name] = time.perf_counter() - began
    yield images
    yield from way


def _variants(job, task, first):
    """{name: (way, name of the way it is compared with)}; first: see `_timed_start`."""
    bare = getattr(baselines, f"{task}_bare")
    low = job.precision != torch.float32
    other, dtype = ("bf16 off", torch.float32) if low else ("bf16 on", torch.bfloat16)
    variants = {
        "default": bare(job),
        "channels_last off": bare(job, channels_last=False),
        other: bare(job, precision=dtype),
        "products on": bare(job, products=True),
        "compile on": _timed_start(bare(job, compiled=True), first, "compile on"),
    }
    if task == "train":
        variants["SGD foreach"] = bare(job, foreach=True)
        variants["SGD for-loop"] = bare(job, foreach=False)
    if job.device.type == "cpu":
        for count in range(1, cores() + 1):
            if count != torch.get_num_threads():
                variants[f"threads {count}"] = _threads(bare(job), count)
    if job.device.type == "cuda":  # no CPU of ours computes with float16
        scaler = {"scaled": True} if task == "train" else {}
        name = "fp16 with a scaler" if scaler else "fp16 on"
        variants[name] = bare(job, precision=torch.float16, **scaler)
    against = dict.fromkeys(variants, "default")
    if task == "train" and job.device.type == "cuda":
        loops = {
            "loop": baselines.train_ours(job),
            "loop, images streamed": baselines.train_ours(job, resident=False),
            "loop, compile on": baselines.train_ours(job, compiled=True),
        }
        variants |= loops
        against |= dict.fromkeys(loops, "loop")
    return variants, against


def measure(job, task, repeats, seconds):
    """{name: {"rate": images/s, "ratio": to the default}}; a compiled way that pays also has
    "seconds", its compilation's, and "pays_after", the images that earn them back.
    """
    first = {}
    variants, against = _variants(job, task, first)
    turns = timing.turns(variants, job.device, repeats, seconds)
    rates = {name: timing.median(found) for name, found in turns.items()}
    rows = {}
    for name, rate in rates.items():
        ratio = timing.ratio(turns[name], turns[against[name]])
        rows[name] = {"rate": rate, "ratio": ratio and ratio["median"]}
    compiled, base = rates["compile on"], rates["default"]
    if compiled and base:
        wait = first["compile on"] - job.batch_size / compiled
        saved = 1 / base - 1 / compiled  # seconds an image
        rows["compile on"] |= {"seconds": wait, "pays_after": wait / saved if saved > 0 else None}
    return rows


def table(rows):
    """The rows as text, one a line."""
    lines = []
    for name, row in rows.items():
        if row["rate"] is None:
            lines.append(f"  {name:24} failed")
            continue
        line = f"  {name:24}{row['rate']:10.1f} img/s"
        line += f"{row['ratio']:8.2f}x" if row["ratio"] else ""
        if "seconds" in row:
            after = f"{row['pays_after']:,.0f} images" if row["pays_after"] else "never"
            line += f"   compiles {row['seconds']:.0f} s, earned back after: {after}"
        lines.append(line)
    return "\n".join(lines)
