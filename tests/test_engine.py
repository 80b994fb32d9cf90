"""The one training loop: means over samples, the same bits after a resume, schedules."""

import copy
import io
import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

import engine
from data.augment import Augment, Normalise
from data.images import Images
from engine import TrainState
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


def training(state, count=10, augment=plain):
    images, labels = made_up(count)
    return engine.fit(state, images, labels, augment)


def trained(model, settings, seed=0, **more):
    """The TrainState after the whole training."""
    state = TrainState(model, settings, seed)
    for _ in training(state, **more):
        pass
    return state


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


# --- fit: what it reports -----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [6, 4, 3, 1])
def test_means_are_over_samples_not_batches(batch_size):
    def metrics(size):
        still = recipe(batch_size=size, learning_rate=0.0, weight_decay=0.0)
        return trained(tiny_model(batch_norm=False), still, count=12).metrics()

    whole, split = metrics(12), metrics(batch_size)
    assert split["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    assert split["train_top1"] == pytest.approx(whole["train_top1"])

    images, labels = made_up(12)
    with torch.no_grad():
        logits = tiny_model(batch_norm=False)(NORMALISE(images))
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert whole["train_loss"] == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(1) == labels).float().mean().item()
    assert whole["train_top1"] == pytest.approx(100 * right)


