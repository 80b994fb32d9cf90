"""The runs of the study: what one is, which are done, and several at a time until all are.

A run is one step of the chain, started as a program with all its flags.  Its identity is the sha256
of its settings, its parent's identity and the code that decides its numbers, and names its folder,
so a run that exists is never run again, and one that was killed goes on where it was.
"""

import ast
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two studies out of one run
    fcntl = None

# step -> its script, the flag that names its parent, the folder that it writes
PROGRAMS = {
    "teacher": ("main.py", None, "teacher"),
    "further": ("main.py", "--weights", "teacher"),
    "samples": ("make_sample_data.py", "--teacher", "samples"),
    "student": ("student_train.py", "--selection", "student"),
    "finetuned": ("main.py", "--student", "finetuned"),
}
# What decides a run's numbers; presets are part of a run's settings.
CODE = ("engine.py", "ranking.py", "topk.py", "distributed.py", "main.py", "make_sample_data.py")
CODE += ("student_train.py", "data/*.py", "models/*.py", "stages/*.py")
NOT_CODE = ("runs.py", "arms.py")  # of stages/: they start the runs
POLL_SECONDS = 0.1


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
        words = [script, "--run-dir", str(run_dir)]
        if self.parent is None:
            words += ["--preset", self.preset, "--seed", str(self.seed)]
        elif self.step == "further":  # a step 1, which inherits nothing
            folder = parent or Path(run_dir) / "teacher"
            words += ["--preset", self.preset, "--seed", str(self.seed), flag, f"{folder}/model.pt"]
        elif parent:
            words += [flag, str(parent)]
        if self.step == "finetuned":
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


# --- a lock a run -------------------------------------------------------------------------------


def take_lock(path):
    """-> a file descriptor that holds the lock, None where somebody else has it.

    The kernel gives it up with the last process that has it open, however that ends: nothing is
    left behind by kill -9, and a step that outlives its study.py keeps it until it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


# --- several at a time --------------------------------------------------------------------------


@dataclass
class Place:
    """Where runs happen."""

    root: Path  # of the project
    runs: Path  # the folder of the runs
    data: Path  # --data-dir
    cores: list[int | None]  # one a job: the core that it is pinned to, None for anywhere
    environment: dict = field(default_factory=dict)  # beside that of this process

    def start(self, run, lock, core):
        """A run as a child process with one thread; its output goes to log.txt."""
        parent = run.parent and run.parent.folder(self.runs).absolute()
        words = run.words(run.run_dir(self.runs).absolute(), parent)
        words += ["--data-dir", str(self.data.absolute()), "--resume"]
        with open(run.run_dir(self.runs) / "log.txt", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.root,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for study.py, which passes it on once
                pass_fds=(lock,) if fcntl else (),
            )
        if core is not None and hasattr(os, "sched_setaffinity"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(child.pid, {core})
        return child


class Work:
    """Runs all of `runs` (parents first) in a Place."""

    def __init__(self, runs, place):
        self.place = place
        self.waiting = [run for run in runs if run.result(place.runs) is None]
        self.at_work = {}  # slot -> run, child
        self.failed = {}  # run -> the last line of its log

    def go_on(self, stopping):
        """Yield a run that has finished, or None every POLL_SECONDS, until all is done or
        `stopping()`; then the children save their state and stop.
        """
        try:
            while self.waiting or self.at_work:
                yield from self._finished()
                if stopping():
                    return
                if not self._start() and not self.at_work and not self._elsewhere:
                    return  # what is left waits for runs that have failed
                yield None
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()

    def _finished(self):
        for slot, (run, child) in list(self.at_work.items()):
            if child.poll() is None:
                continue
            del self.at_work[slot]
            if child.returncode == 0 and run.result(self.place.runs) is not None:
                yield run
            else:
                self.failed[run.identity] = run, _last_line(run.run_dir(self.place.runs))

    def _start(self):
        """Start what is ready in the free places; -> whether anything was started."""
        self._elsewhere, started = False, False
        for run in list(self.waiting):
            free = [i for i in range(len(self.place.cores)) if i not in self.at_work]
            if not free:
                break
            if run.parent and run.parent.result(self.place.runs) is None:
                continue
            lock = take_lock(run.run_dir(self.place.runs) / "lock")
            if lock is None:
                self._elsewhere = True
                continue
            self.waiting.remove(run)
            if run.result(self.place.runs) is None:
                child = self.place.start(run, lock, self.place.cores[free[0]])
                self.at_work[free[0]] = run, child
            os.close(lock)  # the child has it
            started = True
        return started

    def _stop(self):
        """Children save their state; a second signal would end them before they have."""
        for _, child in self.at_work.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for _, child in self.at_work.values():
            child.wait()


def _last_line(run_dir):
    lines = (run_dir / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no output")
