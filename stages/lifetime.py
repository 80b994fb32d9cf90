"""A stage from its first look at its folder to its result.json."""

import json
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import distributed
from files import named, write_json, write_text

from .finished import check_parent, read_stage
from .folder import (
    WORKING_FILES,
    clear,
    finished_already,
    left_behind,
    next_action,
    remove,
    state_of,
)
from .inherit import check_unchanged
from .lock import only_writer
from .program import working
from .records import check_stage, hashes_of, read_record, sealed


@dataclass
class OpenStage:
    """A stage that is about to run; nothing is written yet."""

    folder: Path  # named after the stage
    saved: dict | None = None  # its config.json, where it is resumed

    @property
    def name(self):
        return self.folder.name

    def parent(self, stage, path=None):
        """The finished stage that this one is made from, in the same run folder or at `path`.

        Raises FileNotFoundError or ValueError, see `read_stage`; ValueError also where this stage
        is resumed and was made from another.
        """
        found = read_stage(path or self.folder.parent / stage, stage)
        self.check_parent()
        return found

    def check_parent(self):
        """ValueError where this stage is resumed and what it was made from has changed."""
        if self.saved:
            check_parent(self.folder, self.saved)

    def check_unchanged(self, config):
        """ValueError where this stage is resumed and would go on with another config.json."""
        if self.saved:
            check_unchanged(self.saved, config)


@contextmanager
def open_stage(folder, resume, overwrite):
    """-> OpenStage, or None, saying so, where the stage is finished and --resume keeps it.

    In this context no other program writes to the folder.
    Raises ValueError for work that is already there, for a folder that somebody writes to, and
    where --resume finds a damaged file.
    """
    writes = overwrite or state_of(folder) != "finished" or left_behind(folder)
    with only_writer(folder) if writes and distributed.is_first() else nullcontext():
        action = next_action(folder, resume, overwrite)
        if action == "nothing":
            check_stage(folder)
            print(finished_already(folder))
            if writes and distributed.is_first():
                remove(folder, WORKING_FILES)
            yield None
            return
        saved = read_record(folder / "config.json") if action == "resume" else None
        yield OpenStage(folder, saved)


@contextmanager
def running(stage, config, open_board, epochs_done=0, images_done=0, logged=None):
    """The stage runs: -> its StageLog in the first process, None in the others.

    stage: OpenStage;  config: content of config.json;  open_board: report.board.Board
    epochs_done, images_done, logged: of a training that is resumed, and its metrics.jsonl as it was
    then
    Errors of the disk and of the data are a Failure (exit code 1) from here on.
    """
    distributed.wait()  # every process has read what it needs
    with working(), named(stage.folder), ExitStack() as stack:
        log = None
        if distributed.is_first():
            log = StageLog(stage, config, open_board, epochs_done, images_done, logged)
            stack.enter_context(log.board)
        distributed.wait()  # the folder is there
        yield log


class StageLog:
    """What a running stage writes: config.json, metrics.jsonl, result.json, TensorBoard's board."""

    def __init__(self, stage, config, open_board, epochs_done, images_done, logged):
        self.folder = stage.folder
        self.metrics = self.folder / "metrics.jsonl"
        self.logged = ""  # what metrics.jsonl holds
        self.folder.mkdir(parents=True, exist_ok=True)
        if stage.saved is None:
            clear(self.folder)
            write_json(self.folder / "config.json", sealed(config))
            self.board = open_board(self.folder)
            self.board.settings(config)
            return
        if self.metrics.exists():  # with lines from after the last save, perhaps, or with damage
            if logged is None:  # an older version did not save them
                logged = self.metrics.read_text(encoding="utf-8", errors="replace")
            self.logged = "".join(logged.splitlines(keepends=True)[:epochs_done])
            write_text(self.metrics, self.logged)
        self.board = open_board(self.folder, purge_step=images_done + 1)

    def epoch(self, metrics, images):
        """Append one epoch's line and its curves; `metrics` has None for what was not measured.

        images: processed in this training so far
        """
        line = json.dumps(metrics) + "\n"
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(line)
        self.logged += line
        self.board.epoch({name: x for name, x in metrics.items() if x is not None}, images)

    def finish(self, result, hparams):
        """Write the hparams and, last, result.json.  What only --resume needs goes."""
        self.board.hparams(hparams, result)
        result = {**result, "files": hashes_of(self.folder)}
        write_json(self.folder / "result.json", sealed(result))
        remove(self.folder, WORKING_FILES)
