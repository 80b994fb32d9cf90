"""What makes a function a program: exit codes, errors in one line, Ctrl-C and SIGTERM, its output.

0 done; 2 a bad flag or a missing input, nothing changed; 1 a failure while running, finished work
kept; 130 Ctrl-C and 143 SIGTERM, state saved.  An error is one line on stderr; `python -X dev
main.py` adds the traceback.

Both signals end a program at once, or wait while a stage saves its state.  Python runs a signal's
handler between two of its own instructions: not while a step computes, nor while a process waits
for another.  So a thread listens too.  It says at once what happens, and ends a program that does
not come to an end itself.  Nothing here imports torch: `begin` runs before it is imported.
"""

import errno
import functools
import os
import re
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
# errno values of a full, read-only or failing disk.
_FULL = {getattr(errno, name, 0) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")}
# What torch and Python say where memory or threads are short.
_SCARCE = re.compile("can't allocate memory|not enough memory|can't start new thread|out of memory")
_UNREADABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Failure(Exception):
    """A stage could not go on; what it had finished is kept."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


# --- the program --------------------------------------------------------------------------------


def begin(parse, goes_on=True):
    """What a script does before the seconds that the import of torch takes: --help and wrong flags
    end it here, and from now on a signal ends it in one line.

    parse: argv -> arguments;  goes_on: whether the work goes on when nobody reads the output
    """
    if sys.getfilesystemencoding() != "utf-8":  # LC_ALL=C: names would not be what they are
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # closed output (`2>&-`) goes nowhere
        pass
    os.close(number)
    sys.stdout, sys.stderr = Output(sys.stdout, 1, goes_on), Output(sys.stderr, 2, goes_on)
    sys.excepthook = _while_importing

    def leave(signum, frame):
        stopped(_signals.leaving or signum)

    _signals.script = True
    for signum in _SIGNALS:
        signal.signal(signum, leave)
    parse(None)
    tell("importing torch")


def _while_importing(kind, error, trace):
    if sys.flags.dev_mode or not isinstance(error, (ImportError, MemoryError, OSError)):
        sys.__excepthook__(kind, error, trace)
    else:
        say(" ".join(str(too_little(error) if kind is MemoryError else error).split()))


class Output:
    """A stream for people: what its encoding lacks, and control characters, are escapes.

    Where nobody reads it any more (`| head`) it goes nowhere, or raises BrokenPipeError.
    """

    def __init__(self, stream, number, goes_on):
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115 - as long as the program
        self._stream.reconfigure(errors="backslashreplace")
        self._number, self._goes_on = number, goes_on

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        if self._number == 1:  # stderr has progress bars, and `say`
            text = text[: text.startswith("\r")] + printable(text.removeprefix("\r"))
        return self._try(lambda: self._stream.write(text))

    def flush(self):
        self._try(self._stream.flush)

    def _try(self, work):
        try:
            return work()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._number)  # Python flushes it when it ends
            os.close(nowhere)
            if not self._goes_on:
                raise


def printable(text):
    """`text` with escapes (JSON's) for what would command a terminal."""
    return _UNREADABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def tell(text):
    """A line in a terminal on what takes its time."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"{text} ...", file=sys.stderr, flush=True)


def program(main):
    """Make `main(argv=None)` a program: it raises SystemExit with the code of its error."""
    import distributed

    @functools.wraps(main)
    def wrapper(argv=None):
        try:
            with handled():
                main(argv)
                distributed.wait()  # the first process writes the last files
                sys.stdout.flush()
        except BrokenPipeError:
            raise SystemExit(141) from None  # as by SIGPIPE
        except (Failure, FloatingPointError) as error:
            _exit(1, error)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or _SCARCE.search(str(error)):
                _exit(1, too_little(error))
            if distributed.size() == 1:
                raise
            reason = f"{error}".partition("\n")[0]
            ended = f"another process has failed or was killed ({reason}); go on with --resume"
            _exit(1, Failure(ended))
        except (ValueError, OSError) as error:
            _exit(1 if getattr(error, "errno", None) in _FULL else 2, error)
        except Interrupted as interrupted:
            stopped(interrupted.signum)

    return wrapper


@contextmanager
def enough_memory(batch_size, follows=""):
    """In this context torch's lack of memory is a Failure that names the batch size to try.

    follows: what changes with it
    """
    try:
        yield
    except RuntimeError as error:
        if not _SCARCE.search(str(error)):
            raise
        raise Failure(
            f"too little memory for batches of {batch_size} images ({str(error)[:200]}); try "
            f"--batch-size {max(1, batch_size // 2)} --overwrite{follows}"
        ) from error


def too_little(error):
    """The Failure of a machine without memory or threads left."""
    return Failure(
        f"this machine has too little memory, or too few threads ({str(error)[:200]}); end other "
        f"programs, or lower --batch-size or --input-size"
    )


def _exit(code, error):
    say(" ".join(str(error).split()))
    if sys.flags.dev_mode and isinstance(error, Exception):
        raise error
    raise SystemExit(code)


@contextmanager
def as_failures():
    """From here on an error of the disk or of the data is a Failure (exit code 1)."""
    try:
        yield
    except BrokenPipeError:  # of the output, see `program`
        raise
    except (OSError, ValueError) as error:
        raise Failure(str(error)) from error


def several():
    """Whether torchrun has started this process beside others."""
    return (os.environ.get("WORLD_SIZE") or "1") != "1"


def say(text):
    """One line on stderr that begins with the script and, under torchrun, the process."""
    script = Path(sys.argv[0])
    who = script.parent.name if script.name == "__main__.py" else script.name
    who += f" (process {os.environ.get('RANK', '?')})" if several() else ""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a progress bar may stand there
    with suppress(BrokenPipeError):
        print(f"{clear}{who}: {printable(text)}", file=sys.stderr, flush=True)


# --- signals ------------------------------------------------------------------------------------


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


def _say_stopped(signum):
    if not _signals.said:
        _signals.said = True
        say(f"stopped by {signal.Signals(signum).name}")


def stopped(signum):
    """End the program. A script skips Python's own shutdown: taking torch down would cost more than
    a second of the processor, ten times that beside other work.
    """
    _say_stopped(signum)
    if not _signals.script:
        raise SystemExit(128 + signum)
    with suppress(OSError, RuntimeError):  # nobody reads it; it is being written to
        sys.stdout.flush()
    os._exit(128 + signum)


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
        _say_stopped(signum)
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
