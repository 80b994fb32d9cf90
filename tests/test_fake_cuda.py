"""What a GPU would be made to wait for, found out without one.

Tensors that claim to be on "cuda" have a shape and no content (torch's FakeTensorMode); those on
the CPU are real.  So whatever needs a GPU's numbers on the CPU raises by itself: `.item()`, `if`,
`nonzero`, a boolean index, an operation on two devices.  What is copied between the devices is
recorded, and must not become more with the number of steps: a copy makes the CPU wait for the GPU,
unless it says non_blocking and comes from pinned memory, or is small.
"""

from contextlib import ExitStack

import pytest
import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.augment import Augment, Normalise
from data.images import Images
from engine import TrainState, fit, predict
from models.networks import build_model
from presets import Training
from ranking import STRATEGIES, Selector
from stages import training
from topk import TopK

CUDA = torch.device("cuda", 0)
CLASSES, SIDE = 10, 16
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_, aten.to)

# copy.deepcopy, for the moving average, looks whether a tensor has a content
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


class Watch(TorchDispatchMode):
    """Lets real tensors stay real, and records what crosses from one device to the other.

    waits    operations on two devices for which somebody waits
    fetches  copies from pinned memory, for which nobody waits
    notes    small copies from any memory, which a driver takes along with its orders: likewise
    batches  the batch sizes that convolutions have seen
    """

    def __init__(self):
        super().__init__()
        self.waits, self.fetches, self.notes, self.batches = [], [], [], set()
        self.pinned = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is aten._fused_sgd_.default:
            return None  # it has no fake form; what it gets stays in place, on one device
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        fake = any(isinstance(x, fake_tensor.FakeTensor) for x in given)
        if not fake and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            with fake_tensor.unset_fake_temporarily():
                return operation(*args, **kwargs)
        if torch.is_inference_mode_enabled() and operation.namespace == "aten":  # `to` comes whole
            with self:
                result = operation.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = operation(*args, **kwargs)
        everything = given + [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if (
            operation.overloadpacket not in COPIES
        ):  # others get a number from the CPU as an argument
            everything = [x for x in everything if x.dim() or x.device.type == "cuda"]
        apart = {x.device.type for x in everything}
        if len(apart) > 1:
            self._list(given[0], kwargs).append(str(operation))
        if operation is aten.convolution.default:
            self.batches.add(len(args[0]))
        return result

    def _list(self, source, kwargs):
        if not kwargs.get("non_blocking") or source.device.type != "cpu":
            return self.waits
        if any(source is x for x in self.pinned):
            return self.fetches
        return self.notes if source.nbytes <= 2**16 else self.waits


def backward(loss):
    """Stands in for torch.Tensor.backward, whose threads each ask the driver for their GPU: every
    parameter that the loss depends on gets a gradient.
    """
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [node for node, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)


@pytest.fixture
def watch(monkeypatch):
    """A machine with a GPU that only looks like one."""
    with ExitStack() as stack:
        stack.enter_context(fake_tensor.FakeTensorMode(allow_non_fake_inputs=True))
        watch = stack.enter_context(Watch())

        def pin_memory(tensor):  # asks the driver, and so is only noted here
            watch.pinned.append(tensor)
            return tensor

        monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        # autocast asks the driver whether there is a GPU, and whether it has bfloat16
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        yield watch


def network(name="resnet8"):
    with CUDA:
        return build_model(name, CLASSES)


def pictures(count, device=CUDA):
    return torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8, device=device)


def normalise():
    return Normalise([0.5] * 3, [0.25] * 3, CUDA)


def trained(recipe, images, policy="none", precision=torch.bfloat16, **mixed):
    labels = torch.arange(len(images)) % CLASSES
    augment = Augment(normalise(), policy, CLASSES, **mixed)
    state = TrainState(network(), recipe, precision=precision)
    for _ in fit(state, images, labels, augment):
        pass
    return state


# --- training -----------------------------------------------------------------------------------


