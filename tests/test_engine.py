"""The one training loop: means over samples, the same bits after a resume, schedules."""

import copy
import io
import itertools
import math

import pytest
import torch
from torch import nn

import engine
from data.augment import Augment, Normalise
from presets import Training

CLASSES, SIDE = 3, 8
NORMALISE = Normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def tiny_model(batch_norm=True):
    torch.manual_seed(11)
    middle = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), middle, nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)
    )


def made_up(count=10):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator).to(torch.uint8)
    return images, torch.arange(count) % CLASSES


def recipe(**changes):
    plain = dict(epochs=1, batch_size=4, learning_rate=0.1, warmup=0.0, schedule="cosine")
    return Training(**(plain | changes))


def plain(batch, labels):
    return NORMALISE(batch), labels


def training(model, settings, count=10, augment=plain, rows=None, **more):
    images, labels = made_up(count)
    rows = torch.arange(count) if rows is None else rows
    return engine.fit(model, images, rows, labels[rows], settings, augment, **more)


def every_step(monkeypatch):
    """Let two seconds pass at each look at the clock, so that `fit` yields after every step."""
    clock = itertools.count(0, 2)
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(clock))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small run faster on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def float32(monkeypatch, request):
    """The same numbers on CPUs with and without bf16."""
    if "autocast_dtype" not in request.node.name:
        monkeypatch.setattr(engine, "autocast_dtype", lambda device: None)


# --- fit: what it reports -----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [9, 4, 3, 1])
def test_means_are_over_samples_not_batches(batch_size, monkeypatch):
    # with a batch size of 9 `fit` would even 10 images out to 5 + 5; force the uneven 9 + 1
    monkeypatch.setattr(
        engine, "epoch_batches", lambda n, r, s, e: torch.arange(n).split(r.batch_size)
    )

    def metrics(size):
        still = recipe(batch_size=size, learning_rate=0.0, weight_decay=0.0)
        *_, last = training(tiny_model(batch_norm=False), still)
        return last

    whole, split = metrics(10), metrics(batch_size)
    assert split.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)
    assert split.metrics["train_top1"] == pytest.approx(whole.metrics["train_top1"])
    assert split.loss == split.metrics["train_loss"]

    images, labels = made_up()
    with torch.no_grad():
        logits = tiny_model(batch_norm=False)(NORMALISE(images))
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert whole.metrics["train_loss"] == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(1) == labels).float().mean().item()
    assert whole.metrics["train_top1"] == pytest.approx(100 * right)


def test_every_epoch_ends_with_its_own_metrics_and_counts():
    ends = [p for p in training(tiny_model(), recipe(epochs=3, passes=2)) if p.metrics]
    assert [p.epoch for p in ends] == [1, 2, 3]
    assert [p.step for p in ends] == [5, 10, 15]  # 20 images an epoch in batches of at most 4
    assert [p.images for p in ends] == [20, 40, 60]
    assert all(p.metrics.keys() == {"lr", "train_loss", "train_top1"} for p in ends)
    lrs = [engine.learning_rate(recipe(), step, 15) for step in (4, 9, 14)]
    assert [p.metrics["lr"] for p in ends] == lrs


def test_a_training_first_tells_where_it_stands_before_any_step():
    model = tiny_model()
    start = next(training(model, recipe()))
    assert start[:5] == (0, 0, 0, 0.0, None)
    assert start.model is model
    assert_same(model, tiny_model())


def test_a_tick_inside_an_epoch_tells_the_mean_so_far_and_no_metrics(monkeypatch):
    every_step(monkeypatch)
    _, *seen = training(tiny_model(), recipe(epochs=2))
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    assert [p.epoch for p in seen] == [0, 0, 1, 1, 1, 2]
    assert [p.metrics is None for p in seen] == [True, True, False] * 2
    assert [p.images for p in seen[:3]] == [4, 7, 10]
    assert all(math.isfinite(p.loss) for p in seen)


def test_training_learns_what_can_be_learned():
    # images that differ by their class's colour
    labels = torch.arange(30) % CLASSES
    images = torch.zeros(30, SIDE, SIDE, 3, dtype=torch.uint8)
    images[torch.arange(30), :, :, labels] = 200
    *_, last = engine.fit(
        tiny_model(), images, torch.arange(30), labels, recipe(epochs=20, batch_size=10), plain
    )
    assert last.metrics["train_top1"] == 100
    assert last.metrics["train_loss"] < 0.1


