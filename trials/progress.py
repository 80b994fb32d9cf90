"""How far the study is: rates measured, one line, and when to stop."""

import signal
import sys
import time

START_SECONDS = 6  # of a run, before it computes


class Stop:
    """Asked whether to stop: after a signal, or when the budget is spent.  A context manager."""

    def __init__(self, budget_minutes=None):
        self.signum = 0
        self.deadline = budget_minutes and time.monotonic() + 60 * budget_minutes

    def __call__(self):
        return bool(self.signum) or self.spent

    @property
    def spent(self):
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def reason(self):
        return signal.Signals(self.signum).name if self.signum else "its budget"

    def __enter__(self):
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def _note(self, signum, frame):
        self.signum = signum


class Rates:
    """Seconds that runs take, from what finished ones took.

    A rate is multiply-adds a second, one for each network, told apart by its multiply-adds an
    image: small networks do fewer a second.
    """

    def __init__(self, rows, guess):
        """rows: of runs.csv;  guess: multiply-adds a second, until a rate has been measured"""
        self.guess = guess
        self.seen = {}  # multiply-adds an image -> multiply-adds, seconds
        for row in rows:
            self.add(int(row["images"]), int(row["multiply_adds"]), float(row["seconds"]))

    def add(self, images, multiply_adds, seconds):
        kind = round(multiply_adds / images)
        before = self.seen.get(kind, (0, 0.0))
        self.seen[kind] = before[0] + multiply_adds, before[1] + seconds

    def seconds(self, run):
        """Expected for a run."""
        kind = round(run.multiply_adds / run.images)
        work, spent = self.seen.get(kind) or map(sum, zip(*self.seen.values(), (0, 0), strict=True))
        return START_SECONDS + run.multiply_adds * (
            spent / work if work and spent else 1 / self.guess
        )


class Line:
    """One line that is written over where there is a terminal; elsewhere a line at the start and
    one for each run that has finished.
    """

    def __init__(self, total, rates, jobs):
        self.total, self.rates, self.jobs = total, rates, jobs
        self.rewrites, self.silent = sys.stdout.isatty(), True

    def show(self, left, at_work, finished):
        """left: runs that are not done;  finished: whether one has just been"""
        if not (self.rewrites or self.silent or finished):
            return
        self.silent = False
        seconds = sum(map(self.rates.seconds, left)) / self.jobs
        text = f"study: {self.total - len(left)} of {self.total} runs done, {at_work} at work, "
        text += f"about {time_words(seconds)} left"
        print(f"\r{text:<79}" if self.rewrites else text, end="" if self.rewrites else "\n",
              flush=True)  # fmt: skip

    def end(self):
        if self.rewrites:
            print()


def time_words(seconds):
    """42 s, 12 min, 3.4 h"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
