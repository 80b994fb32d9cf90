"""Ctrl-C and SIGTERM end a program at once, or wait while a stage saves its state.

Python runs a signal's handler between two of its own instructions: not while a step computes, nor
while a process waits for another.  So a thread listens too.  It says at once what happens, and ends
a program that does not come to an end itself.  Nothing here imports torch, see flags.answer_early.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 3  # seconds from the signal that ends a program to its end, when it saves nothing first
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


class _Signals:
    script = False  # whether this process is one of the programs, and nobody's test
    deferred = False  # a first signal waits until the state is saved
    cuttable = False  # but not for the work that is under way, see `came_to_its_end`

    def __init__(self):
        self.pending = None  # the signal that waits
        self.leaving = None  # the signal that ends the program
        self.said = False  # what it does

    def receive(self, signum, frame):
        if self.leaving:
            return
        # torchrun passes a signal on that its processes may have received themselves already.
        if self.deferred and (self.pending is None or several()):
            first, self.pending = self.pending is None, self.pending or signum
            if first and self.cuttable:
                raise Interrupted(signum)
            return
        end(signum)


_signals = _Signals()


def several():
    """Whether torchrun has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def say(text):
    """One line on stderr that begins with the script and, under torchrun, the process."""
    script = Path(sys.argv[0])
    who = script.parent.name if script.name == "__main__.py" else script.name
    who += f" (process {os.environ['RANK']})" if several() else ""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar may stand there
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # names obey no terminal
    with suppress(BrokenPipeError):
        print(f"{clear}{who}: {text}", file=sys.stderr, flush=True)


def say_stopped(signum):
    if not _signals.said:
        _signals.said = True
        say(f"stopped by {signal.Signals(signum).name}")


def stopped(signum):
    """Nothing is left to do but to end.  A script does so at once: to take torch down would cost
    more than a second of the processor, ten times that beside other work.
    """
    say_stopped(signum)
    if not _signals.script:
        raise SystemExit(128 + signum)
    with suppress(OSError, RuntimeError):  # nobody reads it; it is being written to
        sys.stdout.flush()
    os._exit(128 + signum)


def from_the_start():
    """Both signals end the program in one line from now on: while it imports, after its work."""

    def leave(signum, frame):
        stopped(_signals.leaving or signum)

    open_streams()
    _signals.script = True
    for signum in _SIGNALS:
        signal.signal(signum, leave)


def open_streams():
    """Output that is closed (`2>&-`) goes nowhere; what an encoding lacks is shown as an escape."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # or the next file would be stderr
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        getattr(sys, name).reconfigure(errors="backslashreplace")


@contextmanager
def handled():
    """In this context both signals raise Interrupted, and the program ends within PATIENCE."""
    _signals.__init__()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # as Python wants it
    listener = threading.Thread(target=_listen, args=(ours,), daemon=True)
    with ours, theirs:
        listener.start()
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        previous = {signum: signal.signal(signum, _signals.receive) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(wakeup)
            theirs.close()
            listener.join()  # it has said what it has to say


def _listen(received):
    """Say what a signal does when it comes, and end the program if it has not ended in time.

    received: a socket with a byte for each signal; closed at its other end, this ends too
    """
    noted, ending, until = False, None, None
    while True:
        left = until and max(0, until - time.monotonic())
        if not select.select([received], [], [], left)[0]:
            os._exit(128 + ending)
        byte = received.recv(1)
        if not byte:
            return
        signum = byte[0]
        if signum not in _SIGNALS or (ending and several()):
            continue
        if ending:
            os._exit(128 + ending)  # no more patience
        if _signals.deferred and (not noted or several()):
            if not noted and os.environ.get("RANK", "0") == "0":  # one process for all
                name = signal.Signals(signum).name
                say(f"{name}: finishing this step, then saving; Ctrl-C again ends at once")
            noted = _signals.said = True
            continue
        _signals.said = False
        say_stopped(signum)
        ending, until = signum, time.monotonic() + PATIENCE


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
        end(_signals.pending)


def came_to_its_end(work):
    """Call `work()`; -> whether it came to its end.

    In `saving_first` a signal cuts it short, for work that can be thrown away and takes longer than
    a step; elsewhere it ends the program.
    """
    _signals.cuttable = True
    try:
        if _signals.pending is None:
            work()
        return _signals.pending is None
    except Interrupted:
        if _signals.leaving:
            raise
        return False
    finally:
        _signals.cuttable = False


def interruption():
    """The signal that a stage has to save its state for and stop at, or None."""
    return _signals.pending


def stop(bar, folder, signum):
    """End a stage whose state has just been saved."""
    bar.close()
    print(f"state saved in {folder}; go on with --resume", flush=True)
    end(signum)


def end(signum):
    """End the program by a signal; those that follow change nothing."""
    _signals.leaving = signum
    raise Interrupted(signum)
