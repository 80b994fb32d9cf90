"""One writer at a time: a lock that the kernel frees when its holder ends, however that is."""

import os
import socket
import sys
import time
from contextlib import contextmanager, suppress

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second writer out
    fcntl = None

NAME = "lock"


def take_lock(path):
    """-> a file descriptor that holds the lock, None where somebody else has it.

    The kernel gives it up with the last process that has it open: nothing is left behind by
    kill -9, and a step that outlives its study.py keeps it until it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                break
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass  # its last holder has just removed it, as one that put a new file there
        except OSError as error:
            print(f"{path}: this disk has no locks ({error.strerror}): nothing keeps a second "
                  "writer out", file=sys.stderr)  # fmt: skip
            break
        os.close(lock)
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    with suppress(OSError):  # a full disk: it holds without these words
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    return lock


@contextmanager
def only_writer(folder):
    """In this context no other process writes to a stage's folder, which need not be there yet and
    is not there afterwards if nothing was written.

    Raises ValueError, naming the process that does.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / NAME
    lock = take_lock(path)
    if lock is None:
        raise ValueError(_words(folder))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before others can have the lock: they would not see that it has gone
        os.close(lock)
        with suppress(OSError):  # not empty
            for path in new:
                path.rmdir()


def taken(folder):
    """What to say where another process is writing to a stage's folder, else None."""
    with suppress(OSError):  # no lock there, or a disk without locks
        lock = os.open(folder / NAME, os.O_RDONLY)
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _words(folder)
        finally:
            os.close(lock)
    return None


def _words(folder):
    holder = ""
    with suppress(OSError, ValueError):
        holder = (folder / NAME).read_text(encoding="utf-8")
    return (
        f"{folder} is being written by {holder or 'another process'}; wait for its end, stop it, "
        "or name another --run-dir"
    )
