"""Ways to put the same images through the same network, each an endless generator.

float32,     bare: one fixed normalised batch on the device, forward, backward, update; no data, no
bfloat16     metrics.  Our memory format and optimizer.  The one in the precision that the programs
             choose is the most that `ours` can reach
ours         engine.fit with crop-flip, engine.predict: images as uint8 on the device
dataloader   the step of `ours`, fed as torchvision's references do: PIL, v2 transforms, a worker
             process a core.  Only the way of the data differs from `ours`; the images are decoded
             already, which favours it
predecessor  the project that this one re-creates, after its description: float32, NCHW, v1
             transforms, two workers, loss and accuracy read back every step, in inference every
             score and label read back alone.  cuDNN's TF32 and autotuning are on, as for all

A `next` is one optimizer step or one batch of inference and gives the number of its images.  On a
CPU the project also tells malloc to keep what is freed (stages/device.py); that holds for the
process, so that the other ways gain from it too, and the ratios understate what it gives.
"""

import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as v1
from torchvision.transforms import v2

import engine
from data.augment import Augment, Normalise
from data.images import Images
from models.convolution import use_products
from models.networks import build_model
from presets import Training
from stages.device import settle_compute

CLASSES = 100
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TOP = 10  # scores an image that step 2 keeps
_BYTES = 2**28  # of synthetic images; far more than the caches hold
_RECIPE = Training(epochs=10**6, learning_rate=0.01, warmup=0.0)  # crop-flip; never ends


@dataclass(frozen=True)
class Job:
    """What is measured: a network by its name, pixels a side, images a step, where and how."""

    model: str
    input_size: int
    batch_size: int
    device: torch.device
    precision: torch.dtype = torch.float32  # of `ours` and `dataloader`


def settled_job(model, input_size, batch_size, device, threads=None):
    """A Job with the precision that the programs choose, and their number of threads, set."""
    auto = {"precision": "auto", "threads": threads}
    network = build_model(model, CLASSES)
    compute = settle_compute(device, auto, None, network, input_size, batch_size)
    return Job(model, input_size, batch_size, device, compute.precision)


