"""A stage's folder: its states, its files and their hashes, one writer at a time.

A folder is empty, unfinished (config.json is there) or finished (result.json, written last).
result.json has the sha256 of every other file, so that whoever reads one notices a flipped bit, a
cut or a file of another run; both records end with the sha256 of their own fields.
Nothing here imports torch.
"""

import functools
import hashlib
import json
import os
import shlex
import shutil
import socket
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from files import sha256_of_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

# stage -> the file that the next stage is made from, and the command that runs the stage
STAGES = {
    "teacher": ("model.pt", "python main.py"),
    "samples": ("selection.csv", "python make_sample_data.py"),
    "student": ("model.pt", "python student_train.py"),
    "finetuned": ("model.pt", "python main.py --student-network True"),
}
# stage -> the flag that names what it is made from, where that is not in its own run folder
PARENT_FLAGS = {"samples": "teacher", "student": "selection", "finetuned": "student"}
# Files of a finished stage whose hashes result.json has.
PRODUCTS = (
    "config.json",
    "members.csv",
    "metrics.jsonl",
    "model.pt",
    "predictions.npz",
    "scores.npz",
)
PRODUCTS += ("selection.csv", "skipped.csv")
_ARTEFACTS = (
    "result.json",
    *PRODUCTS,
    "shards/*.parquet",
    "projector_config.pbtxt",
    "events.out.tfevents.*",
)
# Files of an unfinished stage, some of them one a process, and leftovers of a killed one.
WORKING_FILES = ("resume*.pt", "shards/*.json", "scores-*.bin", "*.partial-*")
LOCK = "lock"


def state_of(folder):
    """ "empty", "unfinished" or "finished"."""
    if (folder / "result.json").exists():
        return "finished"
    return "unfinished" if (folder / "config.json").exists() else "empty"


def next_action(folder, resume, overwrite):
    """What a stage is to do with its folder: "start", "resume" or "nothing".  Changes nothing.

    Raises ValueError for work that is already there, naming --resume and --overwrite.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite contradict each other; give one of them")
    state = state_of(folder)
    if state == "empty" or overwrite:
        return "start"
    if resume:
        return "nothing" if state == "finished" else "resume"
    raise ValueError(
        f"{folder} is {state}: add --resume to "
        f"{'keep it as it is' if state == 'finished' else 'go on'} or --overwrite to start anew"
    )


def left_behind(folder):
    """Whether a finished stage has files that a process killed at its very end did not remove."""
    paths = (path for pattern in (LOCK, *WORKING_FILES) for path in folder.glob(pattern))
    return any(path.is_file() for path in paths)


def clear(folder):
    """Remove an earlier run: result.json first, so that what is left never looks finished."""
    remove(folder, _ARTEFACTS + WORKING_FILES)
    shutil.rmtree(folder / "00000", ignore_errors=True)  # the embedding projector's


def remove(folder, patterns):
    """Remove the files of a folder that match one of the patterns; its folders stay, since one
    may be an export that another program is writing.
    """
    for pattern in patterns:
        for path in folder.glob(pattern):
            if not path.is_dir():
                path.unlink(missing_ok=True)


def made_from(folder, config):
    """The file that the stage in `folder` was made from."""
    return (folder / config["parent"]["path"]).resolve()


def command(folder, *more):
    """The command that runs the stage in `folder`, to be pasted into a shell; more: flags."""
    words = [*STAGES[folder.name][1].split(), "--run-dir", str(folder.parent)]
    with suppress(OSError, ValueError):
        config = read_record(folder / "config.json")
        if parent := config["parent"]:
            parents = [parent, *config.get("more_parents", ())]
            paths = [(folder / entry["path"]).resolve() for entry in parents]
            if len(paths) > 1 or paths[0].parents[1] != folder.parent.resolve():
                words += [f"--{PARENT_FLAGS[folder.name]}", *map(str, paths)]
    return shlex.join([*words, *more])


# --- what its files must be ---------------------------------------------------------------------


class Record(dict):
    """An object in a config.json or result.json.  A field that is missing is a ValueError."""

    def __init__(self, path, content):
        super().__init__(content)
        self._path = path

    def __missing__(self, name):
        raise _damaged(self._path, f"it lacks {name}")


def sealed(content):
    """The content of a config.json or result.json with the sha256 of its fields as the last one."""
    return {**content, "sha256": digest(content)}


def digest(content):
    """sha256 of a JSON object."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_record(path):
    """-> Record: the content of a config.json or result.json, without its seal.

    Raises FileNotFoundError; ValueError for any content but an object with its seal.  A stage from
    before there were seals is read with one line on stderr.
    """
    path = Path(path)
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), object_hook=functools.partial(Record, path)
        )
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    if not isinstance(content, Record):
        raise _damaged(path, f"its content is {json.dumps(content)[:40]}")
    if content["stage"] not in list(STAGES):
        raise _damaged(path, f"its stage is {json.dumps(content['stage'])[:40]}")
    seal = content.pop("sha256", None)
    if seal is None and path.name == "result.json":
        if "files" in content:
            raise _damaged(path, "it lacks sha256")
        _ = content["dataset"], content["model"], content["seed"]  # raises ValueError
        _say_unchecked(path.parent.resolve())
    if seal not in (None, digest(content)):
        raise _damaged(path, "its fields do not have the sha256 at its end")
    return content


