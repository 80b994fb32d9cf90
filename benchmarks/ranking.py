"""`TopK` alone, for a simulated stream of scored images of any length.

    python benchmarks/ranking.py --json docs/results/ranking.json        # some minutes
    python benchmarks/ranking.py --images 1_000_000 --classes 21_841 --k 100 --batch 512

A simulated image is what `top_classes` makes of a real one: P falling scores with their classes.
The images come from a block of 32,768, made once from random logits of random sharpness, with
popular and rare classes.  Every batch is a random stretch of the block, and the scores of every
image in it are multiplied by a new random factor from 0.5 to 1.  So new bests keep turning up, as
in a real stream; images that merely came again would make pruning look too good.  Real logits would
cost far more than the ranking that is measured (see "top_classes" in the figures).

Times on a CPU are processor seconds of one thread, as the clock of a shared machine measures the
others too.  On a GPU they are seconds by the clock, with a wait for the device around every batch.
Memory is the peak of the process; every stream has a process of its own.
"""

import argparse
import heapq
import json
import multiprocessing
import platform
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ranking import top_classes
from topk import EMPTY, TopK, sort_key, unpack_key

BLOCK = 2**15  # images simulated from logits
STREAMS = [(100, 10, 1000, 10**6), (100, 10, 1000, 10**7), (100, 10, 1000, 10**8)]
STREAMS += [(1000, 10, 16_000, 10**7)]
QUICK = [(10, 3, 20, 2 * 10**4), (10, 3, 20, 4 * 10**4)]


