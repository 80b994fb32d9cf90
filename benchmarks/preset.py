"""How long the four steps of a preset take: each as its stage does it, cut short.

    python benchmarks/preset.py --json preset.json                 # cifar100, on a GPU
    python benchmarks/preset.py --preset lab --epochs 2

The trainings are stages/training.run on noise of the preset's sizes, for --epochs epochs: steps,
evaluation, saving, TensorBoard and the test at the end included.  Step 2 is stages/scoring.run on
as many images as the pool has.  What follows the number of epochs is measured between the first
and the last of them; all else counts once.  Step 4 is taken to be as fast as step 1.  The student
is given all the rows that K allows.  Start-up, downloads, decoding and the search for duplicates
are left out.

Writes   with --json FILE: {preset, device, precision, epochs, measured: {teacher, student:
         {examples, epoch_seconds, once_seconds}, samples: {images, seconds}}, minutes: {teacher,
         samples, student, finetuned, all}}
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import numpy as np
import torch

from benchmarks import timing
from data.images import Images
from data.labelled import LabelledImages, LabelledSet
from files import write_json
from models.networks import build_model
from presets import PRESETS, override
from report.board import Board
from stages import checkpoint, flags, scoring, training
from stages.device import set_up_device, settle_compute
from stages.lifetime import OpenStage

MEAN, STD = [0.5] * 3, [0.25] * 3
SETS = {"cifar100": (100, 50_000, 10_000), "digits": (10, 1198, 599)}  # classes, training, test
POOLS = {"tiny-imagenet": 100_000, "cifar10": 50_000, "patches": 258}
_BYTES = 2**30  # of different images; beyond that they come again
_QUICK = 40  # images of every kind


class Sizes(NamedTuple):
    """Images of each kind."""

    classes: int
    labelled: int
    val: int
    test: int
    pool: int
    selected: int  # rows of selection.csv, at most


def sizes_of(preset):
    classes, train, test = SETS[preset.dataset]
    val = classes * preset.val_per_class
    labelled = train - val
    if preset.labels_per_class:
        labelled = classes * preset.labels_per_class
    pools = POOLS | {"heldout": train - val - labelled}
    pool = sum(pools[name] for name in preset.unlabeled)
    return Sizes(classes, labelled, val, test, pool, min(classes * preset.k, preset.p * pool))


class TimedBoard(Board):
    """TensorBoard's, which notes when an epoch is logged."""

    def __init__(self, folder):
        super().__init__(folder)
        self.epochs = []  # (number, seconds by the clock)

    def epoch(self, metrics, images):
        super().epoch(metrics, images)
        self.epochs.append((metrics["epoch"], time.monotonic()))


