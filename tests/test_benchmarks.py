"""The benchmark measures what it says: the ways differ as described, the same step is timed."""

import json
import math
import multiprocessing
import time
from contextlib import closing

import pytest
import torch

import engine
from benchmarks import baselines, gpu_table, pool, resources, steps, throughput, timing
from data import Normalise
from presets import Training

JOB = baselines.Job("resnet8", 16, 4, torch.device("cpu"))


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
    way = baselines.TASKS[task][baselines.WAYS.index(name)](JOB)
    with closing(way):  # its workers must not outlive a failure
        counted = next(way)
        assert counted > 0 and counted % JOB.batch_size == 0
        before = [parameter.detach().clone() for parameter in seen["model"].parameters()]
        assert next(way) > 0
        after = seen["model"].parameters()
        changed = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert all(changed) if task == "train" else not any(changed)
        assert seen["input"].shape == (JOB.batch_size, 3, JOB.input_size, JOB.input_size)
        if name == "predecessor":
            assert (seen["formats"], seen["dtype"]) == ([False, False], torch.float32)
        else:
            assert (seen["formats"], seen["dtype"]) == (
                [True, True],
                JOB.precision or torch.float32,
            )
        assert len(multiprocessing.active_children()) == baselines.workers(name)


def test_only_bare_sees_the_same_batch_again(seen):
    for name, again in (("bare", True), ("ours", False), ("predecessor", False)):
        way = baselines.TASKS["infer"][baselines.WAYS.index(name)](JOB)
        next(way)
        first = seen["input"].clone()
        next(way)
        assert torch.equal(first, seen["input"]) == again, name
        way.close()


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
    baselines.train_step(bare, update, prepare(images), labels, None)
    start = baselines.network(JOB).parameters()
    for one, other, was in zip(ours.parameters(), bare.parameters(), start, strict=True):
        torch.testing.assert_close(one - was, other - was, rtol=1e-3, atol=1e-6)


# --- timing -------------------------------------------------------------------------------------


def test_ways_take_turns_and_workers_stock_is_used_up_unmeasured():
    log = []

    def way(name):
        while True:
            log.append(name)
            yield 7

    lanes = {name: way(name) for name in "abc"}
    rates = timing.rates(lanes, torch.device("cpu"), 2, 0, prefetched={"b": 2})
    assert "".join(log) == "abbbc" * 3  # the first round warms up
    assert all(rate > 0 for rate in rates.values())


def test_a_way_that_fails_leaves_the_others_their_rates(capsys):
    def broken():
        yield 1
        raise RuntimeError("out of memory\nand a long story")

    lanes = {"bad": broken(), "good": iter(lambda: 5, None)}
    rates = timing.rates(lanes, torch.device("cpu"), 3, 0)
    assert rates["bad"] is None and rates["good"] > 0
    assert capsys.readouterr().err == "bad: out of memory\n"


def test_busy_time_is_the_union_of_the_kernels():
    assert resources.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert resources.covered([]) == 0


# --- the program --------------------------------------------------------------------------------


def test_the_whole_preset_is_estimated_from_the_rates_of_its_network():
    result = {"model": "resnet50", "input_size": 128, "train": {"ours": 16_050.0}}
    rows = [{"error": "no time left"}, {"result": result | {"infer": {"ours": 1_500.0}}}]
    # (60 + 30) epochs of 45,000 and 120 of 100,000 images; 150,000 scored
    assert gpu_table.cifar100_minutes(rows) == pytest.approx((1000 + 100) / 60)
    assert gpu_table.cifar100_minutes(rows[:1]) is None


@pytest.mark.slow
def test_a_quick_run_writes_its_rates_and_a_failed_run_costs_its_own_row(tmp_path, capsys):
    flags = ["--model", "resnet8", "--input-size", "8", "--batch-size", "4", "--device", "cpu"]
    file = tmp_path / "table.json"
    runs = [(["--model", "resnet9"], 60), ([*flags, "--quick"], 120), (flags, 0)]
    assert gpu_table.fill(file, runs) == 2
    unknown, done, late = json.loads(file.read_text())["rows"]
    assert "resnet9" in unknown["error"] and "no time left" in late["error"]
    result = done["result"]
    assert list(result) == ["model", "input_size", "batch_size", "device", "train", "infer"]
    assert list(result.values())[:4] == ["resnet8", 8, 4, "cpu"]
    for task in ("train", "infer"):
        assert list(result[task]) == [*baselines.WAYS, "float32", "bfloat16"]
        assert all(math.isfinite(rate) and rate > 0 for rate in result[task].values())


def test_the_table_for_a_gpu_needs_a_file(capsys):
    with pytest.raises(SystemExit) as stop:
        throughput.main(["--gpu-table"])
    assert stop.value.code == 2
    assert "--json FILE" in capsys.readouterr().err


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
    assert torch.load(tmp_path / "samples/resume.pt")["scored"] == 40
    parts = bench.predecessor()
    assert set(parts) == {"read", "network", "rank"} and min(parts.values()) > 0
    assert len(inside) == 6  # it has a network of its own, float32
    assert next(bench.plain.parameters()).dtype == torch.float32


@pytest.mark.slow
def test_the_start_of_a_step_is_timed_in_a_program_of_its_own(tmp_path):
    flags = ["--preset", "demo", "--run-dir", tmp_path / "run", "--data-dir", tmp_path / "data"]
    found = steps.run("main", *flags, "--input-size", "8", "--epochs", "1", "--passes", "1")
    assert 0 < found["imports"] < found["first"] < found["seconds"]
    assert found["peak"] > 100
    assert (tmp_path / "run/teacher/result.json").exists()
