"""Ctrl-C and SIGTERM outside of the steps of a training, which tests/test_resume.py has."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import assert_same_training

from stages import training

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such signals")


def start(*words, path=ROOT):
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "here\n", process.communicate()
    return process


@pytest.mark.parametrize("script", ["main.py", "study.py"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_program_that_imports_ends_in_one_line(tmp_path, script, signum, code):
    (tmp_path / "torch.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    process = start(ROOT / script, path=tmp_path)
    process.send_signal(signum)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (code, f"{script}: stopped by {signum.name}\n")


# A mutex that its holder locks again: no signal gets a thread out of that, nor Python's handler in.
# (Signals that come before it is locked again are handled as a program does.)
STUCK = """
import ctypes
from stages.program import Interrupted, handled, saving_first, stopped
mutex, lock = ctypes.create_string_buffer(128), ctypes.CDLL(None).pthread_mutex_lock
try:
    with handled(), saving_first():
        lock(mutex)
        print("here", flush=True)
        lock(mutex)
except Interrupted as interrupted:
    stopped(interrupted.signum)
"""


def test_a_step_without_end_is_announced_at_once_and_a_second_signal_ends_it():
    process = start("-c", STUCK)
    process.send_signal(signal.SIGTERM)
    line = process.stderr.readline()
    assert "SIGTERM: finishing this step, then saving; Ctrl-C again ends at once" in line
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "stopped by SIGINT" in process.stderr.readline()
    assert process.wait(timeout=20) == 130
    assert process.communicate() == ("", "")


@pytest.mark.usefixtures("quick")
def test_an_evaluation_is_cut_short_and_made_again_by_resume(
    folder_run, tmp_path, stage_flags, step, monkeypatch, capsys
):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it goes on")
        yield

    monkeypatch.setattr(training, "predict", interrupted)
    assert step("teacher", tmp_path, *stage_flags["teacher"]) == 143
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "teacher/resume.pt").exists()
    assert not (tmp_path / "teacher/metrics.jsonl").exists()  # of the first epoch
    monkeypatch.undo()
    assert step("teacher", tmp_path, *stage_flags["teacher"], "--resume") == 0
    assert_same_training(tmp_path / "teacher", folder_run / "teacher")
