"""Files that appear whole or not at all: a reader sees the old file or the new one."""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import distributed


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


def write_text(path, text):
    """Write a file of text, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, content):
    """Write a JSON file, indented, for people to read; it ends with a line break."""
    write_text(path, json.dumps(content, indent=2) + "\n")
