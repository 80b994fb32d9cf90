"""A run folder read back whole, for the report page: what its finished stages wrote, and the images
and the test predictions that belong to it.
"""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from data import selection
from data.augment import Normalise
from data.labelled import LabelledImages
from data.pool import Pool, reopen_pool
from engine import predict
from presets import PRESETS

from . import checkpoint
from .folder import STAGES, state_of
from .inherit import INHERITED, inherit
from .lifetime import read_stage
from .prepare import TRAININGS, cache_of, load_dataset
from .training import EVALUATED


@dataclass
class WholeRun:
    """What a run folder holds.  Stages that have not finished are in `missing` alone."""

    folder: Path
    stages: dict  # {stage: FinishedStage}, in the order of the steps
    missing: dict  # {stage: "unfinished" or "empty"}
    classes: tuple
    test: LabelledImages
    metrics: dict = field(default_factory=dict)  # {stage: content of metrics.jsonl}
    logits: dict = field(default_factory=dict)  # {stage: float (N,C), of the test images}
    pool: Pool | None = None
    rows: tuple | None = None  # position, label, score, rank, truth, (M,) each
    scores: np.ndarray | None = None  # (N,), of the best class of every scored image, if kept
    skipped: list = field(default_factory=list)  # (image, reason)
    skipped_at: np.ndarray | None = None  # their positions in the pool


def read_run(folder, data_dir, device, cache_dir=None, unlabeled=None):
    """-> WholeRun

    data_dir, cache_dir, unlabeled: where the data are now, None for where they were
    device: predicts the test images
    Raises FileNotFoundError where no stage has finished, and the errors of `read_stage`,
    `load_dataset` and `reopen_pool`.
    """
    states = {stage: state_of(folder / stage) for stage in STAGES}
    stages = {s: read_stage(folder / s, s) for s, state in states.items() if state == "finished"}
    if not stages:
        raise FileNotFoundError(
            f"{folder} holds no finished stage (a folder such as teacher with a result.json); run "
            f"`python main.py` for it first, or name another run folder"
        )
    first = next(iter(stages.values())).config
    flags = dict.fromkeys(INHERITED) | {"data_dir": data_dir, "cache_dir": cache_dir}
    settings = inherit(flags, first)
    labelled, split = load_dataset(settings, first)
    missing = {stage: state for stage, state in states.items() if state != "finished"}
    run = WholeRun(folder, stages, missing, labelled.classes, labelled.test)
    for name, stage in stages.items():
        if name == "samples":
            places = settings["data_dir"], labelled, split, cache_of(settings), unlabeled
            _read_selection(run, stage, labelled, places)
        else:
            lines = (stage.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            run.metrics[name] = [json.loads(line) for line in lines]
            run.logits[name] = _test_logits(stage, labelled.test.images, device)
    return run


def _test_logits(stage, images, device):
    """As at the end of the stage: the same weights, batches and precision."""
    own = checkpoint.load_model(stage.product, device)
    precision = getattr(torch, stage.config["precision"])
    prepare = Normalise(own.mean, own.std, device)
    parts = predict(own.model, images, prepare, EVALUATED, precision=precision)
    return torch.cat([logits.float().cpu() for _, logits in parts])


def _read_selection(run, stage, labelled, places):
    names, label, score, rank = selection.read_selection(stage.product, len(labelled.classes))
    run.pool = pool = reopen_pool(stage.config, *places)
    position = pool.positions(names)
    pool.check_pixels(position, stage.result.get("selected_pixels"))
    run.rows = position, label, score, rank, pool.truth_of(position)
    scores = stage.folder / "scores.npz"
    if scores.exists():
        with np.load(scores) as columns:
            run.scores = columns["score"][:, 0]
    with open(stage.folder / "skipped.csv", newline="", encoding="utf-8") as file:
        rows = [tuple(row) for row in csv.reader(file)][1:]
    run.skipped = [row for row in rows if not row[1].startswith("not used")]  # of the pool
    run.skipped_at = pool.positions([name for name, _ in run.skipped])


# --- its commands -------------------------------------------------------------------------------


def command_of(folder, config):
    """The command line of a stage: its preset, and the flags whose values are not the preset's.

    folder: the run's;  config: the stage's config.json as a dict
    """
    stage, preset = config["stage"], PRESETS[config["preset"]]
    words = [STAGES[stage][1], "--preset", config["preset"], "--run-dir", folder.as_posix()]
    usual = {}
    if stage == "teacher":  # the later steps take these from the first
        usual = {name: getattr(preset, name) for name in INHERITED if hasattr(preset, name)}
        usual |= {"seed": 0, "data_dir": "datasets", "weights": None}
        usual |= {"linear": False}
    elif stage == "samples":
        usual = {"unlabeled": list(preset.unlabeled), "p": preset.p, "k": preset.k}
        usual |= {"min_score": 0.0, "strategy": "ranked", "keep_duplicates": False}
    given = {name: config.get(name, value) for name, value in usual.items()}
    changed = {name: value for name, value in given.items() if value != usual[name]}
    if stage in TRAININGS:
        recipe = vars(getattr(preset, TRAININGS[stage]))
        given = config["training"].items()
        changed |= {name: value for name, value in given if recipe[name] != value}
    for name, value in changed.items():
        words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return " ".join(map(str, words))


def rival_of(folder):
    """The command line of a finished run's rival: its first network on the labels alone, for as
    many images as all four steps processed, those that were only scored among them.
    """
    stages = [read_stage(folder / stage, stage) for stage in STAGES]
    images = sum(s.result.get("images_processed", s.result.get("scored")) for s in stages)
    teacher = stages[0].config
    share = images / stages[0].result["images_processed"]
    recipe = teacher["training"] | {"epochs": round(share * teacher["training"]["epochs"])}
    return command_of(folder.with_name(f"{folder.name}-rival"), teacher | {"training": recipe})
