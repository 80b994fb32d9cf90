"""A run folder read back whole, for the report page: what its finished stages wrote, and the images
that belong to it.  Every file is checked against its sha256 before it is read.
"""

import csv
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import selection
from data.labelled import LabelledImages
from data.pool import Pool, reopen_pool
from presets import PRESETS

from .folder import PARENT_FLAGS, STAGES, check_file, made_from, read_record, state_of
from .inherit import INHERITED, inherit
from .lifetime import read_stage
from .prepare import TRAININGS, cache_of, load_dataset, training_of
from .program import program


class Answers(NamedTuple):
    """What a network says of the N test images, in the order of the data set."""

    top1: np.ndarray  # int (N,), the class predicted
    probability: np.ndarray  # float (N,), of the true class
    right: np.ndarray  # bool (N,)


@dataclass
class WholeRun:
    """What a run folder holds.  Stages that have not finished are in `missing` alone."""

    folder: Path
    stages: dict  # {stage: FinishedStage}, in the order of the steps
    missing: dict  # {stage: "unfinished" or "empty"}
    classes: tuple
    test: LabelledImages
    curves: dict = field(default_factory=dict)  # {stage: [(images processed, validation top-1)]}
    answers: dict = field(default_factory=dict)  # {stage: Answers}, if the stage kept them
    pool: Pool | None = None
    rows: tuple | None = None  # position, label, score, rank, truth, (M,) each
    scores: np.ndarray | None = None  # (N,), of the best class of every scored image, if kept
    skipped: list = field(default_factory=list)  # (image, reason)
    skipped_at: np.ndarray | None = None  # their positions in the pool


def read_run(folder, data_dir=None, cache_dir=None, unlabeled=None):
    """-> WholeRun

    data_dir, cache_dir, unlabeled: where the data are now, None for where they were
    Raises FileNotFoundError where no stage has finished, ValueError for a damaged file, and the
    errors of `load_dataset` and `reopen_pool`.
    """
    stages = finished_stages(folder)
    first = next(iter(stages.values())).config
    flags = dict.fromkeys(INHERITED) | {"data_dir": data_dir, "cache_dir": cache_dir}
    settings = inherit(flags, first)
    labelled, split = load_dataset(settings, first)
    missing = {stage: state_of(folder / stage) for stage in STAGES if stage not in stages}
    run = WholeRun(folder, stages, missing, labelled.classes, labelled.test)
    for name, stage in stages.items():
        if name == "samples":
            places = settings["data_dir"], labelled, split, cache_of(settings), unlabeled
            _read_selection(run, stage, labelled, places)
            continue
        processed = stage.result["images_processed"]
        run.curves[name] = checked(
            stage.folder / "metrics.jsonl", lambda path, n=processed: _read_curve(path, n)
        )
        answers = stage.folder / "predictions.npz"
        if answers.exists():
            run.answers[name] = checked(answers, lambda path: _read_answers(path, labelled))
    return run


def finished_stages(folder):
    """{stage: FinishedStage} of a run folder, in the order of the steps.

    The teacher may lie in another run's folder, from where step 2 took it.
    Raises FileNotFoundError where no stage has finished, and the errors of `read_stage`.
    """
    states = {stage: state_of(folder / stage) for stage in STAGES}
    stages = {s: read_stage(folder / s, s) for s, state in states.items() if state == "finished"}
    if not stages:
        raise FileNotFoundError(
            f"{folder} holds no finished stage (a folder such as teacher with a result.json); run "
            f"`python main.py` for it first, or name another run folder"
        )
    if "teacher" not in stages and "samples" in stages:
        elsewhere = made_from(stages["samples"].folder, stages["samples"].config).parent
        if state_of(elsewhere) == "finished":
            stages = {"teacher": read_stage(elsewhere, "teacher", "finetuned"), **stages}
    return stages


def checked(path, parse):
    """`parse(path)` of a stage's file, once it is the one that the stage wrote.

    Raises OSError, and ValueError naming the file for any content that cannot be parsed.
    """
    check_file(path)
    try:
        return parse(path)
    except OSError:
        raise
    except Exception as error:  # zip, csv and JSON each have their own, and a recursion has none
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); put the right file back, or run "
            f"its step again with --overwrite"
        ) from error


def _read_curve(path, processed):
    lines = list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    each = processed / lines[-1]["epoch"]
    tested = [line for line in lines if line["val_top1"] is not None]
    return [(round(line["epoch"] * each), float(line["val_top1"])) for line in tested]


def _read_answers(path, labelled):
    with np.load(path, allow_pickle=False) as columns:
        label, top1, probability = (
            columns[f"test_{name}"] for name in ("label", "top1", "probability")
        )
    truth = np.asarray(labelled.test.labels)
    if not (label.shape == top1.shape == probability.shape and np.array_equal(label, truth)):
        raise ValueError(f"it is not about the {len(truth)} test images")
    if not (np.isin(top1, range(len(labelled.classes))).all() and (probability >= 0).all()):
        raise ValueError("it has classes or probabilities that there are not")
    return Answers(top1.astype(np.int64), probability, top1 == truth)


def _read_selection(run, stage, labelled, places):
    run.pool = pool = reopen_pool(stage.config, *places, folder=stage.folder)

    def rows(path):
        names, label, score, rank = selection.read_selection(path, len(labelled.classes))
        position = pool.positions(names)
        pool.check_pixels(position, stage.result.get("selected_pixels"))
        return position, label, score, rank, pool.truth_of(position)

    run.rows = checked(stage.product, rows)
    scores = stage.folder / "scores.npz"
    if scores.exists():
        run.scores = checked(scores, _read_best_scores)
    run.skipped, run.skipped_at = checked(
        stage.folder / "skipped.csv", lambda path: _read_skipped(path, pool)
    )