class Simulation:
    """Scored images without end, see above; the same for the same seed."""

    def __init__(self, classes, p, device, seed=0):
        torch.manual_seed(seed)
        popularity = torch.randn(classes)
        pieces = []
        for _ in range(BLOCK // 1024):
            sharpness = 1 + 2 * torch.rand(1024, 1)
            pieces.append(top_classes(torch.randn(1024, classes) * sharpness + popularity, p))
        self.score, self.label = (torch.cat(each).to(device) for each in zip(*pieces, strict=True))
        self.p = p

    def batches(self, images, size):
        """Yield group, priority, position, label, score for `TopK.add`, `images` images in all."""
        device = self.score.device
        for first in range(0, images, size):
            size = min(size, images - first)
            start = int(torch.randint(BLOCK - size + 1, ()))
            factor = torch.rand(size, 1, device=device).mul_(0.5).add_(0.5)
            score = (self.score[start : start + size] * factor).flatten()
            label = self.label[start : start + size].flatten()
            position = torch.arange(first, first + size, device=device).repeat_interleave(self.p)
            yield label, score, position, label, score


def clock(device):
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def stream(classes, p, k, images, batch, device):
    """One ranking of a whole stream."""
    torch.set_num_threads(1)
    simulation, before = Simulation(classes, p, device), peak_mib()
    table = TopK(classes, k, device)
    seconds, began = 0.0, clock(device)
    for candidates in simulation.batches(images, batch):
        start = clock(device)
        table.add(*candidates)
        seconds += clock(device) - start
    generating = clock(device) - began - seconds
    start = clock(device)
    columns = table.state_dict()  # merges the buffer
    seconds += clock(device) - start
    peak, start = peak_mib(), clock(device)
    selected = len(table.rows()[0])
    sorting = clock(device) - start
    return {
        "classes": classes, "p": p, "k": k, "images": images, "batch": batch, "selected": selected,
        "ranking_seconds": round(seconds, 3), "images_per_second": round(images / seconds),
        "generating_seconds": round(generating, 3), "selection_seconds": round(sorting, 3),
        "table_bytes": sum(column.nbytes for column in columns.values()),
        "mib_before": before, "mib_peak": peak, "mib_peak_with_selection": peak_mib(),
    }  # fmt: skip


def alone(function, *arguments):
    """Call a function in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def with_heaps(batches, groups, k):
    """The obvious way: a heap a class, a Python loop over the scores."""
    heaps = [[] for _ in range(groups)]
    for group, score, position, *_ in batches:
        entries = zip(group.tolist(), score.tolist(), position.tolist(), strict=True)
        for label, value, place in entries:
            heap = heaps[label]
            if len(heap) < k:
                heapq.heappush(heap, (value, -place))
            elif (value, -place) > heap[0]:
                heapq.heapreplace(heap, (value, -place))
    return [
        (-place, label, score, rank)
        for label, heap in enumerate(heaps)
        for rank, (score, place) in enumerate(sorted(heap, reverse=True), 1)
    ]


def with_topk(batches, groups, k):
    """Every batch sorted, laid out as a table and joined to the K best so far by `torch.topk`;
    nothing is dropped before.
    """
    best_key = torch.empty((groups, 0), dtype=torch.int64)
    best_score = torch.empty((groups, 0))
    for group, score, position, *_ in batches:
        key = sort_key(score, position)
        order = key.argsort(descending=True)
        order = order[group[order].argsort(stable=True)]
        group, key, score = group[order], key[order], score[order]
        count = group.bincount(minlength=groups)
        place = torch.arange(len(group)) - (count.cumsum(0) - count)[group]
        batch_key = torch.full((groups, int(count.max())), EMPTY)
        batch_score = torch.zeros(batch_key.shape)
        batch_key[group, place], batch_score[group, place] = key, score
        keys = torch.cat([best_key, batch_key], 1)
        best_key, best = keys.topk(min(k, keys.shape[1]), dim=1)
        best_score = torch.cat([best_score, batch_score], 1).gather(1, best)
    label, place = (best_key != EMPTY).nonzero().unbind(1)
    position = unpack_key(best_key[label, place])[1]
    columns = position, label, best_score[label, place], place + 1
    return list(zip(*(column.tolist() for column in columns), strict=True))


def with_ranking(batches, groups, k):
    table = TopK(groups, k)
    for candidates in batches:
        table.add(*candidates)
    return list(zip(*(column.tolist() for column in table.rows()), strict=True))


def with_full_sort(batches, groups, k):
    """Everything kept and sorted at once."""
    columns = (torch.cat(part).numpy() for part in zip(*batches, strict=True))
    group, score, position, *_ = columns
    order = np.lexsort((position, -score, group))
    rank = 1 + np.arange(len(order)) - np.searchsorted(group[order], group[order])
    kept = order[rank <= k]
    columns = position[kept], group[kept], score[kept], rank[rank <= k]
    return list(zip(*(column.tolist() for column in columns), strict=True))


WAYS = {"ranking": with_ranking, "topk": with_topk, "heaps": with_heaps, "sort": with_full_sort}


def references(classes, p, k, images, batch):
    """The same images ranked in each way on the CPU, without the time to make the images."""
    batches = list(Simulation(classes, p, "cpu").batches(images, batch))
    seconds, selections = {}, []
    for way, function in WAYS.items():
        start = clock("cpu")
        selections.append(function(batches, classes, k))
        seconds[way] = clock("cpu") - start
    return {
        "classes": classes, "p": p, "k": k, "images": images, "batch": batch,
        "images_per_second": {way: round(images / spent) for way, spent in seconds.items()},
        "ranking_is_times": {w: round(t / seconds["ranking"], 1) for w, t in seconds.items()},
        "same_selection": all(selection == selections[-1] for selection in selections),
    }  # fmt: skip


def best_classes(classes, p, batch, device):
    """`top_classes`, and a full stable sort of the scores of each image."""

    def sort():
        return logits.softmax(1).sort(dim=1, descending=True, stable=True)

    logits = torch.randn(batch, classes, device=device) * 3
    entry = {"classes": classes, "p": p, "batch": batch}
    for name, function in (
        ("images_per_second", lambda: top_classes(logits, p)),
        ("full_sort_images_per_second", sort),
    ):
        function()
        start, calls = clock(device), 0
        while clock(device) - start < 1:
            function()
            calls += 1
        entry[name] = round(batch * calls / (clock(device) - start))
    return entry


def merges(classes, k, device, tables=4):
    """Seconds to merge a full table into another, for equal parts of a stream."""
    full = []
    group = torch.arange(classes, device=device).repeat_interleave(k)
    for number in range(tables):
        score = torch.rand(len(group), device=device)
        position = torch.arange(k, device=device).repeat(classes) + number * k
        full.append(TopK(classes, k, device))
        full[-1].add(group, score, position, group, score)
        full[-1].state_dict()
    start = clock(device)
    for other in full[1:]:
        full[0].merge(other)
    full[0].state_dict()
    seconds = (clock(device) - start) / (tables - 1)
    return {"classes": classes, "k": k, "tables": tables, "seconds_a_table": round(seconds, 4)}


def describe(device):
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    gpu = torch.device(device).type == "cuda"
    return {
        "benchmark": "ranking",
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=int, nargs="+", help="lengths of streams, in place of the four usual")
    add("--classes", type=int, default=100, help="of --images (default 100)")
    add("--p", type=int, default=10, help="of --images (default 10)")
    add("--k", type=int, default=1000, help="of --images (default 1000)")
    add("--batch", type=int, nargs="+", default=[512, 4096], help="images (default 512 4096)")
    add("--reference-images", type=int, default=500_000, help="for the slow ways (500,000)")
    add("--device", default="cpu", help="cpu or cuda")
    add("--quick", action="store_true", help="seconds, for the tests: the figures mean nothing")
    add("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args(argv)

    cases = QUICK if args.quick else STREAMS
    if args.images:
        cases = [(args.classes, args.p, args.k, images) for images in args.images]
    torch.set_num_threads(1)
    report = describe(args.device)

    def note(entry):
        print(", ".join(f"{name} {value}" for name, value in entry.items()), flush=True)
        return entry

    report["streams"] = [
        note(alone(stream, *case, batch, args.device)) for batch in args.batch for case in cases
    ]  # first: a process begins with the peak of the one that starts it
    shapes = sorted({case[:3] for case in cases})
    report["top_classes"] = [
        note(best_classes(c, p, batch, args.device)) for c, p, _ in shapes for batch in args.batch
    ]
    report["merges"] = [note(merges(c, k, args.device)) for c, _, k in shapes]
    images = cases[0][3] if args.quick else args.reference_images
    report["references"] = note(references(*shapes[0], images, args.batch[0]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
