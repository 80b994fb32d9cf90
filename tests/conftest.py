"""Finished runs of the four steps, made once and tiny; what changes a run works on a copy."""

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import main
import make_sample_data
import student_train

torch.set_num_threads(1)  # several threads only wait for each other in networks this small

TIMES = ("seconds", "images_per_second", "files", "sha256")  # hashes of what has times in it
STAGES = ("teacher", "samples", "student", "finetuned")
PROGRAMS = {
    "teacher": (main.main, ()),
    "samples": (make_sample_data.main, ()),
    "student": (student_train.main, ()),
    "finetuned": (main.main, ("--student-network", "True")),
}
CLASSES = ("ant", "bee", "crab", "dove")
SMALL = "--input-size 8 --labels-per-class 3 --val-per-class 2"
SHORT = "--epochs 1 --passes 1"
TRAINED = "--batch-size 4 --epochs 2 --passes 1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only the machine itself answers."""
    connect = socket.socket.connect

    def local(self, address):
        here = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not here:
            raise OSError(f"a test asks the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def words_of(flags):
    """Flags as a shell would split them: strings such as "--k 5 --p 2", and anything else whole."""
    words = [flag.split() if isinstance(flag, str) else [str(flag)] for flag in flags]
    return [word for some in words for word in some]


def run_step(stage, run, *flags):
    """Run a stage's script in this process; -> its exit code."""
    program, own = PROGRAMS[stage]
    try:
        program([*own, "--run-dir", str(run), "--device", "cpu", *words_of(flags)])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="session")
def step():
    return run_step


class Fork:
    """A copy of this process that runs one function, as a program without its imports' seconds.

    log: the file that takes what it prints; its errors go to the file `self.errors` beside it
    """

    def __init__(self, function, *args, log, environment=()):
        if not hasattr(os, "fork"):
            pytest.skip("needs os.fork")
        self.log, self.errors = log, log.with_suffix(".errors")
        for file in (self.log, self.errors):
            file.write_text("")
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.environ.update(environment)
                for number, path in (1, self.log), (2, self.errors):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
                function(*args)
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)  # without pytest's own end

    def wait(self):
        """-> its exit code, negative for a signal"""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait_for_output(self):
        while not self.log.stat().st_size:
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), self.errors.read_text()
            time.sleep(0.02)

    def kill(self, signum=signal.SIGKILL):
        os.kill(self.pid, signum)
        return self.wait()


def write_pictures(folder, count, seed, side=8):
    """Noise images <folder>/0.png, 1.png, ..., no two alike."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"{number}.png"), pixels)


@pytest.fixture(scope="session")
def pictures():
    return write_pictures


@pytest.fixture(scope="session")
def folder_data(tmp_path_factory):
    """A labelled set of PNGs: DATA/{train,test}/<class>/*."""
    data = tmp_path_factory.mktemp("folder-data")
    for number, name in enumerate(CLASSES):
        write_pictures(data / "train" / name, 14, seed=number)
        write_pictures(data / "test" / name, 6, seed=100 + number)
    return data


@pytest.fixture(scope="session")
def data_flags(folder_data):
    """The flags that say what the data are."""
    words = *f"--preset demo --dataset folder {SMALL}".split(), "--data-dir", str(folder_data)
    return *words, "--cache-dir", str(folder_data / "cache")


@pytest.fixture(scope="session")
def folder_flags(data_flags):
    """Step 1's flags for that set; the later steps take them over."""
    return (*data_flags, *f"{TRAINED} --learning-rate 0.05".split())


LATER = {
    "samples": ["--unlabeled", "heldout", "--k", "5", "--p", "2"],
    "student": f"{TRAINED} --learning-rate 0.05 --ema-decay 0.9".split(),
    "finetuned": f"{TRAINED} --learning-rate 0.005 --mixup 0.2".split(),
}


@pytest.fixture(scope="session")
def stage_flags(folder_flags):
    """stage -> the flags that `folder_run` was made with."""
    return {"teacher": folder_flags, **LATER}


def _finished(run, flags):
    for stage in STAGES:
        assert run_step(stage, run, *flags[stage]) == 0
    return run


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory, stage_flags):
    """The four stages on the PNGs: heldout is the pool."""
    return _finished(tmp_path_factory.mktemp("folder") / "run", stage_flags)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    return make_digits_run(tmp_path_factory.mktemp("digits"))


def make_digits_run(base, name="run", seed=0):
    """The four stages on the built-in digits: the demo preset, with fewer labels and pixels."""
    own = f"{SMALL} {SHORT} --learning-rate 0.05 --seed {seed}"
    first = (f"--preset demo {own}", "--data-dir", base / "data")
    later = {"samples": ["--k 5"], "student": [f"{SHORT} --batch-size 16 --learning-rate 0.05"]}
    later["finetuned"] = [f"{SHORT} --learning-rate 0.005"]  # or it would follow so few images
    return _finished(base / name, {"teacher": first, **later})


@pytest.fixture
def run_before(folder_run, tmp_path):
    """run_before(stage) -> a run folder that holds the stages before it only."""

    def copy(stage):
        run = tmp_path / "run"
        run.mkdir()
        for earlier in STAGES[: STAGES.index(stage)]:
            shutil.copytree(folder_run / earlier, run / earlier)
        return run

    return copy


@pytest.fixture
def run_copy(folder_run, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(folder_run, tmp_path / "run"))


def read_tree(folder):
    """Every name below a folder, and the bytes of its files; None where there is no such folder."""
    if not folder.exists():
        return None
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def snapshot():
    return read_tree


def without_times(result):
    return {
        name: without_times(x) if isinstance(x, dict) else x
        for name, x in result.items()
        if name not in TIMES
    }


def result_of(stage):
    return without_times(json.loads((stage / "result.json").read_text(encoding="utf-8")))


def metrics_of(stage):
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [without_times(json.loads(line)) for line in lines]


def assert_same_training(one, other):
    """Two stage folders hold the same weights, metrics and results, to the last bit."""
    first, second = (torch.load(x / "model.pt", weights_only=True) for x in (one, other))
    weights, again = first.pop("state_dict"), second.pop("state_dict")
    assert weights.keys() == again.keys()
    assert [name for name in weights if not torch.equal(weights[name], again[name])] == []
    assert first == second
    assert metrics_of(one) == metrics_of(other)
    assert result_of(one) == result_of(other)


@pytest.fixture
def refused(capsys):
    """refused(stage, run, *flags) -> the one line of the error, once it has changed nothing."""

    def refuse(stage, run, *flags):
        before = read_tree(run)
        capsys.readouterr()
        code = run_step(stage, run, *flags)
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.count("\n") == 1 and error.endswith("\n"), error
        assert read_tree(run) == before
        return error

    return refuse


@pytest.fixture
def quick(monkeypatch):
    """Leave out TensorBoard's pictures: drawing them takes longer than a tiny stage."""
    from torch.utils.tensorboard import SummaryWriter

    for name in ("add_figure", "add_pr_curve", "add_embedding"):
        monkeypatch.setattr(SummaryWriter, name, lambda *args, **kwargs: None)
