"""One stage folder: config.json, metrics.jsonl, TensorBoard, result.json.

A folder is empty, unfinished (config.json is there) or finished (result.json, which is written
last).  Stages record the sha256 of what they were made from, so a later one can tell that a
teacher or a selection has changed under it.
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
from torch.utils.tensorboard import SummaryWriter

import distributed
from checkpoint import fingerprint
from engine import autocast_dtype

# stage -> the file that the next stage is made from, and how to run the stage
STAGES = {
    "teacher": ("model.pt", "python main.py"),
    "samples": ("selection.csv", "python make_sample_data.py"),
    "student": ("model.pt", "python student_train.py"),
    "finetuned": ("model.pt", "python main.py --student-network True"),
}
_ARTEFACTS = ("result.json", "config.json", "metrics.jsonl", "model.pt", "scores.npz")
_ARTEFACTS += ("selection.csv", "skipped.csv", "projector_config.pbtxt", "events.out.tfevents.*")
_WORKING = ("resume*.pt", "scores-*.bin")  # of an unfinished stage, one a process


@dataclass
class Stage:
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
        return {
            "stage": self.name,
            "path": path.as_posix(),
            "sha256": fingerprint(self.product),
        }


def write_json(path, content):
    """Write JSON whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path):
    """Raises ValueError for a file that is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); run its stage with --overwrite") from error


def state_of(folder):
    """ "empty", "unfinished" or "finished"."""
    if (folder / "result.json").exists():
        return "finished"
    return "unfinished" if (folder / "config.json").exists() else "empty"


def read_stage(folder, stage):
    """The finished stage in `folder` (or beside the product that `folder` names).

    Raises FileNotFoundError when it has not finished, ValueError when what it was made from has
    changed since.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder  # named by its product
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
    return Stage(folder, config, read_json(folder / "result.json"))


def check_parent(folder, config):
    """ValueError when the file that a stage was made from is no longer the same.

    A parent that has gone (only one stage was copied elsewhere) cannot be compared and passes.
    """
    parent = config.get("parent")
    path = folder / parent["path"] if parent else None
    if path and path.is_file() and fingerprint(path) != parent["sha256"]:
        command = STAGES[config["stage"]][1]
        raise ValueError(
            f"{folder} was made from another {path.resolve().name} than the {parent['stage']} "
            f"there is now; make it anew with `{command} --overwrite`"
        )


def versions():
    """The project's commit (None outside git) and the libraries' versions."""
    root = Path(__file__).parent
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


def describe(stage, settings, device, data_dir, inputs, parent, mean_std, **own):
    """The content of config.json.

    settings: cli.INHERITED; inputs: those of the labelled set; parent: from Stage.as_parent;
    mean_std: the normalisation; own: the settings that only this stage has.
    """
    return {
        "stage": stage,
        **settings,
        **own,
        "data_dir": str(data_dir),
        "normalisation": {"mean": mean_std[0], "std": mean_std[1]},
        "device": device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "versions": versions(),
        "inputs": {"labelled": inputs},
        "parent": parent,
    }


def claim(folder, resume, overwrite):
    """What a stage is to do with its folder: "start", "resume" or "nothing".  Changes nothing.

    Raises ValueError for work already there, naming --resume and --overwrite.
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
    """Remove an earlier run of a stage: result.json first, so that a rest never looks finished."""
    _remove(folder, _ARTEFACTS + _WORKING)
    shutil.rmtree(folder / "00000", ignore_errors=True)  # the embedding projector's


def _remove(folder, patterns):
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


class RunLog:
    """The files of a running stage.  A context manager: it closes TensorBoard's file."""

    def __init__(self, folder, config=None, epochs_done=None):
        """A new start with `config`, or (config None) a continuation after `epochs_done` epochs."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if config is not None:
            clear(folder)
            write_json(folder / "config.json", config)
        self.config = config or read_json(folder / "config.json")
        self.metrics = folder / "metrics.jsonl"
        if epochs_done is not None and self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            self.metrics.write_text("".join(lines[:epochs_done]), encoding="utf-8")
        purge = None if epochs_done is None else epochs_done + 1
        self.tensorboard = SummaryWriter(str(folder), purge_step=purge, flush_secs=20)
        if config is not None:
            self.tensorboard.add_text("settings", f"```json\n{json.dumps(config, indent=2)}\n```")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.tensorboard.close()

    def epoch(self, metrics):
        """Append one epoch's line and its curves; `metrics` has the epoch's number as "epoch"."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items():
            if name != "epoch":
                self.tensorboard.add_scalar(name, value, metrics["epoch"])

    def finish(self, result, hparams):
        """The last words: hparams with the final metrics, then result.json; what only `--resume`
        needs goes.
        """
        plain = {
            k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in hparams.items()
        }
        numbers = {
            f"final/{k}": v
            for k, v in result.items()
            if k not in hparams and isinstance(v, (int, float))
        }
        self.tensorboard.add_hparams(plain, numbers, run_name=".")
        self.tensorboard.flush()
        write_json(self.folder / "result.json", result)
        _remove(self.folder, _WORKING)