def read_records(folder):
    """-> Records: config.json and result.json of a finished stage, once both are as written.

    Raises FileNotFoundError, ValueError.
    """
    result = read_record(folder / "result.json")
    check_file(folder / "config.json")
    return read_record(folder / "config.json"), result


def hashes_of(folder):
    """{name: sha256} of the files that a stage has written so far, result.json left out."""
    return {p.name: sha256_of_file(p) for name in PRODUCTS for p in sorted(folder.glob(name))}


def check_file(path):
    """-> the sha256 of a file, once it is the one that its stage wrote.

    Raises OSError, or ValueError for another one.  Files outside finished stages are not checked.
    """
    path, sha256 = Path(path), sha256_of_file(path)
    expected = _expected(path.parent).get(path.name, sha256)
    if sha256 != expected:
        raise ValueError(
            f"{path} is not what {_step(path.parent)} wrote (sha256 {sha256[:8]}.. instead of "
            f"{str(expected)[:8]}..); put the right file back, or {_again(path.parent)}"
        )
    return sha256


def check_stage(folder):
    """Check every file of a finished stage; one that was deleted is missed by whoever needs it.

    Raises ValueError.
    """
    read_records(folder)
    for name in _expected(folder):
        if (folder / name).exists():
            check_file(folder / name)


def _expected(folder):
    """{name: sha256} of a finished stage's files; {} where nobody says."""
    if not all((folder / name).exists() for name in ("config.json", "result.json")):
        return {}
    return read_record(folder / "result.json").get("files", {})


@functools.cache
def _say_unchecked(folder):
    print(
        f"{folder} is from before result.json had hashes: its files are read unchecked",
        file=sys.stderr,
    )


def _damaged(path, why):
    return ValueError(f"{path} is damaged ({why}); {_again(path.parent)}")


def _step(folder):
    """Which step writes a stage's folder."""
    return f"step {[*STAGES].index(folder.name) + 1}" if folder.name in STAGES else "its step"


def _again(folder):
    if folder.name not in STAGES:
        return "run its step again"
    words = f"{STAGES[folder.name][1]} --run-dir {shlex.quote(str(folder.parent))} --overwrite"
    return f"run {_step(folder)} again with `{words}`"


# --- one writer at a time -----------------------------------------------------------------------


def take_lock(path):
    """-> a file descriptor that holds the lock, None where somebody else has it.

    The kernel releases it when the last process that has it open ends: kill -9 leaves nothing
    behind, and a step that outlives its study.py keeps it until it is done.
    Raises ValueError for a link, a pipe or anything else that is no file of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            lock = os.open(path, flags, 0o644)
        except OSError as error:
            if os.path.lexists(path) and not _is_own_file(os.lstat(path)):
                raise ValueError(f"{path} is no file that a step has made; remove it") from error
            raise
        try:
            if not _is_own_file(os.fstat(lock)):
                os.close(lock)
                raise ValueError(f"{path} is no file that a step has made; remove it")
            _lock(lock)
            if is_at(lock, path):
                break
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError as error:
            print(
                f"{path}: this disk has no locks ({error.strerror}): nothing keeps a second "
                "writer out",
                file=sys.stderr,
            )
            break
        os.close(lock)  # its holder deleted the file between open and flock: once more
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    with suppress(OSError):  # a full disk: it holds without these words
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
    return lock


def _lock(file):
    """Lock an open file, or raise BlockingIOError where somebody else has it locked."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(file, 2**30, os.SEEK_SET)  # Windows lets nobody read what is locked: far from the text
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError from error
    os.lseek(file, 0, os.SEEK_SET)


def _is_own_file(status):
    return stat.S_ISREG(status.st_mode) and status.st_nlink < 2


def is_at(lock, path):
    """Whether the open file `lock` is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(path))
    except FileNotFoundError:
        return False


@contextmanager
def only_writer(folder):
    """In this context no other process writes to a stage's folder: -> its lock, see `is_at`.

    The folder need not be there yet, and is removed afterwards if nothing was written.
    Raises ValueError, naming the process that writes to it.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    lock = take_lock(path)
    if lock is None:
        holder = ""
        with suppress(OSError, ValueError):
            holder = path.read_text(encoding="utf-8")
        raise ValueError(
            f"{folder} is being written by {holder or 'another process'}; wait for its end, stop "
            "it, or name another --run-dir"
        )
    try:
        yield lock
    finally:
        with suppress(OSError):
            if is_at(lock, path):
                path.unlink()  # before others can have the lock: they notice that it has gone
        os.close(lock)
        with suppress(OSError):  # not empty
            for path in new:
                path.rmdir()
