"""A stage from its first look at its folder to its result.json, and what it hands on.

A stage records the sha256 of the file that it was made from, so a later one can tell that a teacher
or a selection has changed.
"""

import json
import os
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import distributed
from files import naming, write_json, write_text

from .folder import (
    LOCK,
    STAGES,
    WORKING_FILES,
    check_file,
    check_stage,
    clear,
    command,
    digest,
    hashes_of,
    is_at,
    left_behind,
    made_from,
    next_action,
    only_writer,
    read_record,
    read_records,
    remove,
    sealed,
    state_of,
)
from .inherit import check_unchanged, with_resumption
from .program import Failure, as_failures, say

# --- a finished stage ---------------------------------------------------------------------------


@dataclass
class FinishedStage:
    """A finished stage, as the next one finds it."""

    folder: Path
    config: dict
    result: dict
    sha256: str  # of its product

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
        return {"stage": self.name, "path": path.as_posix(), "sha256": self.sha256}


def read_stage(folder, *stages):
    """The finished stage in `folder`, one of `stages`; the folder may be named by its product.

    Raises FileNotFoundError when it has not finished, ValueError when a file of it is damaged (see
    folder.py) or what it was made from has changed since.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    product = STAGES[stages[0]][0]
    if state_of(folder) != "finished":
        what = "is not there" if not folder.exists() else "is not finished (no result.json)"
        done = sorted(folder.parent.parent.glob(f"*/{stages[0]}/result.json"))
        runs = ", ".join(f"--run-dir {path.parent.parent}" for path in done)
        raise FileNotFoundError(
            f"{folder} {what}: run `{command(folder.parent / stages[0])}` first, or name another "
            f"stage{f' ({runs})' if runs else ''}"
        )
    config, result = read_records(folder)
    if config["stage"] not in stages:
        needed = f"a {' or '.join(stages)} is needed here"
        raise ValueError(f"{folder} holds the stage {config['stage']}; {needed}")
    if not (folder / product).is_file():
        again = command(folder.parent / stages[0], "--overwrite")
        raise FileNotFoundError(f"{folder} has lost its {product}: run `{again}`")
    sha256 = check_file(folder / product)
    check_parent(folder, config)
    return FinishedStage(folder, config, result, sha256)


def check_parent(folder, config):
    """ValueError when the file that a stage was made from is damaged or no longer the same.

    A parent that has gone (only one stage was copied elsewhere) cannot be compared and passes.
    """
    for parent in filter(None, (config["parent"], *config.get("more_parents", ()))):
        path = (folder / parent["path"]).resolve()
        if path.is_file() and check_file(path) != parent["sha256"]:
            raise ValueError(
                f"{folder} was made from another {path.name} than the {parent['stage']} "
                f"there is now; make it anew with `{command(folder, '--overwrite')}`"
            )


# --- a stage that runs --------------------------------------------------------------------------


@dataclass
class OpenStage:
    """A stage that is about to run; nothing is written yet."""

    folder: Path  # named after the stage
    saved: dict | None = None  # its config.json, where it is resumed
    lock: int | None = None  # of folder.only_writer, in the first process

    @property
    def name(self):
        return self.folder.name

    def parent(self, stage, path=None):
        """The finished stage that this one is made from, in the same run folder or at `path`.

        Raises FileNotFoundError or ValueError, see `read_stage`; ValueError also where this stage
        is resumed and was made from another.
        """
        parent = read_stage(path or self.folder.parent / stage, stage)
        self.check_parent()
        return parent

    def check_parent(self):
        """ValueError where this stage is resumed and what it was made from has changed."""
        if self.saved:
            check_parent(self.folder, self.saved)

    def settle(self, config):
        """The content of config.json: `config`, or what a resumed stage began with.

        Raises ValueError where it would go on with other settings or data.
        """
        if not self.saved:
            return config
        check_unchanged(self.saved, config)
        config, changed = with_resumption(self.saved, config)
        if changed and distributed.is_first():
            say(f"{changed}: the bits will not be those of a run that was never stopped")
        return config

    def check_ours(self):
        """Failure where the folder was removed meanwhile: another step may be writing there."""
        if self.lock is not None and not is_at(self.lock, self.folder / LOCK):
            raise Failure(
                f"{self.folder} was removed or replaced while this step ran; it writes nothing more"
            )


def identity(config):
    """What tells a stage from all others, to bind its resume.pt to it.  config: of `settle`"""
    return digest(sorted((name, x) for name, x in config.items() if name != "resumed"))


@contextmanager
def open_stage(folder, resume, overwrite):
    """-> OpenStage, or None, saying so, where the stage is finished and --resume keeps it.

    In this context no other program writes to the folder.
    Raises ValueError for work that is already there, for a folder that somebody writes to, and
    where --resume finds a damaged file.
    """
    writes = overwrite or state_of(folder) != "finished" or left_behind(folder)
    with only_writer(folder) if writes and distributed.is_first() else nullcontext() as lock:
        action = next_action(folder, resume, overwrite)
        if action == "nothing":
            check_stage(folder)
            print(f"{folder} is finished already; --overwrite starts it anew")
            if writes and distributed.is_first():
                remove(folder, WORKING_FILES)
            yield None
            return
        saved = read_record(folder / "config.json") if action == "resume" else None
        yield OpenStage(folder, saved, lock)


@contextmanager
def run_logged(stage, config, open_board, epochs_done=0, images_done=0, logged=""):
    """The stage runs: -> its StageLog in the first process, None in the others.

    stage: OpenStage;  config: content of config.json;  open_board: report.board.Board
    epochs_done, images_done, logged: of a training that is resumed, and its metrics.jsonl as it was
    then
    Errors of the disk and of the data are a Failure (exit code 1) from here on.
    """
    distributed.wait()  # every process has read what it needs
    with as_failures(), naming(stage.folder), ExitStack() as stack:
        log = None
        if distributed.is_first():
            log = StageLog(stage, config, open_board, epochs_done, images_done, logged)
            stack.enter_context(log.board)
        distributed.wait()  # the folder is there
        yield log


class StageLog:
    """What a running stage writes: config.json, metrics.jsonl, result.json, TensorBoard's board."""

    def __init__(self, stage, config, open_board, epochs_done, images_done, logged):
        self.stage, self.folder, self.config = stage, stage.folder, config
        self.metrics = self.folder / "metrics.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        stage.check_ours()
        if stage.saved is None:
            clear(self.folder)
        write_json(self.folder / "config.json", sealed(config))
        self.logged = "".join(logged.splitlines(keepends=True)[:epochs_done])  # of metrics.jsonl
        if self.metrics.exists():  # with lines from after the last save, perhaps, or with damage
            write_text(self.metrics, self.logged)
        more = {"purge_step": images_done + 1} if stage.saved else {}
        self.board = open_board(self.folder, **more)
        if stage.saved is None:
            self.board.settings(config)

    def epoch(self, metrics, images):
        """Append one epoch's line and its curves; `metrics` has None for what was not measured.

        images: processed in this training so far
        """
        self.stage.check_ours()
        line = json.dumps(metrics) + "\n"
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(line)
        self.logged += line
        self.board.epoch({name: x for name, x in metrics.items() if x is not None}, images)

    def finish(self, result, hparams):
        """Write the hparams and, last, result.json.  What only --resume needs goes."""
        self.board.hparams(hparams, result)
        self.stage.check_ours()
        resumed = {"resumed": self.config["resumed"]} if "resumed" in self.config else {}
        result = {**result, **resumed, "files": hashes_of(self.folder)}
        write_json(self.folder / "result.json", sealed(result))
        remove(self.folder, WORKING_FILES)


def chain_settings(folder, config):
    """What one changes in a chain, of the stage in `folder` and of those that it was made from: a
    dict for the table of runs.  config: content of the stage's config.json
    """
    names = ("stage", "preset", "dataset", "seed", "labels_per_class", "input_size")
    settings = {name: config[name] for name in names}
    while config:
        if config["stage"] == "samples":
            changed = {name: config[name] for name in ("strategy", "p", "k")}
        else:
            recipe = {n: config["training"][n] for n in ("model", "learning_rate", "epochs")}
            changed = {f"{config['stage']} {name}": value for name, value in recipe.items()}
        settings = changed | settings
        folder = config["parent"] and made_from(folder, config).parent
        config = None
        if folder:
            with suppress(OSError, ValueError):  # it has gone, or is damaged: no stage ends for it
                config = read_record(folder / "config.json")
    return {name: value for name, value in settings.items() if value is not None}