def _read_best_scores(path):
    with np.load(path, allow_pickle=False) as columns:
        best = columns["score"][:, 0].astype(float)
    if not ((best >= 0) & (best <= 1)).all():
        raise ValueError("a score is not from 0 to 1")
    return best


def _read_skipped(path, pool):
    with open(path, newline="", encoding="utf-8") as file:
        rows = [(name, reason) for name, reason in csv.reader(file)][1:]
    rows = [row for row in rows if not row[1].startswith("not used")]  # no entries of the pool
    if any(source.inputs["kind"] == "shards" for source in pool.sources):
        rows = []  # of remote shards only the selected images are here
    return rows, pool.positions([name for name, _ in rows])


# --- its commands -------------------------------------------------------------------------------


def command_of(folder, config):
    """The command line of a stage, a list of words: its preset, and the flags whose values are not
    the preset's.

    folder: the run's;  config: the stage's config.json as a dict
    """
    stage, preset = config["stage"], PRESETS[config["preset"]]
    words = [*STAGES[stage][1].split(), "--preset", config["preset"]]
    words += _flag("run_dir", folder.as_posix())
    defaults = {}
    if stage == "teacher":  # the later steps take these from the first
        defaults = {name: getattr(preset, name) for name in INHERITED if hasattr(preset, name)}
        defaults |= {"seed": 0, "data_dir": "datasets", "weights": None}
        defaults |= {"linear": False, "member": 0}
    elif stage == "samples":
        defaults = {"unlabeled": list(preset.unlabeled), "p": preset.p, "k": preset.k}
        defaults |= {"min_score": 0.0, "strategy": "ranked", "keep_duplicates": False}
        defaults |= {"pool_size": None, "engine": None, "scores": None}
    elif stage == "student":
        before = made_from(folder / stage, config).parent / "config.json"
        before = read_record(before) if before.exists() else config
        defaults = {"soft_labels": False, "joint": False, "input_size": before["input_size"]}
    else:
        defaults = {"linear": False}
    given = {name: config.get(name, value) for name, value in defaults.items()}
    changed = {name: value for name, value in given.items() if value != defaults[name]}
    if stage in TRAININGS:
        recipe = vars(training_of(preset, stage, config["dataset"]))
        given = config["training"].items()
        changed |= {name: value for name, value in given if recipe.get(name) != value}
        if "batch_size" in changed:  # the rate would follow it
            changed["learning_rate"] = config["training"]["learning_rate"]
    if config["parent"]:
        parent = made_from(folder / stage, config)
        more = [(folder / stage / it["path"]).resolve() for it in config.get("more_parents") or ()]
        if more or parent.parents[1] != folder.resolve():
            changed[PARENT_FLAGS[stage]] = [path.as_posix() for path in (parent, *more)]
    for name, value in changed.items():
        words += _flag(name, value)
    return words


def _flag(name, value):
    """A flag and its value or values, as words; a value that begins with - is no flag."""
    name = f"--{name.replace('_', '-')}"
    if isinstance(value, list):
        return [name, *(f"./{word}" if f"{word}".startswith("-") else str(word) for word in value)]
    return [f"{name}={value}"] if f"{value}".startswith("-") else [name, str(value) or "none"]


def images_of(stages):
    """How many images the stages have processed, those that were only scored among them."""
    return sum(s.result.get("images_processed", s.result.get("scored")) for s in stages.values())


def rival_folder(folder):
    return folder.with_name(f"{folder.resolve().name}-rival")


def rival_of(folder):
    """The command line of a finished run's rival, a list of words: its first network on the labels
    alone, for as many images as all four steps processed.
    """
    stages = finished_stages(folder)
    for stage in STAGES.keys() - stages.keys():
        read_stage(folder / stage, stage)  # says what is missing
    teacher = stages["teacher"]
    share = images_of(stages) / teacher.result["images_processed"]
    recipe = teacher.config["training"]
    recipe = recipe | {"epochs": round(share * recipe["epochs"])}
    return command_of(rival_folder(folder), teacher.config | {"training": recipe})


def is_rival(run, of):
    """Whether a WholeRun is a teacher alone that has the settings of the other one's and as many
    images as all its steps together, give or take a tenth.
    """
    if set(run.stages) != {"teacher"} or set(of.stages) != set(STAGES):
        return False
    mine, its = run.stages["teacher"].config, of.stages["teacher"].config

    def settings(config):
        kept = {name: config.get(name) for name in (*INHERITED, "weights", "linear")}
        pixels = config["inputs"]["labelled"]["pixels"]
        return kept, pixels, {**config["training"], "epochs": 0}

    near = 0.9 < images_of(run.stages) / images_of(of.stages) < 1.1
    return near and settings(mine) == settings(its)


@program
def train_rival(argv=None):
    """`make rival`: train the rival of the run folder that comes first, with the flags after it."""
    folder, *flags = sys.argv[1:] if argv is None else argv
    words = [*rival_of(Path(folder)), *flags]
    print(shlex.join(words), flush=True)
    code = subprocess.run([sys.executable, *words[1:]]).returncode
    if code:
        raise SystemExit(code)
    print(shlex.join(["python", "-m", "report", folder, str(rival_folder(Path(folder)))]))
