"""What a finished stage hands on to the next one.

A stage records the sha256 of the file that it was made from, so a later one can tell that a teacher
or a selection has changed.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from .folder import STAGES, state_of
from .records import check_file, read_record


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
    records.py) or what it was made from has changed since.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    product, command = STAGES[stages[0]]
    if state_of(folder) != "finished":
        what = "is not there" if not folder.exists() else "is not finished (no result.json)"
        done = sorted(folder.parent.parent.glob(f"*/{stages[0]}/result.json"))
        runs = ", ".join(f"--run-dir {path.parent.parent}" for path in done)
        raise FileNotFoundError(
            f"{folder} {what}: run `{command}` for this run folder first, or name another stage"
            f"{f' ({runs})' if runs else ''}"
        )
    config = read_record(folder / "config.json")
    if config["stage"] not in stages:
        needed = f"a {' or '.join(stages)} is needed here"
        raise ValueError(f"{folder} holds the stage {config['stage']}; {needed}")
    if not (folder / product).is_file():
        raise FileNotFoundError(f"{folder} has lost its {product}: run `{command} --overwrite`")
    result = read_record(folder / "result.json")
    check_file(folder / "config.json")
    sha256 = check_file(folder / product)
    check_parent(folder, config)
    return FinishedStage(folder, config, result, sha256)


def check_parent(folder, config):
    """ValueError when the file that a stage was made from is damaged or no longer the same.

    A parent that has gone (only one stage was copied elsewhere) cannot be compared and passes.
    """
    for parent in filter(None, (config.get("parent"), *config.get("more_parents", ()))):
        path = (folder / parent["path"]).resolve()
        if path.is_file() and check_file(path) != parent["sha256"]:
            command = STAGES[config["stage"]][1]
            raise ValueError(
                f"{folder} was made from another {path.name} than the {parent['stage']} "
                f"there is now; make it anew with `{command} --overwrite`"
            )