def test_an_image_with_two_labels_is_seen_with_both(monkeypatch):
    seen = []

    def watch(batch, labels):
        seen.extend(zip(batch[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))
        return plain(batch, labels)

    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].repeat(1, SIDE, SIDE, 3)
    rows, labels = torch.tensor([4, 4, 0, 2]), torch.tensor([0, 1, 2, 0])
    list(engine.fit(tiny_model(), images, rows, labels, recipe(batch_size=2), watch))
    assert sorted(seen) == [(0, 2), (2, 0), (4, 0), (4, 1)]


def test_soft_targets_give_the_soft_loss_but_count_against_the_labels():
    def half(batch, labels):
        return NORMALISE(batch), torch.full((len(batch), CLASSES), 1 / CLASSES)

    images, labels = made_up()
    still = recipe(batch_size=10, learning_rate=0.0, weight_decay=0.0)
    *_, last = training(tiny_model(batch_norm=False), still, augment=half)
    with torch.no_grad():
        logits = tiny_model(batch_norm=False)(NORMALISE(images))
    expected = -logits.log_softmax(1).mean().item()
    assert last.metrics["train_loss"] == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(1) == labels).float().mean().item()
    assert last.metrics["train_top1"] == pytest.approx(100 * right)


def test_one_step_is_nesterov_sgd_with_weight_decay():
    images, labels = made_up()
    settings = recipe(batch_size=10, weight_decay=0.01)
    model, expected = tiny_model(batch_norm=False), tiny_model(batch_norm=False)
    list(training(model, settings))
    nn.functional.cross_entropy(expected(NORMALISE(images)), labels).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            gradient = parameter.grad + 0.01 * parameter  # first step: momentum is the gradient
            parameter -= 0.1 * (gradient + 0.9 * gradient)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def averaged_values(model):
    """Copies of all the weights, and of batch norm's statistics, which are averaged too."""
    return [v.clone() for v in model.state_dict().values() if v.is_floating_point()]


