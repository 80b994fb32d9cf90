"""Two processes do what one does: torchrun with gloo on this machine."""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LATER, Fork, assert_same_training, result_of

import distributed
import main
import make_sample_data
import student_train
from data.augment import Augment, Normalise
from engine import TrainState, fit
from presets import Training

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(script, *flags, restarts=0):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*LAUNCH, f"--max-restarts={restarts}", "--", str(script), *map(str, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def by_two(folder, function, *args):
    """Call a function in two copies of this process that torchrun might have started; -> what the
    first of them printed.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    copies = []
    for rank in "01":
        environment = where | {"RANK": rank, "WORLD_SIZE": "2"}
        log = folder / f"rank-{rank}.log"
        copies.append(Fork(function, *args, log=log, environment=environment))
    codes = [copy.wait() for copy in copies]
    assert codes == [0, 0], [copy.errors.read_text() for copy in copies]
    return copies[0].log.read_text()


# --- joining --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "first", "WORLD_SIZE": "2"}],
    ids=str,
)
def test_an_environment_half_set_is_one_line(monkeypatch, refused, tmp_path, environment):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    error = refused("teacher", tmp_path / "run", "--preset demo")
    assert "RANK is" in error and "WORLD_SIZE is" in error and "torchrun" in error


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_whose_launcher_is_gone_gives_up(monkeypatch, refused, tmp_path, rank):
    """Rank 0 waits for the others, rank 1 for the first."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    for name, text in (environment | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(distributed, "JOINING", datetime.timedelta(seconds=1))
    error = refused("teacher", tmp_path / "run", "--preset demo")
    assert f"process {rank} of 2 has not found all others" in error


# --- engine -------------------------------------------------------------------------------------


class Plain(torch.nn.Module):
    """A network without batch statistics."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)).float())


def losses():
    """The loss and top-1 of three epochs on 27 images in batches of 7 (odd halves: 4 and 3)."""
    torch.manual_seed(0)
    model = Plain()
    images = torch.randint(0, 256, (27, 8, 8, 3), dtype=torch.uint8)
    labels = torch.arange(27) % 4
    recipe = Training(epochs=3, batch_size=7, learning_rate=0.05, ema_decay=0.9)
    augment = Augment(Normalise([0.5] * 3, [0.25] * 3), "none", 4)
    state, epochs = TrainState(model, recipe, seed=5), []
    for _ in fit(state, images, labels, augment):
        if state.batch == 0:
            epochs.append(state.metrics())
    return [(epoch["train_loss"], epoch["train_top1"]) for epoch in epochs]


def print_losses():
    distributed.start()
    curve = losses()
    if distributed.is_first():
        print(json.dumps([distributed.size(), curve]))


def test_two_half_batches_give_the_loss_curve_of_one_whole_batch(tmp_path):
    size, curve = json.loads(by_two(tmp_path, print_losses))
    assert size == 2
    assert np.allclose(curve, losses(), rtol=1e-5)


def test_one_process_needs_no_group():
    assert (distributed.rank(), distributed.size(), distributed.largest(3)) == (0, 1, 3)
    assert distributed.share(1000, 512) == (0, 1000)


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 5000])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_whole_chunks_and_cover_everything_once(monkeypatch, count, size):
    monkeypatch.setattr(distributed, "size", lambda: size)
    ends = []
    for number in range(size):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        ends.append(distributed.share(count, 512))
    assert [first for first, _ in ends] == [0, *(last for _, last in ends[:-1])]
    assert ends[-1][1] == count
    assert all(first % 512 == 0 or first == count for first, _ in ends)


def test_torchrun_leaves_the_flags_behind_the_dashes_alone():
    """Without them it takes --p for a short form of its own --print-completion."""
    process = launch(ROOT / "make_sample_data.py", "--p", "0")
    assert "argument --p: must be 1 or more" in process.communicate()[1]


# --- the four steps -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(folder_run, folder_flags, tmp_path_factory):
    """The four stages, each by two processes, step 2 with the teacher of one process as well."""
    base = tmp_path_factory.mktemp("two")
    where = ["--run-dir", str(base / "run"), "--device", "cpu"]
    chunk = ["--batch-size", "8"]  # five chunks for two processes
    lent = ["--run-dir", str(base / "lent"), "--teacher", str(folder_run / "teacher"), *chunk]
    batch = ["--batch-size", "6"]  # two images at least for each process, also of an odd batch
    steps = [
        (main, [*folder_flags, *where, *batch]),
        (make_sample_data, [*LATER["samples"], *where]),
        (student_train, [*LATER["student"], *where, *batch]),
        (main, ["--student-network", "True", *LATER["finetuned"], *where, *batch]),
        (make_sample_data, [*LATER["samples"], "--device", "cpu", *lent]),
    ]
    return base, by_two(base, lambda: [program.main(flags) for program, flags in steps])


def test_the_four_steps_run_and_one_process_writes(two_processes, folder_run):
    base, out = two_processes
    assert out.count("step 1: the teacher is trained") == 1
    for stage in ("teacher", "samples", "student", "finetuned"):
        folder = base / "run" / stage
        assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {
            path.name for path in (folder_run / stage).iterdir() if "tfevents" not in path.name
        }
        config = json.loads((folder / "config.json").read_text())
        assert config["processes"] == 2
        if stage != "samples":
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    alone, result = (
        json.loads((run / "teacher/result.json").read_text()) for run in (folder_run, base / "run")
    )
    assert result["images_processed"] == alone["images_processed"]


def test_two_processes_select_what_one_selects_byte_for_byte(
    two_processes, folder_run, step, tmp_path
):
    base, _ = two_processes
    flags = (*LATER["samples"], "--teacher", folder_run / "teacher", "--batch-size", "8")
    torch.set_num_threads(2)  # where each of the two had one
    try:
        assert step("samples", tmp_path, *flags) == 0
    finally:
        torch.set_num_threads(1)
    for name in ("selection.csv", "scores.npz", "skipped.csv"):
        ours, theirs = tmp_path / "samples" / name, base / "lent" / "samples" / name
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert result_of(tmp_path / "samples") == result_of(base / "lent" / "samples")


STEPS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import main
for flags in json.loads(sys.argv[2]):
    main.main(flags)
"""


def test_two_stopped_or_killed_processes_go_on_together_to_the_same_bits(tmp_path, folder_flags):
    """The signal reaches them at different moments, and they have to stop at the same step."""
    flags = [*folder_flags, "--device", "cpu", "--batch-size", "6", "--epochs", "40"]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    metrics = stopped / "teacher/metrics.jsonl"
    process = launch(ROOT / "main.py", *flags, "--run-dir", stopped)
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, process)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=200)
    assert process.returncode != 0 and "go on with --resume" in out, error
    assert [line for line in error.splitlines() if line.startswith("main.py")] == [
        "main.py (process 0): SIGTERM: finishing this step, then saving; Ctrl-C again ends at once"
    ]
    assert (stopped / "teacher/resume.pt").exists()
    assert not (stopped / "teacher/result.json").exists()

    (tmp_path / "steps.py").write_text(STEPS)
    steps = [[*flags, "--run-dir", str(stopped), "--resume"], [*flags, "--run-dir", str(whole)]]
    epochs = metrics.read_text().count("\n")
    process = launch(tmp_path / "steps.py", ROOT, json.dumps(steps), restarts=1)
    wait_for(lambda: metrics.read_text().count("\n") >= epochs + 3, process)
    _, first, *_ = (stopped / "teacher/lock").read_text().split()
    os.kill(int(first), signal.SIGKILL)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert "(process 1): another process has failed or was killed" in error
    assert_same_training(stopped / "teacher", whole / "teacher")


def wait_for(condition, process, seconds=200):
    """Return when the condition holds; fail when the process ends or the time is over first."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)