def examples(job):
    """Noise: uint8 images (N,S,S,3), int64 labels (N,); N is a multiple of the batch size, 50,000
    at most and four batches at least.
    """
    count = min(50_000, _BYTES // (3 * job.input_size**2)) // job.batch_size
    shape = (max(4, count) * job.batch_size, job.input_size, job.input_size, 3)
    random = np.random.default_rng(0)
    return random.integers(0, 256, shape, np.uint8), random.integers(0, CLASSES, shape[0])


def network(job, memory_format=torch.channels_last):
    torch.manual_seed(0)
    return build_model(job.model, CLASSES).to(job.device, memory_format=memory_format)


def optimizer(model, **kind):
    """engine.fit's update; `kind`: foreach=True or False instead of fused=True."""
    return torch.optim.SGD(
        model.parameters(),
        lr=_RECIPE.learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=_RECIPE.weight_decay,
        **kind or {"fused": True},
    )


def forward(model, images, precision):
    low = precision != torch.float32
    dtype = precision if low else torch.bfloat16
    with torch.autocast(images.device.type, dtype, enabled=low):
        return model(images)


def train_step(model, update, images, labels, precision, scaler=None):
    """One optimizer step -> loss, logits."""
    logits = forward(model, images, precision)
    loss = F.cross_entropy(logits, labels)
    update.zero_grad()
    if scaler:
        scaler.scale(loss).backward()
        scaler.step(update)
        scaler.update()
    else:
        loss.backward()
        update.step()
    return loss.detach(), logits.detach()


# --- bare ---------------------------------------------------------------------------------------


def _fixed(job, channels_last, compiled, products):
    """A network, one batch of normalised images, its labels: in the chosen memory format."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    images, labels = examples(job)
    images = torch.from_numpy(images[: job.batch_size]).to(job.device)
    images = Normalise(MEAN, STD, job.device)(images).contiguous(memory_format=memory_format)
    model = network(job, memory_format)
    if products:
        use_products(model)
    if compiled:
        model.compile()
    return model, images, torch.from_numpy(labels[: job.batch_size]).to(job.device)


def train_bare(
    job, precision=None, channels_last=True, compiled=False, products=False, scaled=False, **kind
):
    """precision: a dtype, None for the job's;  products: see models/convolution.py;  scaled: the
    loss by a gradient scaler, for float16;  kind: see `optimizer`
    """
    model, images, labels = _fixed(job, channels_last, compiled, products)
    update = optimizer(model, **kind)
    scaler = torch.amp.GradScaler(job.device.type) if scaled else None
    while True:
        train_step(model, update, images, labels, precision or job.precision, scaler)
        yield len(images)


def infer_bare(job, precision=None, channels_last=True, compiled=False, products=False):
    model, images, _ = _fixed(job, channels_last, compiled, products)
    model.eval()
    while True:
        with torch.inference_mode():  # not across the yield, which other ways run behind
            forward(model, images, precision or job.precision)
        yield len(images)


# --- ours ---------------------------------------------------------------------------------------


def train_ours(job, resident=True, compiled=False):
    """resident: the images on the device (where half of its memory holds them) or streamed."""
    images, labels = examples(job)
    images = Images.of(images).to(job.device) if resident else Images.of(images)
    recipe = Training(**vars(_RECIPE) | {"batch_size": job.batch_size})
    augment = Augment(Normalise(MEAN, STD, job.device), recipe.augment, CLASSES)
    model = network(job)
    if compiled:
        model.compile()
    state = engine.TrainState(model, recipe, precision=job.precision)
    for _ in engine.fit(state, images, torch.from_numpy(labels), augment):
        yield job.batch_size


def infer_ours(job):
    model, images = network(job), Images.of(examples(job)[0])  # streamed, as step 2 does
    prepare = Normalise(MEAN, STD, job.device)
    while True:
        chunks = engine.predict(model, images, prepare, job.batch_size, precision=job.precision)
        for _, logits in chunks:
            yield len(logits)


# --- dataloader and predecessor -----------------------------------------------------------------


class Pictures(Dataset):
    """The examples as torchvision's data sets give them: one PIL image at a time."""

    def __init__(self, job, transform):
        self.images, self.labels = examples(job)
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def workers(way):
    """Worker processes of a way."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"dataloader": cores, "predecessor": 2}.get(way, 0)


def batches(job, way, transform):
    """Batches on the device from worker processes, in an epoch that never ends: the start of
    workers, once an epoch, is no part of what is measured.
    """
    pictures = Pictures(job, transform)
    loader = DataLoader(
        pictures,
        job.batch_size,
        sampler=RandomSampler(pictures, replacement=True, num_samples=2**40),
        num_workers=workers(way),
        pin_memory=job.device.type == "cuda" and way == "dataloader",
    )
    for images, labels in loader:
        yield images.to(job.device, non_blocking=True), labels.to(job.device, non_blocking=True)


def _v2(job, augment):
    crop = v2.RandomCrop(job.input_size, padding=job.input_size // 8)
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *last] if augment else last)


def _v1(job, augment):
    crop = v1.RandomCrop(job.input_size, padding=job.input_size // 8)
    last = [v1.ToTensor(), v1.Normalize(MEAN, STD)]
    return v1.Compose([crop, v1.RandomHorizontalFlip(), *last] if augment else last)


def train_dataloader(job):
    model = network(job)
    update = optimizer(model)
    for images, labels in batches(job, "dataloader", _v2(job, augment=True)):
        images = images.contiguous(memory_format=torch.channels_last)
        train_step(model, update, images, labels, job.precision)
        yield len(images)


def infer_dataloader(job):
    model = network(job).eval()
    for images, _ in batches(job, "dataloader", _v2(job, augment=False)):
        with torch.inference_mode():
            forward(model, images.contiguous(memory_format=torch.channels_last), job.precision)
        yield len(images)


def train_predecessor(job):
    model = network(job, torch.contiguous_format)
    update = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    total = correct = 0
    for images, labels in batches(job, "predecessor", _v1(job, augment=True)):
        loss, logits = train_step(model, update, images, labels, torch.float32)
        total += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()
        yield len(images)


def infer_predecessor(job):
    model = network(job, torch.contiguous_format).eval()
    for images, _ in batches(job, "predecessor", _v1(job, augment=False)):
        with torch.no_grad():
            best = model(images).softmax(1).topk(TOP)
        kept = [
            (score.cpu(), label.cpu())
            for scores, labels in zip(*best, strict=True)
            for score, label in zip(scores, labels, strict=True)
        ]
        yield len(kept) // TOP


TASKS = {  # task -> {name: job -> generator}
    "train": {
        "float32": partial(train_bare, precision=torch.float32),
        "bfloat16": partial(train_bare, precision=torch.bfloat16),
        "ours": train_ours,
        "dataloader": train_dataloader,
        "predecessor": train_predecessor,
    },
    "infer": {
        "float32": partial(infer_bare, precision=torch.float32),
        "bfloat16": partial(infer_bare, precision=torch.bfloat16),
        "ours": infer_ours,
        "dataloader": infer_dataloader,
        "predecessor": infer_predecessor,
    },
}
WAYS = tuple(TASKS["train"])
