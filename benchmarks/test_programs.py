"""`make bench-check`: every benchmark runs, and measures what it says."""

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

import engine
from benchmarks import baselines, gpu_check, gpu_table, kills, pool, steps, throughput, timing
from data.augment import Normalise
from presets import Training

JOB = baselines.Job("resnet8", 16, 4, torch.device("cpu"), torch.bfloat16)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(baselines, "_BYTES", 0)


@pytest.fixture
def seen(monkeypatch):
    """The network that a way builds, and what goes into and out of its first convolution."""
    found = {}
    build = baselines.network

    def look(module, inputs, output):
        found["formats"] = [
            tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (*inputs, output)
        ]
        found["input"], found["dtype"] = inputs[0], output.dtype

    def network(*args):
        found["model"] = build(*args)
        found["model"].conv1.register_forward_hook(look)
        return found["model"]

    monkeypatch.setattr(baselines, "network", network)
    return found


@pytest.mark.parametrize("name", baselines.WAYS)
@pytest.mark.parametrize("task", baselines.TASKS)
def test_each_way_has_its_precision_format_and_workers_and_only_training_trains(task, name, seen):
    way = baselines.TASKS[task][name](JOB)
    with closing(way):  # its workers must not outlive a failure
        counted = next(way)
        assert counted > 0 and counted % JOB.batch_size == 0
        before = [parameter.detach().clone() for parameter in seen["model"].parameters()]
        assert next(way) > 0
        after = seen["model"].parameters()
        changed = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(changed) if task == "train" else not any(changed)
        assert seen["input"].shape == (JOB.batch_size, 3, JOB.input_size, JOB.input_size)
        own = {"float32": torch.float32, "predecessor": torch.float32}
        format_is_ours = name != "predecessor"
        assert seen["formats"] == [format_is_ours] * 2
        assert seen["dtype"] == own.get(name, torch.bfloat16)
        assert len(multiprocessing.active_children()) == baselines.workers(name)


def test_the_bare_step_is_the_step_of_the_training_loop():  # in float32, to compare closely
    images, labels = map(torch.from_numpy, baselines.examples(JOB))
    images, labels = images[: JOB.batch_size], labels[: JOB.batch_size]
    prepare = Normalise(baselines.MEAN, baselines.STD)
    recipe = Training(**vars(baselines._RECIPE) | {"batch_size": JOB.batch_size, "epochs": 3})
    ours = baselines.network(JOB)
    state = engine.TrainState(ours, recipe)
    next(engine.fit(state, images, labels, lambda batch, y: (prepare(batch), y)))
    bare = baselines.network(JOB).train()
    update = baselines.optimizer(bare)
    baselines.train_step(bare, update, prepare(images), labels, torch.float32)
    start = baselines.network(JOB).parameters()
    for one, other, was in zip(ours.parameters(), bare.parameters(), start, strict=True):
        torch.testing.assert_close(one - was, other - was, rtol=1e-3, atol=1e-6)


# --- timing -------------------------------------------------------------------------------------


def test_a_way_that_fails_leaves_the_others_their_rates(capsys):
    def broken():
        yield 1
        raise RuntimeError("out of memory\nand a long story")

    lanes = {"bad": broken(), "good": iter(lambda: 5, None)}
    turns = timing.turns(lanes, torch.device("cpu"), 3, 0)
    assert turns["bad"] is None and timing.median(turns["bad"]) is None
    assert timing.median(turns["good"]) > 0 and timing.ratio(turns["bad"], turns["good"]) is None
    assert capsys.readouterr().err == "bad: out of memory\n"


# --- the program --------------------------------------------------------------------------------


FLAGS = "--model resnet8 --input-size 8 --batch-size 4 --device cpu"


def test_a_quick_run_writes_its_rates_and_a_failed_run_costs_its_own_row(tmp_path, capsys):
    file = tmp_path / "table.json"
    quick = ["throughput.py", *FLAGS.split(), "--quick"]
    runs = [(["throughput.py", "--model", "resnet9"], 60), (quick, 120)]
    assert gpu_table.fill(file, runs) == 1
    unknown, done = json.loads(file.read_text())["rows"]
    assert "resnet9" in unknown["error"]
    result = done["result"]
    head = {"model": "resnet8", "input_size": 8, "batch_size": 4, "device": "cpu"}
    assert result.items() >= head.items()
    for task in ("train", "infer"):
        rates = [result[task][name] for name in throughput.COLUMNS]
        assert all(math.isfinite(rate) and rate > 0 for rate in rates)
        assert result[task]["bare"] == result[task][result["precision"]]


