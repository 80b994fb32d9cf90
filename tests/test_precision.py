"""float16 with a loss scale, for GPUs without bfloat16; too little memory names a batch to try."""

import json
import math

import pytest
import torch
from torch import nn

import engine
import main
from engine import TrainState
from presets import Training
from stages import device, scoring, training

RECIPE = Training(epochs=8, batch_size=8, learning_rate=0.05, warmup=0.0)
LABELS = torch.arange(32) % 4
NOISE = torch.randint(0, 64, (32, 8, 8, 3), generator=torch.Generator().manual_seed(1))
IMAGES = (NOISE + 60 * LABELS.view(-1, 1, 1, 1)).to(torch.uint8)  # brighter by class


def prepare(batch, labels):
    return batch.float().permute(0, 3, 1, 2) / 255, labels


def half():
    torch.manual_seed(2)
    layers = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    return TrainState(Logits(*layers), RECIPE, precision=torch.float16)


class Logits(nn.Sequential):
    """A tiny network whose logits are float32, as `build_model`'s are."""

    def forward(self, x):
        return super().forward(x).float()


def steps(state, augment=prepare):
    return engine.fit(state, IMAGES, LABELS, augment)


def test_float16_lowers_its_loss_scale_where_gradients_overflow_and_learns():
    state, scales = half(), []
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = {name: tensor.clone() for name, tensor in state.model.named_parameters()}
    for _ in steps(state):
        scales.append(state.scaler.get_scale())
        if state.step == 1:  # refused: the weights are those before it
            assert all(torch.equal(p, before[n]) for n, p in state.model.named_parameters())
    assert scales[0] == 2.0**29 and scales[-1] < 2.0**20
    assert state.metrics()["train_loss"] < 0.8 * math.log(4)
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}


def test_a_float16_loss_that_is_not_finite_is_an_error():
    def broken(batch, labels):
        batch, labels = prepare(batch, labels)
        return batch * float("nan"), labels

    state = half()
    for _ in steps(state, broken):
        break
    with pytest.raises(FloatingPointError, match=r"not finite in step 1"):
        state.metrics()


def test_a_float16_training_that_is_resumed_ends_with_the_same_bits():
    whole, first, second = half(), half(), half()
    for _ in steps(whole):
        pass
    for _ in steps(first):
        if first.step == 5:
            break
    second.load_state_dict(first.state_dict())
    for _ in steps(second):
        pass
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert second.scaler.state_dict() == whole.scaler.state_dict()


def test_a_gpu_without_bfloat16_computes_with_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert device.faster_precision(torch.device("cuda")) == "float16"


def test_precision_float16_reaches_a_stage(tmp_path):
    flags = "--preset demo --model resnet8 --input-size 8 --epochs 1 --passes 1"
    flags += " --precision float16 --device cpu --run-dir"
    main.main([*flags.split(), str(tmp_path)])
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    assert config["precision"] == "float16"


def test_too_little_memory_names_the_batch_to_try(tmp_path, monkeypatch, capsys):
    def fit(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(training, "fit", fit)
    flags = "--preset demo --batch-size 64 --device cpu --run-dir"
    with pytest.raises(SystemExit) as stopped:
        main.main([*flags.split(), str(tmp_path)])
    assert stopped.value.code == 1
    assert "try --batch-size 32 --overwrite (the learning rate follows)" in capsys.readouterr().err


def test_too_little_memory_in_step_2_names_the_batch_too(
    run_before, step, stage_flags, monkeypatch, capsys
):
    def predict(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(scoring, "predict", predict)
    assert step("samples", run_before("samples"), *stage_flags["samples"]) == 1
    assert "try --batch-size 256 --overwrite\n" in capsys.readouterr().err
