"""Step 2 against its limits and against the predecessor's way, on the same images and network.

    python benchmarks/pool.py --json pool.json
    python benchmarks/pool.py --model resnet50 --input-size 64 --images 4000

A pool of JPEG files (crops of scikit-learn's two photographs) is scored by a network of random
weights, in turns, and a rate is the median of its turns:

forward      the network alone, on one fixed batch that is on the device already
ours         scoring.run from a warm cache: reading, normalising, scoring, ranking, saving
predecessor  step 2 of the one known attempt, re-created from its description: one thread,
             imread file by file, float32 NCHW, a Python loop with a heap a class, each score
             fetched on its own

Also: what ranking takes of our time, what each part takes of the predecessor's, and how long a
second run needs from its start to its first batch.

Writes   with --json FILE: the rates in images/s, the ratios, the shares, the seconds
"""

import argparse
import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import cv2
import numpy as np
import torch
from sklearn.datasets import load_sample_images

import engine
from data.augment import Normalise
from data.pool import open_pool
from files import write_json
from models.networks import MODELS, build_model
from ranking import Selector
from stages import checkpoint, flags, scoring
from stages.device import set_up_device, settle_compute
from stages.lifetime import OpenStage
from stages.prepare import versions

P, K, CLASSES = 10, 1000, 100
MEAN, STD = [0.5] * 3, [0.25] * 3


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="resnet18", metavar="NAME")
    parser.add_argument("--input-size", type=flags.number(int, 8), default=64, metavar="N")
    parser.add_argument("--images", type=flags.number(int, 1), default=4096, metavar="N")
    parser.add_argument("--batch-size", type=flags.number(int, 1), default=512, metavar="N")
    parser.add_argument("--repeats", type=flags.number(int, 1), default=5, metavar="N")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def write_photographs(folder, count, side):
    """JPEG files of random crops, no two alike."""
    photographs, random = load_sample_images().images, np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        crop = int(random.integers(side, 4 * side))
        top, left = (int(random.integers(0, length - crop)) for length in photograph.shape[:2])
        picture = photograph[top : top + crop, left : left + crop, ::-1]
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number:06d}.jpg"), picture)


# --- the three ways -----------------------------------------------------------------------------


class Bench:
    def __init__(self, args, folder):
        self.args, self.device, self.photos = args, torch.device(args.device), folder / "photos"
        write_photographs(self.photos, args.images, args.input_size)
        self.data_dir = folder / "data"
        torch.manual_seed(0)
        network = build_model(args.model, CLASSES)
        self.plain = build_model(args.model, CLASSES)  # the predecessor's: float32, NCHW
        self.plain.load_state_dict(network.state_dict())
        self.plain.to(self.device).eval()
        network.to(self.device, memory_format=torch.channels_last)
        classes = [str(number) for number in range(CLASSES)]
        teacher = checkpoint.Checkpoint(
            network, args.model, classes, MEAN, STD, args.input_size, {}, None
        )
        self.pool = open_pool([self.photos], self.data_dir, args.input_size)
        config = {"strategy": "ranked", "p": P, "k": K, "seed": 0, "min_score": 0.0}
        config |= {"batch_size": args.batch_size, "save_scores": True}
        stage = folder / "samples"
        stage.mkdir()
        auto = {"precision": "auto", "threads": None}
        self.compute = settle_compute(
            self.device, auto, None, network, args.input_size, args.batch_size
        )
        self.job = scoring.ScoringJob(OpenStage(stage), config, self.compute, teacher, self.pool)
        self.ranking_seconds = 0.0

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def forward(self):
        """As many images through the network as the pool has, all of them the first batch."""
        size, network = self.args.batch_size, self.job.teacher.model
        batch = Normalise(MEAN, STD)(self.pool.images[slice(0, size)]).to(self.device)
        starts = range(0, len(self.pool), size)
        for _ in engine.predict(
            network, Same(batch, len(starts)), lambda x: x, 1, precision=self.compute.precision
        ):
            pass

    def ours(self):
        """-> the seconds that were spent outside the network; on a CPU, which is never ahead."""
        inside, network = [], self.job.teacher.model
        hooks = [
            network.register_forward_pre_hook(lambda *_: inside.append(-time.perf_counter())),
            network.register_forward_hook(lambda *_: inside.append(time.perf_counter())),
        ]
        began = time.perf_counter()
        scoring.run(scoring.Walk(self.job))
        spent = time.perf_counter() - began
        for hook in hooks:
            hook.remove()
        return spent - sum(inside)

    def ranked(self):
        """Seconds that `Selector.add` takes for the whole pool, the network left out."""
        selector = Selector(CLASSES, "ranked", P, K, device=self.device)
        seconds = 0.0
        for start in range(0, len(self.pool), self.args.batch_size):
            logits = 3 * torch.randn(self.args.batch_size, CLASSES, device=self.device)
            self.wait()
            began = time.perf_counter()
            selector.add(start, logits)
            self.wait()
            seconds += time.perf_counter() - began
        return seconds

    @torch.no_grad()
    def predecessor(self):
        """-> seconds of reading, of the network, of the loop over the scores."""
        spent = dict.fromkeys(("read", "network", "rank"), 0.0)
        heaps = [[] for _ in range(CLASSES)]
        paths = sorted(self.photos.glob("*.jpg"))
        for start in range(0, len(paths), self.args.batch_size):
            began = time.perf_counter()
            chunk = paths[start : start + self.args.batch_size]
            images = np.stack([cv2.imread(str(path)) for path in chunk]).astype(np.float32)
            batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)
            read = time.perf_counter()
            score, label = self.plain(batch).softmax(1).topk(P, dim=1)
            self.wait()
            scored = time.perf_counter()
            for row in range(len(chunk)):
                for column in range(P):
                    entry = (score[row, column].cpu().item(), -start - row)
                    heap = heaps[label[row, column].cpu().item()]
                    (heapq.heappushpop if len(heap) == K else heapq.heappush)(heap, entry)
            ranked = time.perf_counter()
            for name, seconds in zip(
                spent, (read - began, scored - read, ranked - scored), strict=True
            ):
                spent[name] += seconds
        return spent


