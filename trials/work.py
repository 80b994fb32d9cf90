"""Several runs at a time until all are done, in a place, with a lock for each."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stages.folder import fcntl, take_lock

POLL_SECONDS = 0.1


@dataclass
class Place:
    """Where runs happen."""

    root: Path  # of the project
    runs: Path  # the folder of the runs
    data: Path  # --data-dir
    cores: list[int | str | None]  # one a job: its core, its GPU as text, None for anywhere
    environment: dict = field(default_factory=dict)  # beside that of this process

    def words(self, run):
        """The command line of a run after `python`."""
        parents = [parent.folder(self.runs).absolute() for parent in run.parents]
        words = run.words(run.run_dir(self.runs).absolute(), parents)
        return [*words, "--data-dir", str(self.data.absolute()), "--resume"]

    def start(self, run, lock, core):
        """A run as a child process with one thread; its output goes to log.txt."""
        device = {"CUDA_VISIBLE_DEVICES": core} if isinstance(core, str) else {}
        with open(run.run_dir(self.runs) / "log.txt", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, *self.words(run)],
                cwd=self.root,
                env=os.environ | self.environment | device,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for study.py, which passes it on once
                pass_fds=(lock,) if fcntl else (),
            )
        if isinstance(core, int) and hasattr(os, "sched_setaffinity"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(child.pid, {core})
        return child


def cores(jobs):
    """-> a core or a GPU for each job, what the runs' environment is to say.

    Each GPU has a run of its own, as far as there are enough of them.
    On a CPU a run has one thread and a core of its own: two such runs do more than one with two
    threads, and their bits do not depend on the load.
    """
    if count := _gpus():
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(n) for n in range(count)]
        return [gpus[job % len(gpus)] for job in range(jobs or len(gpus))], {}
    there = sorted(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))
    return [there[job % len(there)] for job in range(jobs or len(there))], {"OMP_NUM_THREADS": "1"}


def _gpus():
    import torch

    return torch.cuda.device_count()


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
            if any(parent.result(self.place.runs) is None for parent in run.parents):
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
    log = run_dir / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else ()
    return next((line for line in reversed(lines) if line.strip()), "no output")
