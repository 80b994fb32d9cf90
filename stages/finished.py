"""What a finished stage hands on to the next one.

A stage records the sha256 of the file that it was made from, so a later one can tell that a teacher
or a selection has changed.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from models.download import sha256_of_file

from .folder import STAGES, state_of


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


def read_stage(folder, *stages):
    """The finished stage in `folder`, one of `stages`; the folder may be named by its product.

    Raises FileNotFoundError when it has not finished, ValueError when what it was made from has
    changed since.
    """
    folder = Path(folder)
    folder = folder.parent if folder.is_file() else folder
    product, command = STAGES[stages[0]]
    if state_of(folder) != "finished":
        what = "is not there" if not folder.exists() else "is not finished (no result.json)"
        raise FileNotFoundError(
            f"{folder} {what}: run `{command}` for this run folder first, or name another stage"
        )
    config = read_json(folder / "config.json")
    if config["stage"] not in stages:
        needed = f"a {' or '.join(stages)} is needed here"
        raise ValueError(f"{folder} holds the stage {config['stage']}; {needed}")
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
