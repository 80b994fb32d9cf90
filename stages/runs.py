"""The runs of the study: what one is, where it is, and its command line.

A run is one step of the chain, started as a program with all its flags.  Its identity is the sha256
of its settings, its parent's identity and the code that decides its numbers, and names its folder,
so a run that exists is never run again, and one that was killed goes on where it was.
"""

import ast
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# step -> its script, the flag that names its parent, the folder that it writes
PROGRAMS = {
    "teacher": ("main.py", None, "teacher"),
    "further": ("main.py", "--weights", "teacher"),
    "samples": ("make_sample_data.py", "--teacher", "samples"),
    "student": ("student_train.py", "--selection", "student"),
    "finetuned": ("main.py", "--student", "finetuned"),
}
PROGRAMS["transferred"] = PROGRAMS["further"]
PROGRAMS |= {f"{step} again": PROGRAMS[step] for step in ("samples", "student", "finetuned")}
# What decides a run's numbers; presets are part of a run's settings.
CODE = ("engine.py", "ranking.py", "topk.py", "distributed.py", "main.py", "make_sample_data.py")
CODE += ("student_train.py", "data/*.py", "models/*.py", "stages/*.py")
# Of stages/: what starts the runs, and has no say in their numbers.
NOT_CODE = ("arms.py", "cluster.py", "progress.py", "runs.py", "sizes.py", "work.py")


@dataclass(frozen=True)
class Run:
    """One step with one seed.

    images, multiply_adds: planned;  values: what the preset gives this step
    """

    step: str
    preset: str
    seed: int
    flags: tuple[tuple[str, str], ...]
    values: dict = field(repr=False, compare=False)
    parent: "Run | None" = None
    images: int = 0
    multiply_adds: int = 0
    code: str = ""

    def _digest(self, **more):
        about = [self.step, self.preset, self.seed, self.flags, self.values]
        text = json.dumps([*about, more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def key(self):
        """The same for one setting under all versions of the code, 16 hexadecimal digits."""
        return self._digest(parent=self.parent and self.parent.key)[:16]

    @cached_property
    def identity(self):
        """64 hexadecimal digits."""
        return self._digest(parent=self.parent and self.parent.identity, code=self.code)

    def chain(self):
        """Its ancestors, the oldest first, and itself."""
        return [*(self.parent.chain() if self.parent else ()), self]

    def run_dir(self, runs):
        return Path(runs) / self.identity[:16]

    def folder(self, runs):
        """Its stage folder below the folder `runs`."""
        return self.run_dir(runs) / PROGRAMS[self.step][2]

    def result(self, runs):
        """Content of its result.json, None while it is not done."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads((self.folder(runs) / "result.json").read_text(encoding="utf-8"))

    def words(self, run_dir, parent=None):
        """Its command line after `python`.

        parent: stage folder of its parent, None where that is in `run_dir`, too
        """
        script, flag, _ = PROGRAMS[self.step]
        words = [script, "--run-dir", str(run_dir), "--threads", "1"]
        if self.parent is None:
            words += ["--preset", self.preset, "--seed", str(self.seed)]
        elif flag == "--weights":  # a step 1, which inherits nothing
            folder = parent or Path(run_dir) / "teacher"
            words += ["--preset", self.preset, "--seed", str(self.seed), flag, f"{folder}/model.pt"]
        elif parent:
            words += [flag, str(parent)]
        if self.step.startswith("finetuned"):
            words += ["--student-network", "True"]
        for name, value in self.flags:
            words += [name, *value.split()]
        return words


def code_digest(root):
    """sha256 of what the code says, comments, docstrings and layout aside; 16 digits."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for path in sorted(Path(root).glob(pattern)):
            if path.parent.name != "stages" or path.name not in NOT_CODE:
                digest.update(repr(_meaning(ast.parse(path.read_bytes()))).encode())
    return digest.hexdigest()[:16]


def _meaning(node):
    """A syntax tree as nested tuples, without docstrings."""
    if isinstance(node, list):
        # A string that stands alone is a docstring, or does nothing.
        alone = [n for n in node if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
        return tuple(_meaning(n) for n in node if n not in alone)
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = ((name, _meaning(value)) for name, value in ast.iter_fields(node))
    return type(node).__name__, *((name, part) for name, part in parts if part not in ((), "None"))