def test_the_averaged_weights_are_the_exponential_average_of_the_steps(monkeypatch):
    every_step(monkeypatch)
    model = tiny_model()
    expected = None
    steps = training(model, recipe(epochs=2, ema_decay=0.7))
    next(steps)
    for progress in steps:
        now = averaged_values(model)
        if expected is None:
            expected = now  # the average starts at the first step's weights
        else:
            expected = [0.7 * e + 0.3 * n for e, n in zip(expected, now, strict=True)]
        for ours, theirs in zip(averaged_values(progress.model), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert progress.model is not model


# --- fit: the same bits -------------------------------------------------------------------------

RECIPES = {
    "plain": {},
    "ema": {"ema_decay": 0.9, "label_smoothing": 0.1},
    "mixed": {"mixup": 0.4, "cutmix": 1.0, "augment": "trivialaugment", "ema_decay": 0.9},
    "schedule": {"schedule": "halving", "warmup": 0.3, "passes": 2, "augment": "crop-flip"},
}


def augment_of(settings):
    return Augment(NORMALISE, settings.augment, CLASSES, settings.mixup, settings.cutmix)


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_from_any_step_a_training_ends_with_the_same_bits(name, monkeypatch):
    every_step(monkeypatch)
    settings = recipe(epochs=3, **RECIPES[name])
    whole, states = tiny_model(), []
    for last in training(whole, settings, augment=augment_of(settings), seed=3):
        states.append(through_a_file(last.state()))
        torch.rand(7)  # whoever logs or saves may draw random numbers
    steps = len(states)
    assert steps == 1 + (9 if name != "schedule" else 15)
    for start in {0, 1, steps // 3, steps // 2, steps - 2}:  # inside and at the ends of epochs
        resumed = tiny_model()
        torch.manual_seed(999 + start)
        *_, again = training(
            resumed, settings, augment=augment_of(settings), seed=3, state=states[start]
        )
        assert_same(resumed, whole)
        assert_same(again.model, last.model)
        assert again[:5] == last[:5]


def test_resumed_after_the_last_epoch_nothing_is_trained():
    model = tiny_model()
    *_, last = training(model, recipe())
    resumed = tiny_model()
    (only,) = training(resumed, recipe(), state=through_a_file(last.state()))
    assert (only.epoch, only.step, only.images, only.metrics) == (1, 3, 10, None)
    assert_same(resumed, model)


def test_the_seed_decides_the_weights_and_the_global_generator_does_not():
    def trained(seed, noise):
        model = tiny_model()
        torch.manual_seed(noise)
        settings = recipe(augment="crop-flip")
        list(training(model, settings, augment=augment_of(settings), seed=seed))
        return model

    assert_same(trained(1, 0), trained(1, 77))
    other = trained(2, 0)
    assert not torch.equal(other[0].weight, trained(1, 0)[0].weight)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_evaluating_between_two_steps_does_not_change_the_training(ema_decay, monkeypatch):
    settings = recipe(epochs=2, ema_decay=ema_decay)
    quiet, loud = tiny_model(), tiny_model()
    list(training(quiet, settings))
    every_step(monkeypatch)
    for progress in training(loud, settings):
        list(engine.predict(progress.model, made_up()[0], NORMALISE))
        torch.rand(3)
    assert_same(loud, quiet)


# --- fit: non-finite losses ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 1, 4])
def test_a_non_finite_loss_raises_and_leaves_the_weights_of_before_that_step(bad, step):
    before, steps = {}, itertools.count()
    model = tiny_model(batch_norm=False)

    def spoil(batch, labels):
        batch = NORMALISE(batch)
        if next(steps) != step:
            return batch, labels
        before.update(copy.deepcopy(model.state_dict()))
        if math.isnan(bad):
            return batch * bad, labels
        return batch, torch.full((len(batch), CLASSES), bad)

    with pytest.raises(FloatingPointError, match=r"not finite.*--learning-rate \(now 0\.1\)"):
        list(training(model, recipe(epochs=4), augment=spoil))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_non_finite_loss_ends_the_training_within_its_epoch():
    steps = itertools.count()

    def spoil(batch, labels):
        return NORMALISE(batch) * (math.nan if next(steps) == 4 else 1), labels

    ends = []
    with pytest.raises(FloatingPointError, match="epoch 2"):
        ends.extend(p.epoch for p in training(tiny_model(), recipe(epochs=4), augment=spoil))
    assert next(steps) <= 6


# --- schedules ----------------------------------------------------------------------------------


def rates(steps, **changes):
    settings = recipe(learning_rate=0.6, **changes)
    return [engine.learning_rate(settings, step, steps) for step in range(steps)]


def test_warm_up_rises_in_equal_steps_from_a_sixth_to_the_peak():
    warm = rates(100, warmup=0.1)[:11]
    # the paper's 0.1 -> 0.6 over ten steps: 0.15, 0.20, ..., 0.60
    assert warm[:10] == pytest.approx([0.15 + 0.05 * i for i in range(10)])
    assert warm[10] == pytest.approx(0.6)


def test_cosine_starts_at_the_peak_is_half_in_the_middle_and_ends_near_zero():
    cosine = rates(200)
    assert cosine[0] == 0.6
    assert cosine[100] == pytest.approx(0.3)
    assert cosine[50] == pytest.approx(0.6 * (1 + math.sqrt(0.5)) / 2)
    assert 0 < cosine[-1] < 0.6 * 1e-4
    assert all(a > b for a, b in itertools.pairwise(cosine))
    after_warm_up = rates(300, warmup=1 / 3)[100:]
    assert after_warm_up == pytest.approx(cosine)


@pytest.mark.parametrize("steps", [14, 28, 100, 1400, 1401, 9999])
def test_halving_halves_thirteen_times_at_equal_steps(steps):
    halving = rates(steps, schedule="halving")
    assert halving[0] == 0.6
    assert halving[-1] == 0.6 / 2**13
    ratios = [b / a for a, b in itertools.pairwise(halving)]
    assert ratios.count(0.5) == 13
    assert ratios.count(1.0) == steps - 1 - 13
    lengths = [len(list(group)) for _, group in itertools.groupby(halving)]
    assert len(lengths) == 14
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("steps", [4, 40, 41, 1000])
def test_steps_divides_by_ten_three_times_at_equal_steps(steps):
    drops = rates(steps, schedule="steps")
    lengths = [len(list(group)) for _, group in itertools.groupby(drops)]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) <= 1
    assert sorted(set(drops)) == pytest.approx([0.0006, 0.006, 0.06, 0.6])
    assert drops[-1] == pytest.approx(0.0006)


def test_a_step_of_a_schedule_starts_exactly_where_its_share_begins():
    for schedule, parts in (("halving", 14), ("steps", 4)):
        for length in range(1, 60):
            series = rates(parts * length, schedule=schedule)
            lengths = [len(list(group)) for _, group in itertools.groupby(series)]
            assert lengths == [length] * parts


def test_an_unknown_schedule_lists_the_choices():
    with pytest.raises(ValueError, match="'linear'; choose from cosine, halving, steps"):
        rates(5, schedule="linear")


# --- epoch_batches ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, batch_size", [(10, 4), (10, 9), (1, 8), (7, 7), (129, 128), (5, 1)])
@pytest.mark.parametrize("passes", [1, 3])
def test_an_epoch_is_a_permutation_in_batches_that_differ_by_at_most_one(rows, batch_size, passes):
    settings = recipe(batch_size=batch_size, passes=passes)
    batches = engine.epoch_batches(rows, settings, 0, 0)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == math.ceil(rows * passes / batch_size)
    order = torch.cat(list(batches))
    for once in order.split(rows):  # every pass has every row
        assert once.sort().values.tolist() == list(range(rows))


def test_the_order_follows_from_the_seed_and_the_epoch_alone():
    def order(seed, epoch):
        torch.manual_seed(seed * 31 + epoch + order.noise)
        order.noise += 1
        return torch.cat(list(engine.epoch_batches(50, recipe(), seed, epoch))).tolist()

    order.noise = 0
    assert order(1, 2) == order(1, 2)
    orders = [order(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(o) for o in orders}) == 16


# --- predict and accuracy -----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_predict_covers_all_images_in_order_whatever_the_batch_size(batch_size):
    images, _ = made_up()
    model = tiny_model()
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(NORMALISE(images))
    firsts, parts = zip(*engine.predict(model, images, NORMALISE, batch_size), strict=True)
    assert list(firsts) == list(range(0, 10, batch_size))
    logits = torch.cat(parts)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


def test_predict_taken_up_again_gives_the_same_bits():
    images, _ = made_up()
    whole = dict(engine.predict(tiny_model(), images, NORMALISE, 4))
    rest = dict(engine.predict(tiny_model(), images, NORMALISE, 4, start=4))
    assert list(rest) == [4, 8]
    assert all(torch.equal(rest[first], whole[first]) for first in rest)


def test_predict_leaves_the_model_as_it_is():
    images, _ = made_up()
    model = tiny_model().train()
    before = copy.deepcopy(model)
    list(engine.predict(model, images, NORMALISE, 4))
    assert_same(model, before)


def test_accuracy_counts_the_first_and_the_first_five():
    logits = torch.tensor([[6, 5, 4, 3, 2, 1, 0.0]] * 4)
    top1, top5 = engine.accuracy(logits, torch.tensor([0, 1, 4, 5]))
    assert (top1, top5) == (25, 75)
    assert engine.accuracy(logits[:, :3], torch.tensor([0, 1, 2, 2])) == (25, 100)


# --- autocast_dtype -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "isa, expected",
    [
        (None, torch.bfloat16),
        ("DEFAULT", torch.bfloat16),
        ("avx512_core_amx", torch.bfloat16),
        ("AVX512_CORE_BF16", torch.bfloat16),
        ("AVX2", None),
        ("avx512_core", None),
        ("SSE41", None),
    ],
)
def test_autocast_dtype_heeds_the_cpu_that_onednn_is_told_to_be(isa, expected, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if isa:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert engine.autocast_dtype(torch.device("cpu")) == expected


def test_autocast_dtype_is_none_where_bf16_would_be_emulated(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert engine.autocast_dtype(torch.device("cpu")) is None
    assert engine.autocast_dtype(torch.device("mps")) is None
