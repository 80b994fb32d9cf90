"""One writer to a stage's folder at a time; a dead one is in nobody's way."""

import os
import shutil
import socket
import time
from contextlib import suppress

import pytest
from conftest import Fork

from stages import program, training
from stages.folder import LOCK, fcntl, only_writer, take_lock

pytestmark = pytest.mark.skipif(fcntl is None, reason="no locks on this system")


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to tmp_path/run/teacher."""

    def hold():
        lock = take_lock(tmp_path / "run/teacher" / LOCK)
        print("held")
        time.sleep(60 if lock else 0)

    process = Fork(hold, log=tmp_path / "holder.log")
    process.wait_for_output()
    yield process
    with suppress(ProcessLookupError):  # a test may have killed it
        process.kill()


def names(error, holder):
    who = f"process {holder.pid} on {socket.gethostname()} since {time.strftime('%Y-')}"
    return error.count("\n") == 1 and who in error


@pytest.mark.parametrize("flags", ["", "--resume", "--overwrite"])
def test_a_second_writer_is_refused_and_told_of_the_first(
    holder, tmp_path, refused, folder_flags, flags
):
    assert names(refused("teacher", tmp_path / "run", *folder_flags, flags), holder)


@pytest.mark.usefixtures("quick")
def test_the_lock_of_a_killed_process_blocks_nobody(holder, tmp_path, step, folder_flags):
    holder.kill()
    run = tmp_path / "run"
    assert (run / "teacher" / LOCK).exists()
    assert step("teacher", run, *folder_flags, "--epochs 1") == 0
    assert not (run / "teacher" / LOCK).exists()


def test_a_folder_that_nothing_was_written_to_is_not_left_behind(tmp_path):
    folder = tmp_path / "new" / "run" / "teacher"
    with only_writer(folder):
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []
    with only_writer(folder):
        (folder / "config.json").touch()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_lock_file_that_its_holder_removes_just_then_locks_nobody_in(tmp_path, monkeypatch):
    """Opened before its holder has removed it, locked after: the next one would make a new file."""
    path, flock = tmp_path / LOCK, fcntl.flock

    def late(*arguments):
        monkeypatch.undo()
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = take_lock(path)
    assert take_lock(path) is None
    os.close(lock)


@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "pipe", "folder"])
def test_what_is_no_lock_file_is_neither_followed_nor_overwritten(
    tmp_path, refused, folder_flags, kind
):
    precious, path = tmp_path / "precious", tmp_path / "run/teacher" / LOCK
    path.parent.mkdir(parents=True)
    precious.write_text("keep me")
    make = {
        "link": lambda: path.symlink_to(precious),
        "second name": lambda: os.link(precious, path),
    }
    make |= {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    make["dangling link"] = lambda: path.symlink_to(tmp_path / "nothing")
    make[kind]()
    error = refused("teacher", tmp_path / "run", *folder_flags)
    assert f"{path} is no file that a step has made" in error
    assert precious.read_text() == "keep me" and not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("stage", ["teacher", "samples"])
def test_a_stage_whose_folder_was_removed_writes_nothing_more(
    run_before, stage_flags, step, capsys, monkeypatch, stage, again
):
    """`rm -rf RUN` while the stage runs, and perhaps the same step once more."""
    run = run_before(stage)
    folder = run / stage

    def removed():
        shutil.rmtree(folder, ignore_errors=True)
        if again:
            folder.mkdir()
            (folder / LOCK).write_text("somebody else's")

    monkeypatch.setattr(training, "LOOK_SECONDS", -1)
    monkeypatch.setattr(program, "interruption", removed)
    assert step(stage, run, *stage_flags[stage]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{folder} was removed or replaced" in error
    assert [path.name for path in run.glob(f"{stage}/*")] == ([LOCK] if again else [])


def test_a_disk_without_locks_is_named_and_stops_nobody(tmp_path, monkeypatch, capsys):
    def none(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with only_writer(tmp_path / "teacher"):
        error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path) in error and "not supported" in error
