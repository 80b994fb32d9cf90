"""What a stage computes with: precision, threads; and what is answered before torch is imported."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import engine
import ranking
from data.augment import POLICIES
from data.labelled import LABELLED_SETS
from models.networks import build_model
from presets import PRESETS
from stages import device, flags, prepare

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
AUTO = {"precision": "auto", "threads": None}


@pytest.fixture
def cpu(monkeypatch):
    """cpu(maker, amx, avx512_bf16, isa): be such a CPU, under that ONEDNN_MAX_CPU_ISA."""

    def be(maker, amx, avx512_bf16, isa=None):
        able = {"_is_amx_tile_supported": amx, "_is_avx512_bf16_supported": avx512_bf16}
        for name, value in able.items():
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
        monkeypatch.setattr(device, "_cpu_maker", lambda: maker)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if isa:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)

    return be


@pytest.mark.parametrize(
    "maker, amx, avx512_bf16, isa, expected",
    [
        ("GenuineIntel", True, True, None, "bfloat16"),
        ("GenuineIntel", True, True, "DEFAULT", "bfloat16"),
        ("GenuineIntel", True, True, "avx512_core_amx", "bfloat16"),
        ("GenuineIntel", True, True, "AVX512_CORE_BF16", "float32"),
        ("GenuineIntel", True, True, "AVX2", "float32"),
        ("GenuineIntel", False, True, None, "float32"),  # a third slower in bf16
        ("AuthenticAMD", False, True, None, "bfloat16"),
        ("AuthenticAMD", False, True, "AVX512_CORE_BF16", "bfloat16"),
        ("AuthenticAMD", False, True, "AVX512_CORE", "float32"),
        ("AuthenticAMD", False, False, None, "float32"),
        ("", False, False, None, "float32"),
    ],
)
def test_auto_is_the_faster_precision_of_every_cpu_that_was_measured(
    cpu, maker, amx, avx512_bf16, isa, expected
):
    cpu(maker, amx, avx512_bf16, isa)
    assert device.faster_precision(CPU) == expected
    assert device.faster_precision(torch.device("mps")) == "float32"


def settled(saved=None, model="resnet8", batch_size=4, **given):
    before = torch.get_num_threads()
    try:
        network = build_model(model, 10)
        return device.settle_compute(CPU, AUTO | given, saved, network, 32, batch_size)
    finally:
        torch.set_num_threads(before)


def test_flags_win_over_what_was_saved_and_that_over_auto(cpu):
    cpu("", amx=False, avx512_bf16=False)
    saved = {"precision": "bfloat16", "threads": 3}
    assert settled() == (CPU, torch.float32, 1)
    assert settled(saved) == (CPU, torch.bfloat16, 3)
    assert settled(saved, precision="float32", threads=2) == (CPU, torch.float32, 2)
    assert settled(precision="bfloat16").precision_name == "bfloat16"


def test_a_network_gets_the_threads_that_it_can_use_and_no_more(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    few = {n: device._useful_threads(build_model(n, 10), 32, 32) for n in ("resnet8", "resnet20")}
    assert few == {"resnet8": 1, "resnet20": 1}
    assert device._useful_threads(build_model("resnet20", 10), 32, 128) == 5  # 5.2 G a step
    assert device._useful_threads(build_model("resnet50", 10), 64, 128) > 32


def test_threads_and_precision_are_written_down(digits_run):
    for stage in ("teacher", "samples", "student", "finetuned"):
        config = json.loads((digits_run / stage / "config.json").read_text())
        assert config["precision"] == device.faster_precision(CPU)
        assert config["threads"] == 1


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_compiles_unless_told_otherwise_or_unable_to(monkeypatch, works):
    monkeypatch.setattr(device, "_compiler_works", lambda device: works)
    cuda = torch.device("cuda")
    assert device.settle_compile(cuda, "auto", None) == works
    assert device.settle_compile(cuda, "on", None)
    assert not device.settle_compile(cuda, "off", None)
    assert not device.settle_compile(CPU, "auto", None)
    for saved in (True, False):
        assert device.settle_compile(cuda, "auto", {"compile": saved}) == saved


def test_deterministic_training_is_not_compiled(monkeypatch, deterministic):
    monkeypatch.setattr(device, "_compiler_works", lambda device: True)
    assert not device.settle_compile(torch.device("cuda"), "auto", None)
    with pytest.raises(ValueError, match="--compile on contradicts --deterministic"):
        device.settle_compile(CPU, "on", None)


def test_a_compiler_that_fails_is_done_without(capsys):
    assert not device._compiler_works(torch.device("cuda", 99))
    assert "training without torch.compile" in capsys.readouterr().err


# --- before torch -------------------------------------------------------------------------------


def test_the_names_of_the_flags_are_those_of_what_they_choose():
    assert set(flags.LABELLED_SETS) == set(LABELLED_SETS)
    assert set(flags.POLICIES) == set(POLICIES)
    assert set(flags.SCHEDULES) == set(engine.SCHEDULES)
    assert set(flags.STRATEGIES) == set(ranking.STRATEGIES)


def answer(command, *more):
    """Run a script that may not import torch; -> the finished process."""
    script, *words = command.split()
    block = "import sys; sys.modules['torch'] = None\n"  # to import it raises ImportError
    run = "run_path" if script.endswith(".py") else "run_module"
    run = f"import runpy; sys.argv = {[script, *words, *more]!r}; runpy.{run}({script!r}, "
    code = block + run + "run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


SCRIPTS = {"main.py": "", "make_sample_data.py": "", "student_train.py": "", "study.py": ""}
SCRIPTS |= {"predict.py": "photo.jpg", "export.py": "stage out", "report": "run"}  # and their words


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_typos_are_answered_before_torch_is_imported(script):
    shown = answer(f"{script} --help")
    assert shown.returncode == 0 and "--help" in shown.stdout, shown.stderr
    wrong = answer(f"{script} {SCRIPTS[script]} --no-such-flag")
    assert wrong.returncode == 2 and "--no-such-flag" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


# --- the preset for a GPU on a CPU --------------------------------------------------------------


@pytest.mark.parametrize("preset", ["cifar100", "cifar100-paper"])
def test_a_preset_for_a_gpu_names_its_days_before_it_reads_or_measures_anything(
    refused, tmp_path, preset, monkeypatch
):
    monkeypatch.setattr(torch.optim.SGD, "step", None)  # nothing is trained for a guess
    began = time.process_time()
    error = refused("teacher", tmp_path / "run", "--preset", preset, "--data-dir", tmp_path / "no")
    assert time.process_time() - began < 2
    days = float(re.search(r"about ([0-9.]+) days", error)[1])
    assert 0.1 < days * torch.get_num_threads() < 20
    assert "no GPU" in error and preset in error and "--yes" in error
    for name, time_it_takes in prepare.FOR_A_CPU.items():
        assert f"{name} ({time_it_takes})" in error and name in PRESETS
    assert not (tmp_path / "no").exists()


def test_the_preset_for_a_night_starts_without_being_asked_twice(refused, tmp_path):
    flags = ["--preset", "cifar100-cpu", "--dataset", "folder", "--data-dir", tmp_path / "nowhere"]
    assert "nowhere/train" in refused("teacher", tmp_path / "run", *flags)