def test_every_step_is_counted_and_epochs_end_at_batch_0():
    state = TrainState(tiny_model(), recipe(epochs=2, passes=2))  # 20 images an epoch, 4 a batch
    seen = [(s.epoch, s.batch, s.step, s.images, s.seen, s.rate) for s in training(state)]
    rates = [engine.learning_rate(recipe(), step, 10) for step in range(10)]
    assert [x[0] for x in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    assert [x[1] for x in seen] == [1, 2, 3, 4, 0] * 2
    assert [x[2] for x in seen] == list(range(1, 11))
    assert [x[3] for x in seen] == list(range(4, 41, 4))
    assert [x[4] for x in seen] == [4, 8, 12, 16, 20] * 2
    assert [x[5] for x in seen] == rates


def test_the_metrics_are_those_of_the_epoch_so_far():
    state, ends = TrainState(tiny_model(), recipe(epochs=2, learning_rate=1e-9)), []
    for now in training(state, count=12):
        if now.batch == 0:
            ends.append(now.metrics())
        assert math.isfinite(now.metrics()["train_loss"])
    assert [set(end) for end in ends] == [{"lr", "train_loss", "train_top1"}] * 2
    # The weights hardly move, so both epochs have the same mean, in batches of other images.
    assert ends[0]["train_loss"] == pytest.approx(ends[1]["train_loss"], rel=0.05)


def test_training_learns_what_can_be_learned():
    # images that differ by their class's colour
    labels = torch.arange(30) % CLASSES
    images = torch.zeros(30, SIDE, SIDE, 3, dtype=torch.uint8)
    images[torch.arange(30), :, :, labels] = 200
    state = TrainState(tiny_model(), recipe(epochs=20, batch_size=10))
    list(engine.fit(state, images, labels, plain))
    assert state.metrics()["train_top1"] == 100
    assert state.metrics()["train_loss"] < 0.1


def test_an_image_with_two_labels_is_seen_with_both():
    seen = []

    def watch(batch, labels):
        seen.extend(zip(batch[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))
        return plain(batch, labels)

    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].repeat(1, SIDE, SIDE, 3)
    examples = Images.of(images.numpy()).subset(torch.tensor([4, 4, 0, 2]))
    labels = torch.tensor([0, 1, 2, 0])
    list(engine.fit(TrainState(tiny_model(), recipe(batch_size=2)), examples, labels, watch))
    assert sorted(seen) == [(0, 2), (2, 0), (4, 0), (4, 1)]


def test_soft_targets_give_the_soft_loss_but_count_against_the_labels():
    def half(batch, labels):
        return NORMALISE(batch), torch.full((len(batch), CLASSES), 1 / CLASSES)

    images, labels = made_up()
    still = recipe(batch_size=10, learning_rate=0.0, weight_decay=0.0)
    metrics = trained(tiny_model(batch_norm=False), still, augment=half).metrics()
    with torch.no_grad():
        logits = tiny_model(batch_norm=False)(NORMALISE(images))
    expected = -logits.log_softmax(1).mean().item()
    assert metrics["train_loss"] == pytest.approx(expected, rel=1e-5)
    right = (logits.argmax(1) == labels).float().mean().item()
    assert metrics["train_top1"] == pytest.approx(100 * right)


@pytest.mark.parametrize("mix", [{}, {"mixup": 1.0, "cutmix": 1.0}], ids=["plain", "mixed"])
def test_labels_as_probabilities_train_like_the_classes_they_stand_for(mix):
    images, labels = made_up()
    augment = Augment(NORMALISE, "crop-flip", CLASSES, **mix)
    hard, soft = (TrainState(tiny_model(), recipe(batch_size=4)) for _ in range(2))
    list(engine.fit(hard, images, labels, augment))
    list(engine.fit(soft, images, torch.eye(CLASSES)[labels], augment))
    assert soft.metrics() == pytest.approx(hard.metrics(), rel=1e-4)
    for ours, theirs in zip(soft.model.parameters(), hard.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_step_is_nesterov_sgd_with_weight_decay():
    images, labels = made_up()
    settings = recipe(batch_size=10, weight_decay=0.01)
    model, expected = tiny_model(batch_norm=False), tiny_model(batch_norm=False)
    trained(model, settings)
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


def test_the_averaged_weights_are_the_exponential_average_of_the_steps():
    model = tiny_model()
    expected = None
    for state in training(TrainState(model, recipe(epochs=2, ema_decay=0.7))):
        now = averaged_values(model)
        if expected is None:
            expected = now  # the average starts at the first step's weights
        else:
            expected = [0.7 * e + 0.3 * n for e, n in zip(expected, now, strict=True)]
        for ours, theirs in zip(averaged_values(state.network), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert state.network is not model


def test_without_an_average_the_network_is_the_model():
    model = tiny_model()
    assert trained(model, recipe()).network is model


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
def test_resumed_from_any_step_a_training_ends_with_the_same_bits(name):
    settings = recipe(epochs=3, **RECIPES[name])
    augment = augment_of(settings)
    whole = TrainState(tiny_model(), settings, seed=3)
    states = [through_a_file(whole.state_dict())]
    for state in training(whole, augment=augment):
        states.append(through_a_file(state.state_dict()))
        torch.rand(7)  # whoever logs or saves may draw random numbers
    assert len(states) == 1 + (7 if name != "schedule" else 15)
    for start in (0, 1, 3, len(states) // 2, len(states) - 2):  # inside and at the ends of epochs
        resumed = TrainState(tiny_model(), settings, seed=3)
        resumed.load_state_dict(states[start])
        torch.manual_seed(999 + start)
        assert len(list(training(resumed, augment=augment))) == len(states) - 1 - start
        assert_same(resumed.model, whole.model)
        assert_same(resumed.network, whole.network)
        assert resumed.metrics() == whole.metrics()


def test_resumed_after_the_last_epoch_nothing_is_trained():
    whole = trained(tiny_model(), recipe())
    resumed = TrainState(tiny_model(), recipe())
    resumed.load_state_dict(through_a_file(whole.state_dict()))
    assert list(training(resumed)) == []
    assert (resumed.epoch, resumed.step, resumed.images) == (1, 2, 8)
    assert_same(resumed.network, whole.network)


def test_the_seed_decides_the_weights_and_the_global_generator_does_not():
    def weights(seed, noise):
        model = tiny_model()
        torch.manual_seed(noise)
        settings = recipe(augment="crop-flip")
        trained(model, settings, seed, augment=augment_of(settings))
        return model

    assert_same(weights(1, 0), weights(1, 77))
    assert not torch.equal(weights(2, 0)[0].weight, weights(1, 0)[0].weight)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_evaluating_between_two_steps_does_not_change_the_training(ema_decay):
    settings = recipe(epochs=2, ema_decay=ema_decay)
    quiet, loud = tiny_model(), tiny_model()
    trained(quiet, settings)
    for state in training(TrainState(loud, settings)):
        list(engine.predict(state.network, made_up()[0], NORMALISE))
        state.metrics()
        torch.rand(3)
    assert_same(loud, quiet)


# --- fit: the network that is trained may be compiled ------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_compiled_training_evaluates_the_network_as_it_is(backend, ema_decay):
    runs = []

    def compiler(network):
        compiled = torch.compile(network, backend=backend)

        def run(batch):
            runs.append(network.training)
            return compiled(batch)

        return run

    settings = recipe(epochs=2, ema_decay=ema_decay)
    plainly, compiled = TrainState(tiny_model(), settings), TrainState(tiny_model(), settings)
    list(training(plainly))
    images, labels = made_up()
    for state in engine.fit(compiled, images, labels, plain, compiler):
        list(engine.predict(state.network, images, NORMALISE, 4))  # in between, as a stage does
    assert runs == [True] * compiled.step
    ours, theirs = compiled.state_dict(), plainly.state_dict()
    assert ours["model"].keys() == theirs["model"].keys()  # no prefix of a compiled module's
    for name, value in ours["model"].items():
        torch.testing.assert_close(value, theirs["model"][name])
    torch.testing.assert_close(compiled.metrics(), plainly.metrics())
    resumed = TrainState(tiny_model(), settings)
    resumed.load_state_dict(through_a_file(ours))
    assert_same(resumed.network, compiled.network)


def test_one_compilation_serves_a_whole_training():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    state = TrainState(tiny_model(), recipe(epochs=3))
    images, labels = made_up()
    for _ in engine.fit(state, images, labels, plain, partial(torch.compile, backend=backend)):
        list(engine.predict(state.network, images, NORMALISE, 4))
    assert len(compiled) == 1


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
        for state in training(TrainState(model, recipe(epochs=4)), augment=spoil):
            if state.batch == 0:
                state.metrics()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("layer", [0, -1])
def test_a_gradient_of_any_layer_that_is_not_finite_changes_no_weight(layer):
    model, before, calls = tiny_model(batch_norm=False), {}, itertools.count(1)

    def spoil(gradient):
        if next(calls) != 3:
            return gradient
        before.update(copy.deepcopy(model.state_dict()))
        return gradient * math.inf

    list(model.parameters())[layer].register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"gradient is not finite in step 3, in epoch 2"):
        for state in training(TrainState(model, recipe(epochs=4))):
            if state.step > 4:
                state.metrics()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_after_a_non_finite_step_the_metrics_raise_and_name_the_epoch():
    steps = itertools.count()

    def spoil(batch, labels):
        return NORMALISE(batch) * (math.nan if next(steps) == 3 else 1), labels

    for state in training(TrainState(tiny_model(), recipe(epochs=4)), augment=spoil):
        if state.step < 4:
            state.metrics()
            continue
        with pytest.raises(FloatingPointError, match="epoch 2"):
            state.metrics()
        if state.batch == 0:
            break
    assert state.step == 5  # also at the end of the epoch


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


@pytest.mark.parametrize(
    "count, batch_size", [(10, 4), (10, 9), (1, 8), (7, 7), (129, 128), (5, 1), (10, 10), (3, 64)]
)
@pytest.mark.parametrize("passes", [1, 3])
def test_all_batches_of_a_training_are_equal_and_every_example_comes_up_equally_often(
    count, batch_size, passes
):
    settings = recipe(batch_size=batch_size, passes=passes, epochs=5)
    epochs = [engine.epoch_batches(count, settings, 0, epoch) for epoch in range(5)]
    size = min(batch_size, count * passes)
    assert {batches.shape[1] for batches in epochs} == {size}
    assert all(len(batches) >= 1 for batches in epochs)
    seen = torch.cat([batches.flatten() for batches in epochs])
    assert (sum(map(len, epochs)), size) == engine.count_steps(count, settings)
    assert 0 <= 5 * passes * count - len(seen) < size  # dropped at the very end
    for once in seen.split(count):  # pass after pass, also where a batch spans two epochs
        times = once.bincount(minlength=count)
        assert times.max() == 1 and (len(once) < count or times.min() == 1)


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


def test_precision_is_that_of_the_state_and_logits_and_weights_stay_float32():
    seen = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            seen.append(super().forward(x).dtype)
            return super().forward(x).float()

    for precision in (torch.float32, torch.bfloat16):
        model = nn.Sequential(Watched(3, 4, 3, 2), nn.Flatten(), nn.Linear(36, CLASSES))
        state = TrainState(model, recipe(), precision=precision)
        list(training(state))
        list(engine.predict(model, made_up()[0], NORMALISE, precision=precision))
        assert set(seen) == {precision}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        seen.clear()