WHERE = {
    "on the GPU": lambda count: Images([pictures(count)]),
    "chosen on the GPU": lambda count: Images(
        [pictures(20)], torch.arange(count, device=CUDA) % 20
    ),
    "in memory": lambda count: Images([pictures(count, "cpu")]),
    "in two files": lambda count: Images([pictures(3, "cpu"), pictures(count - 3, "cpu")]),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "settings, augmentation",
    [
        ({}, {}),
        ({"ema_decay": 0.9, "label_smoothing": 0.1}, {}),
        ({}, {"policy": "crop"}),
        ({}, {"policy": "trivialaugment"}),
        ({}, {"policy": "crop-flip", "precision": torch.float32}),
        ({}, {"mixup": 0.4, "cutmix": 1.0, "mixed": 0.5}),
    ],
    ids=str,
)
def test_no_step_of_a_training_waits(watch, where, settings, augmentation):
    waits = []
    for steps in (2, 7):
        watch.waits, watch.fetches = [], []
        recipe = Training(epochs=1, batch_size=4, warmup=0.0, **settings)
        assert trained(recipe, WHERE[where](4 * steps), **augmentation).step == steps
        assert len(watch.fetches) == (0 if "GPU" in where else steps)  # a batch each
        waits.append(watch.waits)
    assert waits[0] == waits[1]  # the order and the labels of an epoch, what an Augment is made of
    assert watch.notes == []


def test_the_numbers_of_an_epoch_are_what_is_waited_for(watch):
    state = trained(Training(epochs=1, batch_size=4), pictures(8))
    with pytest.raises(fake_tensor.DataDependentOutputException):
        state.metrics()


@pytest.mark.parametrize("count, passes", [(10, 1), (9, 3), (3, 1)])
def test_all_batches_of_a_training_have_one_size(watch, count, passes):
    """Each other size would cost a search for the best kernels, and a compilation."""
    trained(Training(epochs=4, batch_size=4, passes=passes), pictures(count))
    assert len(watch.batches) == 1


# --- prediction ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", WHERE)
def test_a_prediction_waits_for_nothing(watch, where):
    prepare, images, model = normalise(), WHERE[where](30), network()
    watch.waits = []
    found = list(predict(model, images, prepare, 4, precision=torch.bfloat16))
    assert [len(logits) for _, logits in found] == [4] * 7 + [2]
    assert {logits.device for _, logits in found} == {CUDA}
    assert watch.waits == watch.notes == []
    assert len(watch.fetches) == (0 if "GPU" in where else 8)


@pytest.mark.parametrize("count", [4, 30])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_evaluation_is_waited_for_once(watch, monkeypatch, count, ema_decay):
    monkeypatch.setattr(training, "EVALUATED", 4)
    state = TrainState(network(), Training(ema_decay=ema_decay))
    images, prepare = Images([pictures(count)]), normalise()
    watch.waits = []
    logits = training.evaluate(state, images, prepare)
    assert logits.device.type == "cpu" and len(logits) == count
    assert len(watch.waits) == 1
    training.test_once(state, images, prepare)
    assert len(watch.waits) == 1 + 2  # logits and features


# --- selection ----------------------------------------------------------------------------------

CHUNK, P = 16, 3


@pytest.fixture
def merges(monkeypatch):
    """The candidates that were waited for: the one place of a ranking that needs numbers on the CPU
    is where a full buffer is pruned.  In its stead the buffer is emptied, and its size noted.
    """
    seen = []

    def emptied(table):
        seen.append(table._filled)
        table._filled = 0

    monkeypatch.setattr(TopK, "_prune", emptied)
    monkeypatch.setattr(TopK, "BUFFER", 100)
    return seen


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("min_score", [0.0, 0.5])
@pytest.mark.parametrize("all_usable", [True, False])
def test_a_ranking_waits_only_where_a_buffer_is_full(
    watch, merges, strategy, min_score, all_usable
):
    selector = Selector(CLASSES, strategy, P, k=50, min_score=min_score, device=CUDA)
    for first in range(0, 20 * CHUNK, CHUNK):
        usable = torch.ones(CHUNK, dtype=torch.bool)
        usable[5] = all_usable
        tags = torch.arange(CHUNK) % CLASSES if strategy == "tags" else None
        score, label = selector.add(first, torch.zeros(CHUNK, CLASSES, device=CUDA), usable, tags)
        assert score.shape == label.shape == (CHUNK, P)
    assert watch.waits == []
    assert (all_usable and strategy != "tags") or watch.notes  # which entries, and their tags
    assert merges and set(merges) == {100}
