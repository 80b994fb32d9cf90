"""Ctrl-C and SIGTERM end a program at once, or wait while a stage saves its state."""

import signal
import threading
from contextlib import contextmanager

import distributed


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


class _Signals:
    pending = None  # a signal that came while it was deferred
    deferred = False

    def receive(self, signum, frame):
        if self.deferred and self.pending is None:
            self.pending = signum
        # torchrun passes a signal on that its processes may have received themselves already.
        elif not (self.deferred and distributed.size() > 1):
            raise Interrupted(signum)


_signals = _Signals()


@contextmanager
def handled():
    """In this context both signals raise Interrupted."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, _signals.receive)
    _signals.pending = None
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextmanager
def saving_first():
    """In this context a first signal is only noted: the code asks `interruption()` for it, saves,
    and calls `stop`.  A second one ends the program at once.
    """
    _signals.deferred = True
    try:
        yield
    finally:
        _signals.deferred = False
    if _signals.pending is not None:  # it came after the last question
        raise Interrupted(_signals.pending)


def interruption():
    """The signal that a stage has to save its state for and stop at, or None."""
    return _signals.pending


def stop(bar, folder, signum):
    """End a stage whose state has just been saved."""
    bar.close()
    print(f"state saved in {folder}; go on with --resume", flush=True)
    raise Interrupted(signum)
