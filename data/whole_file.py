"""Files that appear whole or not at all: a reader sees the old file or the new one."""

import json
import os
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import distributed

ABANDONED = 3600  # seconds without a change after which another machine's process counts as dead


@contextmanager
def named(path):
    """An OSError inside, such as that of a full disk while something is written, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno:  # the system's own; any other has a text that says all
            error.filename = error.filename or str(path)
        raise


@contextmanager
def whole_file(path):
    """Gives a temporary path beside `path`; what is there at the end is moved to `path`.

        with whole_file("numbers.txt") as partial:
            partial.write_text("1 2 3")

    path: a file, or a folder that does not exist yet or is empty; in a folder that exists
    On any error, also Ctrl-C, the temporary file or folder is removed and `path` stays as it was.
    The temporary name is the process's own, so that several processes may write the same path.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial-{distributed.unique_name()}")
    try:
        with named(path):
            yield partial
        if partial.is_dir() and path.is_dir():
            path.rmdir()  # Windows renames no folder onto another
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise


def remove(path):
    """Remove a file or a folder with all it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def clear_abandoned(folder, name="*"):
    """Remove what killed processes have left of unfinished files or folders of this name, which may
    be a pattern; others may be writing there.

    Whether a process of this machine lives is known at once.
    """
    for partial in folder.glob(f"{name}.partial-*"):
        with suppress(OSError, ValueError):  # just finished, or just cleared by another process
            machine, _, process = partial.name.rpartition(".partial-")[2].rpartition("-")
            dead = machine == socket.gethostname() and not _lives(int(process))
            if dead or time.time() - _last_change(partial) > ABANDONED:
                remove(partial)


def _lives(process):
    if os.name == "nt":  # where os.kill ends a process, whatever the signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _last_change(path):
    return max(one.stat().st_mtime for one in (path, *path.rglob("*")))


def write_text(path, text):
    """Write a file of text, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, content):
    """Write a JSON file, indented, for people to read; it ends with a line break."""
    write_text(path, json.dumps(content, indent=2) + "\n")
