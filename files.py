"""Files that appear whole or not at all, and the one sha256.  Nothing here imports torch.

A reader sees the old file or the new one, whatever happens while it is written.
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED = 3600  # seconds without a change after which another machine's process counts as dead


def sha256_of_file(path):
    """sha256 of a file's content, as 64 hexadecimal digits.  Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path):
    """An OSError inside, such as that of a full disk while something is written, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno:  # the system's own; any other has a text that says all
            error.filename = error.filename or str(path)
        raise


def unfinished(path):
    """A path beside `path` that nobody else uses: it says which process of which machine has it."""
    word = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return Path(path).with_name(f"{Path(path).name}.partial-{word}")


def _machine():
    """The machine's name; on Linux also its space of process numbers: a container has its own."""
    with suppress(OSError):
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


@contextmanager
def whole_file(path):
    """Gives a temporary path beside `path`; what is there at the end is moved to `path`.

        with whole_file("numbers.txt") as partial:
            partial.write_text("1 2 3")

    path: a file, or a folder that does not exist yet or is empty; in a folder that exists
    On any error, also Ctrl-C, the temporary file or folder is removed and `path` stays as it was.
    Several processes and threads may write the same path: the last one wins.
    """
    path = Path(path)
    partial = unfinished(path)
    try:
        with naming(path):
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
    be a pattern.

    What a living process of this machine has is never removed, however old it looks.
    """
    for partial in folder.glob(f"{name}.partial-*"):
        with suppress(OSError, ValueError):  # just finished, or just cleared by another process
            owner = partial.name.rpartition(".partial-")[2]
            machine, process, _ = owner.rsplit("-", 2)
            if machine == _machine():
                dead = not _lives(int(process))
            else:
                dead = time.time() - _last_change(partial) > ABANDONED
            if dead:
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
    return max(file.stat().st_mtime for file in (path, *path.rglob("*")))


def write_text(path, text):
    """Write a file of text, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, content):
    """Write a JSON file, indented, for people to read; it ends with a line break."""
    write_text(path, json.dumps(content, indent=2) + "\n")
