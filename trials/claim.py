"""A claim of the paper as claims.py makes it: words, arms, tests and the rows of its figure."""

import csv
import hashlib
import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path

from .arms import Arm

# What the paper reports beside our rows; values read from its plots are within about 0.05.
PAPER = Path(__file__).parents[1] / "paper.csv"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and its test here."""

    rows: dict  # of its figure: {label: arm}; of a list of arms the one that validation chose
    tests: list  # of trials.statistics.Test, one a part
    more: tuple = ()  # arms that the page lists first, whether or not a row or a test has them
    zero: Arm | dict | None = None  # at zero in the figure: an arm, or {label: arm}; by default the
    # arm that the first test compares with
    drawn: dict = field(default_factory=dict)  # {label: what the figure writes in its place}
    seeds: int = 3  # registered: 0, 1, ..
    primary: bool = False  # the one claim of a preset whose p is not corrected
    beside: str = ""  # the claim whose row of the summary it shares
    name: str = ""
    words: str = ""
    paper: str = ""  # what it reports
    bears: str = ""  # on the paper?  "yes", "only in kind" or "no", and why
    toy: str = ""  # why the scale is too far from the paper's to touch its statement

    @property
    def arms(self):
        """[Arm]: all that are listed, drawn or tested, each once."""
        zeros = self.zero.values() if isinstance(self.zero, dict) else [self.zero]
        sides = [self.more, *self.rows.values(), *zeros]
        sides += [side for test in self.tests for side in test.arms]
        arms = [
            arm for side in sides if side for arm in ([side] if isinstance(side, Arm) else side)
        ]
        return list({arm.name: arm for arm in arms}.values())

    @property
    def reported(self):
        """{label of a row: points above zero in the paper}"""
        with open(PAPER, encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["claim"] == self.name]
        return {line["row"]: float(line["top1"]) - float(line["zero"]) for line in lines}

    @property
    def digest(self):
        """sha256 of what is registered, however it is written down: arms, tests and seeds."""
        arms = sorted(self.arms, key=lambda arm: arm.name)
        tests = [[type(t).__name__, t.smallest, t.ruled_out, t.sides] for t in self.tests]
        about = [self.name, arms, tests, self.seeds]
        text = json.dumps(about, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value):
    """An arm, or what hangs on the preset, as JSON has it; without a step that it does not have."""
    return [type(value).__name__, {n: v for n, v in vars(value).items() if v is not None}]


def said(make):
    """What a claim's function says: {"name": .., "words": .., "paper": .., "bears": ..}"""
    text = inspect.getdoc(make).partition("\n\n")[0].replace("\n", " ")
    words, _, text = text.partition(" Paper: ")
    paper, _, bears = text.partition(" Bears: ")
    name = make.__name__.strip("_").replace("_", "-")
    bears = bears.rstrip(".") or "no: not a claim of the paper"
    return {"name": name, "words": words, "paper": paper.rstrip("."), "bears": bears}
