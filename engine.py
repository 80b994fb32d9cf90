"""The one training loop and the one prediction loop, schedules, precision.

Steps 1, 3 and 4 differ in their arguments only.  `fit` yields after every step; its caller keeps
the time, logs, evaluates, saves and stops.  Nothing here waits for the device unless the caller
asks for numbers.  The random numbers of a step follow from (seed, step) and the order of an epoch
from (seed, epoch), so a training that is resumed at any step ends with the same bits (on a GPU:
with deterministic kernels).

Under torchrun every process takes its share of each batch, and the gradient is that of the whole
batch.  The number of processes changes neither the recipe nor the order of the examples.  It does
change the random augmentations, and batch norm, whose statistics are those of a process's share.
"""

import copy
import math

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

import distributed
from models.convolution import use_products

SCHEDULES = ("cosine", "halving", "steps")
HALVINGS = 13  # paper: the pre-training rate is halved 13 times, whatever the length
DROPS = 3  # paper: fine-tuning divides its rate by ten three times
WARMUP_FROM = 1 / 6  # paper: warm-up from 0.1 to 0.6


# --- training -----------------------------------------------------------------------------------


class TrainState:
    """A training between two steps: `fit` changes it and goes on from it.

    model      the network that is trained
    recipe     an object with the fields of presets.Training
    seed       of the order of the examples and of all random augmentations
    precision  torch.float32, or a lower one for autocast; the weights are float32
    epoch      epochs finished
    batch      batches done in the epoch that is under way, 0 between two epochs
    step       optimizer steps done
    images     images processed
    rate       learning rate of the last step
    """

    def __init__(self, model, recipe, seed=0, precision=torch.float32):
        self.model, self.recipe, self.seed, self.precision = model, recipe, seed, precision
        use_products(model)
        self.epoch = self.batch = self.step = self.images = 0
        self.rate = 0.0
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate,
            momentum=0.9,  # the paper names momentum, not its value
            nesterov=True,  # not in the paper: usual for CIFAR
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        # An exponential moving average of the weights and of batch norm's statistics.
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema_decay else None
        # Epoch totals: images over all processes; this process's loss, correct answers, refused
        # steps.
        self.seen = 0
        self.sums = torch.zeros(3, device=next(model.parameters()).device)
        # Scales the loss so that float16's small gradients do not become zero; off otherwise.
        on = precision == torch.float16
        self.scaler = torch.amp.GradScaler(self.sums.device.type, enabled=on)
        if on:  # torch's fused SGD leaves momentum uninitialised where it refuses the first step
            for parameter in self.optimizer.param_groups[0]["params"]:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @property
    def network(self):
        """The network to evaluate and to keep: the averaged weights where the recipe has them."""
        return self.average or self.model

    def update_average(self):
        """Let the average follow the model.  torch's AveragedModel counts its updates on the CPU,
        which makes a GPU wait twice a step; `step` knows as well whether this is the first one.
        """
        ours, theirs = (list(m.state_dict().values()) for m in (self.average, self.model))
        floats = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
        if self.step == 0:
            torch._foreach_copy_(ours, theirs)
        else:
            follow = get_ema_multi_avg_fn(self.recipe.ema_decay)
            follow([ours[i] for i in floats], [theirs[i] for i in floats], None)

    def metrics(self):
        """lr, train_loss and train_top1 (percent), means over the epoch's images so far.

        Waits for the device and, with several processes, for all of them.  Raises
        FloatingPointError when a loss or a gradient was not finite; the weights are then those
        before that step.
        """
        loss, right, bad = distributed.total_(self.sums.clone()).tolist()
        if bad:  # the first one refused itself and all steps after it
            raise FloatingPointError(
                f"the training loss or a gradient is not finite in step "
                f"{self.step + 1 - round(bad / distributed.size())}, in epoch "
                f"{self.epoch + (self.batch > 0)}; lower --learning-rate (now "
                f"{self.recipe.learning_rate:g}) or lengthen --warmup, and start anew with "
                f"--overwrite"
            )
        seen = max(1, self.seen)
        return {"lr": self.rate, "train_loss": loss / seen, "train_top1": 100 * right / seen}

    def state_dict(self):
        """All that `load_state_dict` needs.  With several processes each of them has to ask."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "sums": distributed.total_(self.sums.clone()).cpu(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state):
        """Stand where another TrainState of the same model, recipe and seed stood."""
        for name in _COUNTERS:
            setattr(self, name, type(getattr(self, name))(state[name]))  # a ValueError for a text
        sums = state["sums"].view(3)  # over all processes; `copy_` would take a number as well
        self.sums.copy_(sums).mul_(distributed.is_first())
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state.get("scaler"))


_COUNTERS = ("epoch", "batch", "step", "images", "seen", "rate")


def fit(state, images, labels, augment, compiler=None):
    """Train `state.model` to the end of its recipe; yields `state` after every step.

    state     TrainState, new or loaded; a model that is partly frozen (requires_grad) computes
              as in evaluation, so that batch norm's statistics stay as well
    images    uint8 (N,S,S,3): data.Images or a tensor; an image may stand there several times
    labels    (N,) int64, or (N,C) float32, class probabilities
    augment   (uint8 batch, labels) -> (float batch (B,3,S,S), targets (B,) or (B,C))
    compiler  such as torch.compile: makes a faster form, with the same weights, of the network that
              is trained; whoever evaluates the network runs it as it is

    A step whose loss or gradient is not finite changes no weight, nor does any step after it;
    `state.metrics()` raises FloatingPointError from then on.  With float16 a gradient that is not
    finite costs its step and halves the loss scale; only such a loss is an error.
    """
    model, recipe, optimizer = state.model, state.recipe, state.optimizer
    device, frozen = state.sums.device, not all(p.requires_grad for p in model.parameters())
    network = distributed.parallel(model)
    network = compiler(network) if compiler else network
    steps, batch_size = count_steps(len(labels), recipe)
    while state.epoch < recipe.epochs:
        batches = epoch_batches(len(labels), recipe, state.seed, state.epoch)
        if state.batch == 0:
            state.sums.zero_()
            state.seen = 0
        for index, target, weight in _shares(batches, labels, images.device, device, state.batch):
            model.train(not frozen)  # whoever looked at the last step may have evaluated it
            _seed(device, _mix(state.seed, state.step, "step") + distributed.rank())
            state.rate = optimizer.param_groups[0]["lr"] = learning_rate(recipe, state.step, steps)

            batch = _moved(images[index], device)
            batch, mixed_target = augment(batch, target)
            batch = _resized(batch, input_side(recipe, state.step, steps, batch.shape[-1]))
            with _autocast(device, state.precision):
                logits = network(batch)
            loss = F.cross_entropy(logits, mixed_target, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            state.scaler.scale(loss * weight).backward()
            refused = _change_weights(state, loss)
            if state.average:
                state.update_average()

            # Accuracy uses a mixed image's first label and a soft label's largest entry.
            hard = target if target.dim() == 1 else target.argmax(1)
            right = (logits.detach().argmax(1) == hard).sum()
            state.sums += torch.stack([loss.detach() * len(index), right, refused])
            state.seen += batch_size
            state.images += batch_size
            state.step += 1
            state.batch += 1
            if state.batch == len(batches):
                state.epoch, state.batch = state.epoch + 1, 0
            yield state


def epoch_batches(count, recipe, seed, epoch):
    """The positions of the examples of each step of epoch `epoch`: int64 (steps, batch size).

    All batches of a training have the same size: a GPU compiles and tunes its kernels for each size
    anew, and a last batch of one image would break batch norm.  What does not fill a batch at the
    end of an epoch goes into the first batch of the next one, so every example comes up equally
    often; only what is left at the very end is dropped.  Of 10 images in batches of 4, epoch 0 has
    2 batches and carries 2 images over, epoch 1 has 3 batches.
    """
    images = count * recipe.passes  # in an epoch
    size = min(recipe.batch_size, images)
    first, last = epoch * images // size, (epoch + 1) * images // size  # steps
    order = _order(count, recipe.passes, seed, epoch)
    if carried := epoch * images - first * size:
        before = _order(count, recipe.passes, seed, epoch - 1)
        order = torch.cat([before[-carried:], order])
    return order[: (last - first) * size].view(-1, size)


def count_steps(count, recipe):
    """Optimizer steps of a whole training on `count` examples, and images in each."""
    size = min(recipe.batch_size, count * recipe.passes)
    return recipe.epochs * count * recipe.passes // size, size


def _order(count, passes, seed, epoch):
    """The order of an epoch's examples: a permutation for each pass."""
    generator = torch.Generator().manual_seed(_mix(seed, epoch, "order"))
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])


def _shares(batches, labels, images_device, device, first):
    """This process's share of the batches from `first` on: (index, labels, weight) each.

    The weight is that of the share's mean loss in the mean over the processes: 1, where a batch can
    be shared evenly.  All positions and labels of an epoch are copied to their devices at once: a
    copy a step would make a GPU wait.
    """
    mine = batches[first:].tensor_split(distributed.size(), dim=1)[distributed.rank()]
    weight = mine.shape[1] * distributed.size() / batches.shape[1]
    index, target = mine.to(images_device), labels[mine].to(device)
    return ((*pair, weight) for pair in zip(index, target, strict=True))


def _moved(batch, device):
    """The batch on `device`.  A GPU fetches it from pinned memory while the CPU goes on; from other
    memory the CPU would wait until the GPU has done all its earlier work.
    """
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def _change_weights(state, loss):
    """The optimizer's step, which changes nothing where it is refused; -> 1.0 for refused, else 0.

    The fused optimizer reads `found_inf` on the device, so nothing waits.  Several processes share
    gradients, not losses, and have to decide alike, so they look at the gradients' L2 norm alone,
    which a CPU has in a tenth of the time of the largest gradient.  A norm above 10^19 counts as
    not finite, too, since float32 does not hold its square.
    """
    optimizer, refused_before = state.optimizer, state.sums[2] > 0
    if state.scaler.is_enabled():
        state.scaler.step(optimizer)
        state.scaler.update()
        return (~loss.detach().isfinite() | refused_before).float()
    (group,) = optimizer.param_groups
    gradients = [p.grad for p in group["params"] if p.grad is not None]
    finite = torch.nn.utils.get_total_norm(gradients).isfinite()
    if distributed.size() == 1:
        finite &= loss.detach().isfinite()
    optimizer.found_inf = (~finite | refused_before).float()
    optimizer.step()
    return optimizer.found_inf


def _mix(seed, number, purpose):
    """A seed for one step's or one epoch's random numbers, unlike its neighbours'."""
    salt = {"order": 1, "step": 2}[purpose]
    return (seed * 1_000_003 + number * 7919 + salt * 104_729) % 2**63


def _seed(device, number):
    """torch.manual_seed, which on a CPU costs a tenth of a millisecond more than is needed."""
    seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seed(number)


def learning_rate(recipe, step, steps):
    """The rate of optimizer step `step` (from 0) of `steps`, by `recipe.schedule`."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        risen = (step + 1) / warmup
        return recipe.learning_rate * (WARMUP_FROM + (1 - WARMUP_FROM) * risen)
    done = (step - warmup) / max(1, steps - warmup)  # 0 <= done < 1
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "halving":
        return recipe.learning_rate * 0.5 ** int(done * (HALVINGS + 1))
    if recipe.schedule == "steps":
        return recipe.learning_rate * 0.1 ** int(done * (DROPS + 1))
    raise ValueError(f"unknown schedule {recipe.schedule!r}; choose from {', '.join(SCHEDULES)}")


def input_side(recipe, step, steps, side):
    """Pixels a side of the images of optimizer step `step` (from 0) of `steps`; `side` is that of
    the whole images.  Progressive resizing, after Howard's entry to DAWNBench (2018).
    """
    done = 0.0
    for pixels, share in recipe.sizes(side):
        done += share * steps
        if step < round(done):
            return pixels
    return side


def _resized(batch, side):
    """The float images (B,3,S,S) at `side` pixels a side, each pixel the mean of what it covers."""
    if side == batch.shape[-1]:
        return batch
    return F.interpolate(batch, (side, side), mode="area").contiguous(
        memory_format=torch.channels_last
    )


def _autocast(device, precision):
    """The one path for all precisions."""
    low = precision != torch.float32
    return torch.autocast(device.type, precision if low else torch.bfloat16, enabled=low)


# --- prediction ---------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    model, images, prepare, batch_size=512, start=0, stop=None, precision=torch.float32
):  # fmt: skip
    """Logits of the images `start` to `stop` - 1: yields (first position, float32 (b,C)).

    images     as in `fit`
    prepare    uint8 batch -> float batch
    precision  as in TrainState

    The logits stay on the device.  Every batch begins at a multiple of `batch_size` if `start` is
    one, so a walk over a range of the images gives the same bits as a walk over all.
    """
    device = next(model.parameters()).device
    use_products(model.eval())
    stop = len(images) if stop is None else stop
    for first in range(start, stop, batch_size):
        batch = prepare(_moved(images[first : min(first + batch_size, stop)], device))
        with _autocast(device, precision):
            logits = model(batch)
        yield first, logits


def accuracy(logits, labels):
    """logits (N,C), labels (N,) -> top-1 and top-5 in percent (all classes count for C < 5)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hit = best == labels[:, None]
    return tuple(100 * hits.sum().item() / len(labels) for hits in (hit[:, 0], hit))