def test_a_table_goes_on_with_the_rows_that_had_no_time(tmp_path, monkeypatch):
    asked, file = [], tmp_path / "table.json"

    def row(command, limit, left):
        asked.append(command[0])
        return {"error": "no time left"} if left < limit else {"result": {}}

    monkeypatch.setattr(gpu_table, "_row", row)
    runs = [(["short.py"], 10), (["long.py"], 1000)]
    assert gpu_table.fill(file, runs, seconds=100) == 1 and gpu_table.unfinished(file)
    assert gpu_table.fill(file, runs, seconds=10_000, resume=True) == 0
    assert asked == ["short.py", "long.py", "long.py"] and not gpu_table.unfinished(file)


def test_the_gpu_check_goes_on_where_the_last_booking_stopped(tmp_path, capfd):
    log, note = tmp_path / "log", "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"
    # A step that saves its state when it is stopped, and is done the next time.
    step = tmp_path / "step.py"
    step.write_text(
        "import pathlib, signal, sys, time\n"
        "log = pathlib.Path(sys.argv[1])\n"
        "if 'S' not in log.read_text():\n"
        "    def save(*_):\n"
        "        log.write_text(log.read_text() + 'S')\n"
        "        sys.exit(143)\n"
        "    signal.signal(signal.SIGTERM, save)\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "log.write_text(log.read_text() + 'D')\n"
    )
    words = {"tests": ["-c", note, str(log), "T"], "runs": [], "seconds": 3}
    steps = [[str(step), str(log)]]
    assert gpu_check.check(tmp_path, steps, **words) == 75
    assert log.read_text() == "TS"
    assert gpu_check.check(tmp_path, steps, **words | {"seconds": 60}) == 0
    assert log.read_text() == "TSD"
    assert gpu_check.check(tmp_path, steps, **words) == 0  # nothing is left to do
    assert log.read_text() == "TSD"


def test_step_2_is_timed_on_the_whole_pool(tmp_path):
    flags = ["--model", "resnet8", "--input-size", "8", "--images", "40", "--batch-size", "16"]
    bench = pool.Bench(pool.parse([*flags, "--device", "cpu"]), tmp_path)
    inside = []
    bench.job.teacher.model.register_forward_hook(lambda *_: inside.append(1))
    bench.forward()
    assert len(inside) == 3
    began = time.perf_counter()
    assert 0 < bench.ours() < time.perf_counter() - began
    assert len(inside) == 6
    assert torch.load(tmp_path / "samples/resume.pt", weights_only=True)["scored"] == 40
    parts = bench.predecessor()
    assert set(parts) == {"read", "network", "rank"} and min(parts.values()) > 0
    assert len(inside) == 6  # it has a network of its own, float32
    assert next(bench.plain.parameters()).dtype == torch.float32


def test_the_start_of_a_step_is_timed_in_a_program_of_its_own(tmp_path):
    flags = ["--preset", "demo", "--run-dir", tmp_path / "run", "--data-dir", tmp_path / "data"]
    found = steps.run("main", *flags, "--input-size", "8", "--epochs", "1", "--passes", "1")
    assert 0 < found["imports"] < found["first"] < found["seconds"]
    assert found["peak"] > 100
    assert (tmp_path / "run/teacher/result.json").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_a_rename_strikes_right_before_it_or_right_after(tmp_path, after):
    def rename_three():
        kills.dying_at_rename(2, after)
        for name in "123":
            os.replace(tmp_path / name, tmp_path / f"new-{name}")

    for name in "123":
        (tmp_path / name).touch()
    process = multiprocessing.get_context("fork").Process(target=rename_three)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    renamed = {path.name for path in tmp_path.glob("new-*")}
    assert renamed == ({"new-1", "new-2"} if after else {"new-1"})


def test_the_benchmark_ranks_as_the_slow_ways_do_and_writes_its_figures(tmp_path):
    script = Path(__file__).with_name("ranking.py")
    flags = ("--quick", "--batch", "512", "--json", tmp_path / "figures.json")
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"device", "cpu", "threads", "python", "torch", "numpy"} < report.keys()
    assert [entry["images"] for entry in report["streams"]] == [20_000, 40_000]
    for entry in report["streams"]:
        assert entry["selected"] == entry["classes"] * entry["k"]
        assert entry["table_bytes"] == 16 * entry["selected"]
        assert entry["mib_before"] <= entry["mib_peak"] <= entry["mib_peak_with_selection"]
        assert entry["images_per_second"] > 0
    (best,), (merge,) = report["top_classes"], report["merges"]
    assert best["images_per_second"] > 0 and best["full_sort_images_per_second"] > 0
    assert merge["seconds_a_table"] > 0
    assert report["references"]["same_selection"] is True
    assert report["references"]["images_per_second"].keys() == {"ranking", "topk", "heaps", "sort"}
