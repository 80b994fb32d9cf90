"""A stage's folder: its states, and what a finished stage hands on.

A folder is empty, unfinished (config.json is there) or finished (result.json, written last).  A
stage records the sha256 of the file that it was made from, so a later one can tell that a teacher
or a selection has changed.
"""

import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import distributed
from engine import autocast_dtype
from models.download import sha256_of_file

# stage -> the file that the next stage is made from, and the command that runs the stage
STAGES = {
    "teacher": ("model.pt", "python main.py"),
    "samples": ("selection.csv", "python make_sample_data.py"),
    "student": ("model.pt", "python student_train.py"),
    "finetuned": ("model.pt", "python main.py --student-network True"),
}
_ARTEFACTS = ("result.json", "config.json", "metrics.jsonl", "model.pt", "scores.npz")
_ARTEFACTS += ("selection.csv", "skipped.csv", "projector_config.pbtxt", "events.out.tfevents.*")
WORKING_FILES = ("resume*.pt", "scores-*.bin")  # of an unfinished stage, one a process


def state_of(folder):
    """ "empty", "unfinished" or "finished"."""
    if (folder / "result.json").exists():
        return "finished"
    return "unfinished" if (folder / "config.json").exists() else "empty"


def next_action(folder, resume, overwrite):
    """What a stage is to do with its folder: "start", "resume" or "nothing".  Changes nothing.

    Raises ValueError for work that is already there, naming --resume and --overwrite.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite contradict each other; give one of them")
    state = state_of(folder)
    if state == "empty" or overwrite:
        return "start"
    if resume:
        return "nothing" if state == "finished" else "resume"
    raise ValueError(
        f"{folder} is {state}: add --resume to "
        f"{'keep it as it is' if state == 'finished' else 'go on'} or --overwrite to start anew"
    )


def clear(folder):
    """Remove an earlier run: result.json first, so that what is left never looks finished."""
    remove(folder, _ARTEFACTS + WORKING_FILES)
    shutil.rmtree(folder / "00000", ignore_errors=True)  # the embedding projector's


def remove(folder, patterns):
    """Remove the files of a folder that match one of the patterns."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


# --- finished stages ----------------------------------------------------------------------------


@dataclass
class FinishedStage:
    """A finished stage, as the next one finds it."""

    folder: Path
    config: dict
    result: dict

    @property
    def name(self):
        return self.config["stage"]

    @property
    def product(self):
        """The file that the next stage is made from."""
        return self.folder / STAGES[self.name][0]

    def as_parent(self, child):
        """What the stage in the folder `child` records of this one."""
        try:
            path = Path(os.path.relpath(self.product, child))
        except ValueError:  # another drive
            path = self.product.resolve()
        sha256 = sha256_of_file(self.product)
        return {"stage": self.name, "path": path.as_posix(), "sha256": sha256}


def read_stage(folder, stage):
    """The finished stage in `folder`, which may also be named by its product.

    Raises FileNotFoundError when it has not finished, ValueError when what it was made from has
    changed since.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    product, command = STAGES[stage]
    if state_of(folder) != "finished":
        what = "is not there" if not folder.exists() else "is not finished (no result.json)"
        raise FileNotFoundError(
            f"{folder} {what}: run `{command}` for this run folder first, or name another stage"
        )
    config = read_json(folder / "config.json")
    if config["stage"] != stage:
        raise ValueError(f"{folder} holds the stage {config['stage']}; a {stage} is needed here")
    if not (folder / product).is_file():
        raise FileNotFoundError(f"{folder} has lost its {product}: run `{command} --overwrite`")
    check_parent(folder, config)
    return FinishedStage(folder, config, read_json(folder / "result.json"))


def read_json(path):
    """Raises ValueError for a file that is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run its stage with --overwrite") from error


def check_parent(folder, config):
    """ValueError when the file that a stage was made from is no longer the same.

    A parent that has gone (only one stage was copied elsewhere) cannot be compared and passes.
    """
    parent = config.get("parent")
    path = folder / parent["path"] if parent else None
    if path and path.is_file() and sha256_of_file(path) != parent["sha256"]:
        command = STAGES[config["stage"]][1]
        raise ValueError(
            f"{folder} was made from another {path.resolve().name} than the {parent['stage']} "
            f"there is now; make it anew with `{command} --overwrite`"
        )


# --- config.json --------------------------------------------------------------------------------


def config_of(stage, settings, labelled, normalisation, device, parent=None, **own):
    """The content of config.json.

    stage: name;  settings: of `inherit`;  labelled: data.LabelledSet;  normalisation: mean and std,
    three numbers each;  parent: of FinishedStage.as_parent;  own: what only this stage has
    """
    mean, std = normalisation
    return {
        "stage": stage,
        **settings,
        **own,
        "data_dir": str(settings["data_dir"]),
        "normalisation": {"mean": mean, "std": std},
        "device": device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "versions": versions(),
        "inputs": {"labelled": labelled.inputs},
        "parent": parent,
    }


def versions():
    """The project's commit (None outside git) and the libraries' versions."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = None
    if (root / ".git").exists() and shutil.which("git"):
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    found = {"project": commit, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("torchvision", "opencv-python", "opencv-python-headless"):
        try:
            found[package.removesuffix("-headless")] = version(package)
        except PackageNotFoundError:
            found.setdefault(package.removesuffix("-headless"), None)
    return found