class Same:
    """`count` times the same batch, as `engine.predict` asks for images."""

    def __init__(self, batch, count):
        self.batch, self.count, self.device = batch, count, torch.device("cpu")

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.batch


def timed(bench, way):
    bench.wait()
    began = time.perf_counter()
    more = way()
    bench.wait()
    return time.perf_counter() - began, more


FIRST_BATCH = """
import json, os, sys, time
began = time.perf_counter()
import make_sample_data
from stages import scoring
imported = time.perf_counter()
def first(*arguments, **options):
    done = time.perf_counter()
    print(json.dumps({"imports": imported - began, "to_first_batch": done - imported}), flush=True)
    os._exit(0)
scoring.predict = first
make_sample_data.main(sys.argv[1:])
"""


def start_up(folder, bench):
    """Seconds that a second run of step 2 takes for its imports, and then until it scores.

    With the leak guard's answers and the decoded images there already, as a second run finds them.
    """
    args, model = bench.args, folder / "model.pt"
    flags = ["--teacher", model, "--unlabeled", bench.photos, "--data-dir", folder / "labelled"]
    flags += ["--dataset", "folder", "--run-dir", folder / "run", "--device", args.device]
    flags += ["--labels-per-class", 1, "--val-per-class", 1, "--overwrite", "--p", P, "--k", K]
    random = np.random.default_rng(0)
    for part, count in (("train", 2), ("test", 1)):
        for number in range(CLASSES):
            write_noise(
                folder / "labelled" / part / f"{number:02d}", count, args.input_size, random
            )
    bench.job.teacher.classes[:] = [f"{number:02d}" for number in range(CLASSES)]
    checkpoint.save_model(model, bench.job.teacher)
    command = [sys.executable, "-c", FIRST_BATCH, *map(str, flags)]
    root = str(Path(__file__).resolve().parents[1])
    found = []
    for _ in range(4):  # the first builds the cache and asks the leak guard
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    again = found[1:]
    return {name: round(statistics.median(one[name] for one in again), 3) for name in again[0]}


def write_noise(folder, count, side, random):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)


def main(argv=None):
    args = parse(argv)
    set_up_device(args.device)  # as the programs do; its memory settings help the predecessor too
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    if args.json:
        write_json(args.json, result)
    print(json.dumps(result, indent=2))


def measure(args, folder):
    bench = Bench(args, folder)
    ways = {"forward": bench.forward, "ours": bench.ours, "predecessor": bench.predecessor}
    seconds, details, ranking = {name: [] for name in ways}, {name: [] for name in ways}, []
    for turn in range(args.repeats + 1):  # the first warms up
        ranking.append(bench.ranked())
        for name, way in ways.items():
            spent, detail = timed(bench, way)
            if turn:
                seconds[name].append(spent)
                details[name].append(detail)
    median = {name: statistics.median(turns) for name, turns in seconds.items()}
    counted = len(bench.pool)
    whole_batches = -(-counted // args.batch_size) * args.batch_size  # what `forward` computes
    rates = {name: counted / median[name] for name in ways}
    rates["forward"] = whole_batches / median["forward"]
    parts, total = details["predecessor"], sum(seconds["predecessor"])
    return {
        "model": args.model,
        "input_size": args.input_size,
        "batch_size": args.batch_size,
        "images": counted,
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu",
        "precision": bench.compute.precision_name,
        "threads": torch.get_num_threads(),
        "p": P,
        "k": K,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ours_to_forward": round(rates["ours"] / rates["forward"], 4),
        "ours_outside_network_percent": None
        if bench.device.type != "cpu"
        else round(100 * sum(details["ours"]) / sum(seconds["ours"]), 2),
        "ours_to_predecessor": round(rates["ours"] / rates["predecessor"], 2),
        "ranking_percent": round(100 * statistics.median(ranking[1:]) / median["ours"], 3),
        "predecessor_percent": {
            name: round(100 * sum(part[name] for part in parts) / total, 1) for name in parts[0]
        },
        "second_run_seconds": start_up(folder, bench),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
