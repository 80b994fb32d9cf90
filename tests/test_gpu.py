"""The first hour on a GPU: what tests without one can only conclude from shapes.

    python -m pytest tests/test_gpu.py

Skipped on a machine without a GPU.
"""

from itertools import islice

import pytest
import torch
from conftest import LATER, STAGES, assert_same_training, result_of
from test_resume import every_step, finish_in_pieces, stop_after  # noqa: F401 - fixtures

import ranking
from data.augment import POLICIES, Augment, Normalise
from data.images import Images
from engine import TrainState, fit, predict
from models.networks import build_model
from presets import Training
from ranking import STRATEGIES, Selector
from stages.device import set_up_device
from topk import TopK

CUDA = torch.device("cuda")
CLASSES, SIDE, BATCH = 10, 32, 16
WARM, STEPS = 3, 20  # the first steps reserve memory and choose kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def as_before():
    """set_up_device changes torch's settings for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False


def noise(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator).to(torch.uint8)


def normalise():
    return Normalise([0.5] * 3, [0.25] * 3, CUDA)


def network(name="resnet8"):
    torch.manual_seed(0)
    return build_model(name, CLASSES).to(CUDA, memory_format=torch.channels_last)


def without_waiting(steps):
    """Take WARM steps, then STEPS of which any that waits for the GPU raises."""
    assert len(list(islice(steps, WARM))) == WARM
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(islice(steps, STEPS))) == STEPS
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- nothing waits ------------------------------------------------------------------------------


def steps_of_a_training(resident, policy="crop-flip", compiler=None, mixup=0.0, **settings):
    images = Images([noise(BATCH * (WARM + STEPS))])
    images = images.to(CUDA) if resident else images
    recipe = Training(epochs=1, batch_size=BATCH, **settings)
    state = TrainState(network(), recipe, precision=torch.bfloat16)
    augment = Augment(normalise(), policy, CLASSES, mixup, cutmix=mixup)
    return fit(state, images, torch.arange(len(images)) % CLASSES, augment, compiler)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_step_of_a_training_waits(resident, policy):
    without_waiting(steps_of_a_training(resident, policy))


@pytest.mark.parametrize("compiler", [None, pytest.param(torch.compile, marks=pytest.mark.slow)])
def test_no_step_waits_for_averages_mixed_images_or_compiled_networks(compiler):
    without_waiting(steps_of_a_training(True, compiler=compiler, mixup=0.5, ema_decay=0.9))


@pytest.mark.parametrize("resident", [True, False])
def test_no_batch_of_a_prediction_waits(resident):
    images = Images([noise(BATCH * (WARM + STEPS))])
    images = images.to(CUDA) if resident else images
    without_waiting(predict(network(), images, normalise(), BATCH, precision=torch.bfloat16))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_chunk_of_a_ranking_waits_before_the_buffer_is_full(strategy):
    assert TopK.BUFFER > (WARM + STEPS) * 64 * 5
    selector = Selector(CLASSES, strategy, p=5, k=50, min_score=0.05, device=CUDA)
    given = list(chunks(CUDA, WARM + STEPS))
    without_waiting(selector.add(*chunk) for chunk in given)


# --- the same as elsewhere ----------------------------------------------------------------------


def chunks(device, number, size=64):
    """first, logits on `device`, usable, tags; many scores are equal."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, number * size, size):
        logits = torch.randint(-3, 4, (size, CLASSES), generator=generator).float()
        usable = torch.rand(size, generator=generator) < 0.9
        tags = torch.randint(-1, CLASSES, (size,), generator=generator)
        yield first, logits.to(device), usable, tags


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("min_score", [0.0, 0.2])
def test_the_same_scores_give_the_same_selection_as_on_a_cpu(monkeypatch, strategy, min_score):
    top_classes = ranking.top_classes
    monkeypatch.setattr(TopK, "BUFFER", 500)

    def on_the_cpu(logits, p):  # a GPU's softmax rounds otherwise
        return tuple(x.to(logits.device) for x in top_classes(logits.cpu(), p))

    monkeypatch.setattr(ranking, "top_classes", on_the_cpu)
    rows = []
    for device in ("cpu", "cuda"):
        selector = Selector(CLASSES, strategy, 3, 20, min_score=min_score, device=device)
        for chunk in chunks(device, 50):
            selector.add(*chunk)
        rows.append(selector.rows())
        histogram = selector.histogram.cpu()
        assert histogram.sum() == selector.scored
    position, label, score, rank = zip(*rows, strict=True)
    assert len(position[0]) > 50
    for ours, theirs in (position, label, rank):
        assert torch.equal(ours, theirs)
    # With tags the score is looked up on the device.
    torch.testing.assert_close(*score, rtol=1e-6 if strategy == "tags" else 0, atol=0)


def test_images_on_the_gpu_are_those_in_memory():
    images = Images([noise(30), noise(20)]).subset(torch.tensor([3, 40, 3, 29, 0]))
    copied = images.to(CUDA)
    assert copied.device.type == "cuda"
    assert torch.equal(copied[torch.tensor([0, 2, 4])].cpu(), images[torch.tensor([0, 2, 4])])
    assert torch.equal(copied[1:4].cpu(), images[1:4])


@pytest.mark.slow
def test_a_compiled_training_learns_what_a_plain_one_does():
    found = []
    for compiler in (None, torch.compile):
        for state in steps_of_a_training(True, "none", compiler, learning_rate=0.01):
            last = state
        found.append(last.metrics()["train_loss"])
    assert found[0] == pytest.approx(found[1], rel=0.02)


# --- the programs -------------------------------------------------------------------------------


def test_the_four_steps_run(tmp_path, step, stage_flags):
    for stage in STAGES:
        more = "--device cuda" if stage == "samples" else "--device cuda --compile off"
        assert step(stage, tmp_path, *stage_flags[stage], more) == 0
        assert result_of(tmp_path / stage)["stage"] == stage


@pytest.mark.parametrize("stage", ["teacher", "student", "finetuned"])
def test_a_training_in_pieces_ends_with_the_same_bits(
    run_before,
    stage_flags,
    step,
    every_step,  # noqa: F811
    stop_after,  # noqa: F811
    stage,
):
    run, flags = run_before(stage), [*stage_flags[stage], "--device cuda --deterministic"]
    assert finish_in_pieces(step, stop_after, stage, run, flags, 3) >= 1
    pieces = (run / stage).rename(run / "pieces")
    stop_after(10**9)
    assert step(stage, run, *flags) == 0
    assert_same_training(pieces, run / stage)


def test_a_selection_is_the_same_on_every_run(run_before, step):
    run = run_before("samples")
    found = []
    for _ in range(2):
        assert step("samples", run, *LATER["samples"], "--device cuda --overwrite") == 0
        found += [(run / "samples" / name).read_bytes() for name in ("selection.csv", "scores.npz")]
    assert found[:2] == found[2:]


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_the_networks_have_deterministic_kernels(name):
    """A kernel without one raises; two trainings have the same bits."""
    device = set_up_device("cuda", deterministic=True)
    weights = []
    for _ in range(2):
        state = TrainState(
            network(name), Training(epochs=2, batch_size=16), precision=torch.bfloat16
        )
        images, labels = noise(32).to(device), torch.arange(32) % CLASSES
        for _ in fit(state, images, labels, Augment(normalise(), "crop-flip", CLASSES)):
            pass
        weights.append(state.model.state_dict())
    assert all(torch.equal(weights[0][x], weights[1][x]) for x in weights[0])