class NoisePool:
    """What scoring.run asks of a data.Pool."""

    def __init__(self, images):
        self.images = images
        self.starts = self.sources = ()  # no tar shards

    def __len__(self):
        return len(self.images)

    def scorable(self, first, last):
        return np.ones(last - first, bool)

    def release_pages(self):
        pass


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.preset, self.device = PRESETS[args.preset], set_up_device(args.device)
        self.sizes = sizes_of(self.preset)
        if args.quick:
            quick = dict.fromkeys(("labelled", "val", "test", "pool", "selected"), _QUICK)
            self.sizes = self.sizes._replace(**quick)
        self.random = np.random.default_rng(0)
        side = self.preset.input_size
        shape = (min(max(self.sizes), _BYTES // (3 * side**2)), side, side, 3)
        self.noise = Images.of(self.random.integers(0, 256, shape, np.uint8))
        self.classes = tuple(str(number) for number in range(self.sizes.classes))

    def images(self, count):
        return self.noise.subset(torch.arange(count) % len(self.noise))

    def labelled(self, count):
        labels = torch.from_numpy(self.random.integers(0, self.sizes.classes, count))
        sums = np.zeros((count, 16), np.uint8)
        return LabelledImages(self.images(count), labels, np.arange(count).astype(str), sums, sums)

    def compute(self, recipe, network):
        auto = {"precision": "auto", "threads": None}
        size = self.preset.input_size
        return settle_compute(self.device, auto, None, network, size, recipe.batch_size)

    def train(self, name, recipe, count):
        """Step 1 or 3 on `count` examples -> its entry under "measured"."""
        recipe = override(recipe, epochs=self.args.epochs)
        labelled = self.labelled(count)
        test = self.labelled(self.sizes.test)
        dataset = LabelledSet(self.preset.dataset, self.classes, labelled, test, {})
        config = {
            "stage": name, "preset": self.args.preset, "dataset": dataset.name, "seed": 0,
            "labels_per_class": None, "input_size": self.preset.input_size, "parent": None,
            "normalisation": {"mean": MEAN, "std": STD}, "training": vars(recipe),
            "compile": self.device.type == "cuda",
        }  # fmt: skip
        network = build_model(recipe.model, self.sizes.classes)
        compute = self.compute(recipe, network)
        self.precision = compute.precision_name  # what "auto" means on this machine
        job = training.TrainingJob(
            stage=OpenStage(self.folder / name),
            config=config,
            compute=compute,
            recipe=recipe,
            seed=0,
            network=network,
            labelled=dataset,
            val=self.labelled(self.sizes.val),
            images=labelled.images,
            labels=labelled.labels,
        )
        boards = []

        def open_board(folder):
            boards.append(TimedBoard(folder))
            return boards[0]

        began = time.monotonic()
        training.run(job, open_board)
        timing.synchronise(self.device)
        spent = time.monotonic() - began
        if len(boards[0].epochs) < 2:
            raise RuntimeError(f"{name} logged one epoch only; raise --epochs")
        (first, started), *_, (last, ended) = boards[0].epochs
        epoch = (ended - started) / (last - first)
        once = max(0.0, spent - recipe.epochs * epoch)
        return {"examples": count, "epoch_seconds": epoch, "once_seconds": once}

    def score(self):
        """Step 2 -> its entry under "measured"."""
        recipe, size = self.preset.teacher, self.preset.input_size
        network = build_model(recipe.model, self.sizes.classes)
        network.to(self.device, memory_format=torch.channels_last)
        teacher = checkpoint.Checkpoint(
            network, recipe.model, list(self.classes), MEAN, STD, size, {}, None
        )
        config = {
            "strategy": "ranked", "p": self.preset.p, "k": self.preset.k, "seed": 0,
            "min_score": 0.0, "batch_size": 512, "save_scores": False,
        }  # fmt: skip
        stage = OpenStage(self.folder / "samples")
        stage.folder.mkdir()
        pool = NoisePool(self.images(self.sizes.pool))
        job = scoring.ScoringJob(stage, config, self.compute(recipe, network), teacher, pool)
        return {"images": len(pool), "seconds": scoring.run(scoring.Walk(job)).seconds}


def minutes(preset, measured):
    """{stage: minutes of the whole preset}, and of all four."""

    def whole(name, recipe):
        found = measured[name]
        return (found["once_seconds"] + recipe.epochs * found["epoch_seconds"]) / 60

    found = {
        "teacher": whole("teacher", preset.teacher),
        "samples": measured["samples"]["seconds"] / 60,
        "student": whole("student", preset.student),
        "finetuned": whole("teacher", preset.finetune),
    }
    return found | {"all": sum(found.values())}


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cifar100", help="default cifar100")
    add("--epochs", type=flags.number(int, 2), default=6, metavar="N", help="of each (default 6)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add("--json", type=Path, metavar="FILE")
    add("--quick", action="store_true", help="a few images: does it run at all?")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        preset, sizes = bench.preset, bench.sizes
        measured = {
            "teacher": bench.train("teacher", preset.teacher, sizes.labelled),
            "student": bench.train("student", preset.student, sizes.selected),
            "samples": bench.score(),
        }
    result = {
        "preset": args.preset,
        "device": str(bench.device),
        "precision": bench.precision,
        "epochs": args.epochs,
        "measured": measured,
        "minutes": minutes(preset, measured),
    }
    for name, found in measured.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()))
    print("minutes: " + ", ".join(f"{k} {v:.1f}" for k, v in result["minutes"].items()))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
