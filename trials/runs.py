"""The runs of the study: what one is, where it is, and its command line.

A run is one step of the chain, started as a program with all its flags.  Its identity is the sha256
of its settings, its parents' identities and NUMBERS, and names its folder, so a run that exists is
never run again, and one that was killed goes on where it was.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from stages.folder import read_records

# step -> its script, the flag that names its parent, the folder that it writes
PROGRAMS = {
    "tags": ("main.py", None, "teacher"),
    "teacher": ("main.py", "--weights", "teacher"),  # with a parent only after tags
    "further": ("main.py", "--weights", "teacher"),
    "samples": ("make_sample_data.py", "--teacher", "samples"),
    "student": ("student_train.py", "--selection", "student"),
    "finetuned": ("main.py", "--student", "finetuned"),
}
PROGRAMS["transferred"] = PROGRAMS["further"]
PROGRAMS |= {f"{step} again": PROGRAMS[step] for step in ("samples", "student", "finetuned")}
# Raised by hand, in a commit that says why, when the same settings give other numbers: when
# tests/test_numbers.py finds other bits in the demo's chain.  Runs of before are then run again.
NUMBERS = 1
# Fields of presets.Training that are younger than the oldest rows: at these values they stay out of
# a run's key, so that the rows keep their place.
_YOUNG = {"resize": ""}


@dataclass(frozen=True)
class Run:
    """One step with one seed.

    images, multiply_adds: planned;  values: what the preset gives this step
    others: further parents, those of an ensemble's other members
    was: flags that once stood for its parent, which was part of the same run; they still do in its
    key and identity, so that older rows keep their place
    """

    step: str
    preset: str
    seed: int
    flags: tuple[tuple[str, str], ...]
    values: dict = field(repr=False, compare=False)
    parent: "Run | None" = None
    images: int = 0
    multiply_adds: int = 0
    others: "tuple[Run, ...]" = ()
    was: tuple[tuple[str, str], ...] = ()

    def _digest(self, parents, **more):
        flags, parents = sorted(self.flags + self.was), [] if self.was else parents
        about = [self.step, self.preset, self.seed, flags, _without_young(self.values)]
        more["parent"] = parents[0] if parents else None
        if parents[1:]:
            more["others"] = parents[1:]
        text = json.dumps([*about, more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def key(self):
        """The same for one setting whatever NUMBERS is, 16 hexadecimal digits."""
        return self._digest([run.key for run in self.parents])[:16]

    @cached_property
    def identity(self):
        """64 hexadecimal digits."""
        return self._digest([run.identity for run in self.parents], numbers=NUMBERS)

    @property
    def parents(self):
        return [self.parent, *self.others] if self.parent else []

    def chain(self):
        """Its ancestors, the oldest first, and itself."""
        return [*(run for parent in self.parents for run in parent.chain()), self]

    def run_dir(self, runs):
        return Path(runs) / self.identity[:16]

    def folder(self, runs):
        """Its stage folder below the folder `runs`."""
        return self.run_dir(runs) / PROGRAMS[self.step][2]

    def result(self, runs):
        """Content of its result.json, None while it is not done.

        Raises ValueError where it or config.json is not as its step wrote it.
        """
        done = (self.folder(runs) / "result.json").exists()
        return read_records(self.folder(runs))[1] if done else None

    def words(self, run_dir, parents=()):
        """Its command line after `python`.

        parents: stage folders of its parents, none where the one parent is in `run_dir`, too
        """
        script, flag, _ = PROGRAMS[self.step]
        words = [script, "--run-dir", str(run_dir), "--threads", "1"]
        if self.parent is None:
            words += ["--preset", self.preset, "--seed", str(self.seed)]
        elif flag == "--weights":  # a step 1, which inherits nothing
            folder = parents[0] if parents else Path(run_dir) / "teacher"
            words += ["--preset", self.preset, "--seed", str(self.seed), flag, f"{folder}/model.pt"]
        elif parents:
            words += [flag, *map(str, parents)]
        if self.step.startswith("finetuned"):
            words += ["--student-network", "True"]
        for name, value in self.flags:
            words += [name, *(value.split() or ["none"])]
        return words


def commands(last, where):
    """The command lines that repeat a run and its ancestors in the folder `where`."""
    folders = {}  # identity -> the folder of its stage
    for run in last.chain():
        number = dict(run.flags).get("--member")
        apart = f"member-{number}" if number else ""
        if run.step in ("tags", "further", "transferred"):  # a step 1, too
            apart = run.step
        elif run.step.endswith("again"):
            apart = "second-round"
        run_dir = Path(where, apart)
        folders[run.identity] = run_dir / PROGRAMS[run.step][2]
        parents = [folders[parent.identity] for parent in run.parents]
        inside = [parent.parent for parent in parents] == [run_dir]
        yield shlex.join(["python", *run.words(run_dir, () if inside else parents)])


def _without_young(values):
    """What a preset gives a step, without young fields at the value that they had before them."""
    return {
        name: {n: v for n, v in value.items() if n not in _YOUNG or v != _YOUNG[n]}
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }
