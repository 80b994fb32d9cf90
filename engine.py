"""The one training loop and the one prediction loop, schedules, precision.

Steps 1, 3 and 4 differ in their arguments only.  `fit` is a generator: it yields about once a
second and after every epoch, and whoever asked for the training logs, saves or stops there.  The
random numbers of a step follow from (seed, step) and the order of an epoch from (seed, epoch), so
a run resumed from any step goes on with the same bits (on a GPU: with deterministic kernels).

Under torchrun every process takes its part of each batch, and the gradient is that of the whole
batch: the number of processes changes neither the recipe nor the order of the examples, but the
random augmentations, and batch norm, whose statistics are those of a process's part.
"""

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import distributed

SCHEDULES = ("cosine", "halving", "steps")
HALVINGS = 13  # paper: the pre-training rate is halved 13 times, whatever the length
DROPS = 3  # paper: fine-tuning divides its rate by ten three times
WARMUP_FROM = 1 / 6  # paper: warm-up from 0.1 to 0.6


class Progress(NamedTuple):
    """Where a training stands."""

    epoch: int  # epochs finished
    step: int  # optimizer steps done since the start of the training
    images: int  # images processed since the start of the training
    loss: float  # mean over this epoch's images so far
    metrics: dict | None  # of the epoch that ends here: train_loss, train_top1 (percent), lr
    model: torch.nn.Module  # to evaluate and to save: the averaged weights where they are asked for
    state: Callable[[], dict]  # everything that `fit` needs to go on from here


def autocast_dtype(device):
    """bfloat16 where it is the faster choice on `device`, else None for plain float32.

    A CPU needs AMX or avx512_bf16: without them oneDNN emulates bf16, slower than float32.
    ONEDNN_MAX_CPU_ISA, which makes a CPU behave like an older one, is heeded.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu":
        return None
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    allowed = isa in ("DEFAULT", "ALL") or "BF16" in isa or "AMX" in isa or "FP16" in isa
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # no public name in 2.11 - 2.15
    able = any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return torch.bfloat16 if allowed and able else None


def learning_rate(recipe, step, steps):
    """The rate of optimizer step `step` (from 0) of `steps`, by `recipe.schedule`."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        share = (step + 1) / warmup
        return recipe.learning_rate * (WARMUP_FROM + (1 - WARMUP_FROM) * share)
    done = (step - warmup) / max(1, steps - warmup)  # 0 <= done < 1
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "halving":
        return recipe.learning_rate * 0.5 ** int(done * (HALVINGS + 1))
    if recipe.schedule == "steps":
        return recipe.learning_rate * 0.1 ** int(done * (DROPS + 1))
    raise ValueError(f"unknown schedule {recipe.schedule!r}; choose from {', '.join(SCHEDULES)}")


def epoch_batches(rows, recipe, seed, epoch):
    """The positions of each step's examples in epoch `epoch`: a list of index tensors.

    The batches' sizes differ by one at most: a last batch of one image would break batch norm.
    """
    generator = torch.Generator().manual_seed(_mix(seed, epoch, "order"))
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(recipe.passes)])
    return order.tensor_split(max(1, math.ceil(len(order) / recipe.batch_size)))


def _mix(seed, number, purpose):
    """A seed for one step's or one epoch's random numbers, unlike its neighbours'."""
    salt = {"order": 1, "step": 2}[purpose]
    return (seed * 1_000_003 + number * 7919 + salt * 104_729) % 2**63


def fit(model, images, rows, labels, recipe, augment, *, seed=0, state=None):
    """Train `model` on the examples (images[rows[i]], labels[i]); a generator of Progress.

    images    uint8 (N,S,S,3): a tensor on the model's device, or anything that gives a batch for
              `images[index]` and has a `device`, such as data.Images
    rows      (R,) int64, positions in `images`; an image with several labels stands in several rows
    labels    (R,) int64
    recipe    an object with the fields of presets.Training
    augment   (uint8 batch, labels) -> (float batch (B,3,S,S), targets (B,) or (B,C))
    state     of an earlier Progress, to go on from there

    Raises FloatingPointError when a loss or the first layer's gradient is not finite, at the next
    Progress; the parameters are then those before that step.
    """
    device, rank, size = next(model.parameters()).device, distributed.rank(), distributed.size()
    optimizer, averaged = _optimizer(model, recipe), _averaged(model, recipe)
    epoch = step = first = 0  # epochs finished, optimizer steps done, next batch of the epoch
    # Loss sum, correct, non-finite steps: together the processes' are those of the epoch so far.
    totals = torch.zeros(3, device=device)
    if state:
        epoch, step, first = state["epoch"], state["step"], state["batch"]
        totals = state["totals"].to(device, copy=True) * (rank == 0)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if averaged:
            averaged.load_state_dict(state["averaged"])
    network = distributed.parallel(model)
    batches = epoch_batches(len(rows), recipe, seed, epoch)
    steps, seen = recipe.epochs * len(batches), sum(map(len, batches[:first]))
    sums = totals  # over the processes, when they were last asked

    def snapshot():
        return {
            "epoch": epoch,
            "step": step,
            "batch": first,
            "totals": sums.cpu(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "averaged": averaged.state_dict() if averaged else None,
        }

    def progress(rate=None):
        """`rate`, of the last step: at the end of an epoch, whose metrics are wanted."""
        nonlocal sums
        sums = distributed.total_(totals.clone())
        loss_sum, correct, bad = sums.tolist()  # waits for the device, as no step does
        if bad:
            raise FloatingPointError(
                f"the training loss is not finite just before step {step} of epoch {epoch + 1}; "
                f"lower --learning-rate (now {recipe.learning_rate:g}) or lengthen --warmup"
            )
        images_done = epoch * len(rows) * recipe.passes + seen
        loss, shown = loss_sum / max(1, seen), averaged.module if averaged else model
        metrics = None
        if rate is not None:
            metrics = {"lr": rate, "train_loss": loss, "train_top1": 100 * correct / seen}
        distributed.same_(shown.buffers())  # each process's batch norm has seen its own part
        return Progress(epoch, step, images_done, loss, metrics, shown, snapshot)

    yield progress()
    clock = _Clock(step)
    while epoch < recipe.epochs:
        model.train()
        examples = _place(batches, rows, labels, images.device, device)
        while first < len(batches):
            _seed(device, _mix(seed, step, "step") + rank)
            index, target = examples[first]
            share = len(index) * size / len(batches[first])  # 1, but for a batch of uneven parts
            batch = images[index].to(device, non_blocking=True)
            batch, soft_target = augment(batch, target)
            rate = learning_rate(recipe, step, steps)
            loss, logits = _step(
                network, optimizer, batch, soft_target, rate, recipe.label_smoothing, share,
                totals[2] > 0,
            )  # fmt: skip
            if averaged:
                averaged.update_parameters(model)
            correct = (logits.argmax(1) == target).sum()
            totals += torch.stack([loss * len(index), correct, optimizer.found_inf])
            seen += len(batches[first])
            step, first = step + 1, first + 1
            if first < len(batches) and clock.second_over(step):
                yield progress()
                model.train()  # whoever looked may have evaluated it
                clock = _Clock(step)
        done = progress(rate)
        epoch, first, seen = epoch + 1, 0, 0
        sums = totals.zero_().clone()
        batches = epoch_batches(len(rows), recipe, seed, epoch)
        yield done._replace(epoch=epoch)
        clock = _Clock(step)


def _place(batches, rows, labels, images_device, device):
    """This process's part of each of an epoch's batches: [(positions in the images, labels)].

    Each where it is needed, copied in one go: a copy a step would make a GPU wait.
    """
    parts = [index.tensor_split(distributed.size())[distributed.rank()] for index in batches]
    order, sizes = torch.cat(parts), list(map(len, parts))
    where, targets = rows[order].to(images_device), labels[order].to(device)
    return list(zip(where.split(sizes), targets.split(sizes), strict=True))


def _seed(device, number):
    """torch.manual_seed, for the CPU alone without what that costs: a tenth of a millisecond."""
    seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seed(number)


class _Clock:
    """Tells when a second is over, in all processes at the same step.

    They have to agree on the time, so they ask for it seldom: each time when, going by the steps
    so far, a second should be over.
    """

    def __init__(self, step):
        self.begun, self.began = step, time.monotonic()
        self.ask_at = step + 1

    def second_over(self, step):
        if step < self.ask_at:
            return False
        seconds = distributed.largest(time.monotonic() - self.began)
        if distributed.size() > 1:
            steps_a_second = (step - self.begun) / max(seconds, 1e-3)
            self.ask_at = max(step + 1, self.begun + round(steps_a_second))
        return seconds > 1


def _step(model, optimizer, batch, target, rate, label_smoothing, share, stopped):
    """One optimizer step -> loss, logits, detached.  `stopped` (a bool tensor): change nothing.

    share: by which this process's mean loss counts in the mean over the processes

    The fused update leaves itself out, on the device, when optimizer.found_inf is 1.  What is not
    finite flows back through the layers, so the gradient of the first one is looked at.
    """
    with _autocast(batch.device):
        logits = model(batch)
    loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    (loss if share == 1 else loss * share).backward()
    loss, first_layer = loss.detach(), next(model.parameters()).grad
    finite = first_layer.isfinite().all()
    if distributed.size() == 1:  # several have to decide alike, and they share the gradient only
        finite &= loss.isfinite()
    optimizer.found_inf = (~finite | stopped).float()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    return loss, logits.detach()


def _optimizer(model, recipe):
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=0.9,  # the paper names momentum, not its value
        nesterov=True,  # not in the paper: usual for CIFAR
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def _averaged(model, recipe):
    """An exponential moving average of weights and buffers, or None."""
    if not recipe.ema_decay:
        return None
    average = get_ema_multi_avg_fn(recipe.ema_decay)
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _autocast(device):
    """The one path for both precisions."""
    dtype = autocast_dtype(device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


@torch.inference_mode()
def predict(model, images, prepare, batch_size=512, start=0, stop=None):
    """Logits of all images in order: yields (first position, float32 (b,C) on the device).

    images: as in `fit`; prepare: uint8 batch -> float batch.  Batches always begin at multiples of
    `batch_size`, if `start` is one, so a walk over a part of the images gives the same bits.
    """
    device = next(model.parameters()).device
    model.eval()
    stop = len(images) if stop is None else stop
    for first in range(start, stop, batch_size):
        index = torch.arange(first, min(first + batch_size, stop), device=images.device)
        batch = prepare(images[index].to(device, non_blocking=True))
        with _autocast(device):
            logits = model(batch)
        yield first, logits


def accuracy(logits, labels):
    """logits (N,C), labels (N,) -> top-1 and top-5 in percent (all classes count for C < 5)."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hit = best == labels[:, None]
    return tuple(100 * hits.sum().item() / len(labels) for hits in (hit[:, 0], hit))
