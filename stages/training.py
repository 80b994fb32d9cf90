"""Steps 1, 3 and 4: follow a training, log it, save it, test once at the end."""

import math
import time
from dataclasses import dataclass
from itertools import chain

import torch
from tqdm import tqdm

import distributed
from data import Augment, Images, LabelledImages, LabelledSet, Normalise
from engine import TrainState, accuracy, count_steps, fit
from models import build_model, head_of
from presets import Training

from . import checkpoint, signals
from .device import Compute
from .evaluation import evaluate, test_once, write_predictions
from .folder import STAGES
from .lifetime import OpenStage, running
from .whole_run import chain_settings

LOOK_SECONDS = 1  # between two looks at a training: progress bar, signals
SAVE_SECONDS = 30  # between two saves: one of a ResNet-50 is 190 MB
# On a GPU: images trained on for each validation image, at least.  To evaluate an image takes about
# a third of a training step's time for it, so that all evaluations take 2 % of the time.
TRAINED_PER_EVALUATED = 20
_SHOWN = 32  # training images in TensorBoard


@dataclass
class TrainingJob:
    """A training stage with everything settled, before its folder is touched."""

    stage: OpenStage
    config: dict  # config.json, see config.config_of
    compute: Compute
    recipe: Training
    labelled: LabelledSet  # for its class names and its test images
    val: LabelledImages
    images: Images  # the training examples, (N,S,S,3)
    labels: torch.Tensor  # (N,) int64, true or pseudo-labels; or (N,C) float32, probabilities
    weights: dict | None = None  # a state_dict to start from
    weights_source: str = ""  # where it came from, for an error
    linear: bool = False  # train the head alone
    weak_pretrain: dict | None = None  # of result.json: the training before this one

    @property
    def classes(self):
        return self.labelled.classes

    @property
    def images_to_process(self):
        return math.prod(count_steps(len(self.labels), self.recipe))


def run(job, open_board):
    """Train, log, save, test; -> the content of result.json.  Writes to the stage's folder.

    open_board: report.board.Board
    """
    check_batches(job.recipe, len(job.labels))
    job.recipe.sizes(job.config["input_size"])  # raises ValueError
    path = job.stage.folder / "resume.pt"
    state, device, saved = _initial_state(job), job.compute.device, {}
    if job.stage.saved and path.exists():
        with checkpoint.resuming(path):
            saved = checkpoint.load(path)
            state.load_state_dict(saved["fit"])
            saved = {"log": None, **saved, "seconds": float(saved["seconds"])}
    normalise = Normalise(*job.config["normalisation"].values(), device)
    recipe = job.recipe
    mixing = recipe.mixup, recipe.cutmix, recipe.mixed
    augment = Augment(normalise, recipe.augment, len(job.classes), *mixing)

    progress = state.epoch, state.images, saved.get("log")
    with running(job.stage, job.config, open_board, *progress) as log:
        images, val = job.images.to(device), job.val.images.to(device)
        with signals.saving_first():
            metrics, seconds = train_and_log(job, log, state, images, val, augment, saved)
        test = job.labelled.test
        logits, features = test_once(state, test.images, normalise)
        val_logits = evaluate(state, val, normalise)
        result = _result(job, state.network, logits, metrics, seconds)
        if log:
            predicted = {"test": (logits, test.labels), "val": (val_logits, job.val.labels)}
            write_predictions(job.stage.folder / "predictions.npz", predicted)
            log.board.test_results(logits, test.labels, job.classes, state.images, test.images)
            predicted = logits.argmax(1)
            log.board.test_features(features, test.labels, test.images, job.classes, predicted)
            _publish(job, log, state.network, result)
    return result


def check_batches(recipe, count):
    """ValueError when some process would have fewer than two images of a batch, the least that
    batch norm takes.  count: training examples
    """
    _, batch_size = count_steps(count, recipe)
    processes = distributed.size()
    if processes > 1 and batch_size < 2 * processes:
        raise ValueError(
            f"a batch of {batch_size} images cannot be shared by {processes} processes, two images "
            f"each at least; start fewer, or raise --batch-size (now {recipe.batch_size})"
        )


def _initial_state(job):
    """The network before its first step, and what trains it."""
    member, number = job.config.get("member", 0), list(STAGES).index(job.stage.name)
    seed = 1000 * job.config["seed"] + 10 * member + number  # no two stages alike
    torch.manual_seed(seed)
    model = build_model(job.recipe.model, len(job.classes))
    if job.weights is not None:
        checkpoint.start_from(model, job.weights, job.weights_source)
    if job.linear:
        model.requires_grad_(False)
        head_of(model)[1].requires_grad_(True)
    model.to(job.compute.device, memory_format=torch.channels_last)
    return TrainState(model, job.recipe, seed, job.compute.precision)


def epochs_between_evaluations(device, recipe, images, val_images):
    """Epochs from one evaluation on `val_images` images to the next; the last epoch has one anyway.

    images: of the training.  An epoch without one has null for val_top1 and val_top5.  On a CPU,
    where epochs are long and few, every epoch has one.
    """
    if device.type == "cpu":
        return 1
    return max(1, math.ceil(TRAINED_PER_EVALUATED * val_images / (images * recipe.passes)))


def train_and_log(job, log, state, images, val, augment, saved):
    """Follow `fit`: a line an epoch, a save every SAVE_SECONDS, at a stop and at the end.

    log: StageLog, None but in the first process;  images, val: of the training and of validation,
    on the device where they fit;  saved: the content of resume.pt, or {}
    -> the last epoch's metrics, and the seconds spent in all
    """
    spent, metrics = (saved["seconds"], saved["metrics"]) if saved else (0.0, {})
    began = last_save = epoch_began = time.monotonic()
    epoch_from = state.images
    clock = distributed.Clock(LOOK_SECONDS, state.step)
    compiler = torch.compile if job.config["compile"] else None
    to_show = log if job.stage.saved is None else None
    bar = tqdm(
        total=job.images_to_process, initial=state.images, unit="img", unit_scale=True,
        disable=None, desc=job.stage.name,
    )  # fmt: skip
    steps = fit(state, images, job.labels, augment, compiler)
    if state.epoch > metrics.get("epoch", 0):  # a signal cut its evaluation short
        steps = chain([state], steps)
    for _ in steps:
        epoch_ends, done = state.batch == 0, state.epoch == job.recipe.epochs
        if not (clock.over(state.step) or epoch_ends):
            continue
        numbers = state.metrics()  # waits for the device
        bar.update(state.images - bar.n)
        bar.set_postfix(epoch=state.epoch, loss=f"{numbers['train_loss']:.3f}", refresh=False)
        if to_show:  # now, so that drawing does not delay the start
            _show_batch(job, to_show.board, images, augment)
            to_show = None
        if epoch_ends:
            seconds, count = time.monotonic() - epoch_began, state.images - epoch_from
            if ended := _epoch_metrics(job, state, val, augment.normalise, numbers):
                metrics = ended
                if log:
                    timed = {**metrics, "seconds": seconds, "images_per_second": count / seconds}
                    log.epoch(timed, state.images)
                    if bar.disable:  # no terminal: a file, a notebook, a job of a cluster
                        print(_epoch_line(timed, job.recipe.epochs), flush=True)
            epoch_began, epoch_from = time.monotonic(), state.images
        # Asked once: a signal after this belongs to the next look.  All processes stop together.
        signum = distributed.largest(signals.interruption() or 0)
        overdue = distributed.largest(time.monotonic() - last_save) > SAVE_SECONDS
        if overdue or signum or done:
            _save(job, log, state, metrics, spent + time.monotonic() - began)
            last_save = time.monotonic()
        if signum:
            distributed.wait()  # torchrun ends the others once one has left
            signals.stop(bar, job.stage.folder, signum)
    bar.close()
    return metrics, spent + time.monotonic() - began


def _epoch_metrics(job, state, val, normalise, numbers):
    """The metrics of the epoch that has just ended, of validation where it is due; None where a
    signal has cut its evaluation short.
    """
    recipe, top1, top5 = job.recipe, None, None
    every = epochs_between_evaluations(job.compute.device, recipe, len(job.labels), len(val))
    if state.epoch == recipe.epochs or state.epoch % every == 0:
        logits = evaluate(state, val, normalise)
        if logits is None:
            return None
        top1, top5 = accuracy(logits, job.val.labels)
    return {"epoch": state.epoch, **numbers, "val_top1": top1, "val_top5": top5}


def _epoch_line(metrics, epochs):
    top1 = metrics["val_top1"]
    validation = "" if top1 is None else f", validation {top1:.2f} %"
    loss, rate = metrics["train_loss"], metrics["images_per_second"]
    return f"epoch {metrics['epoch']} of {epochs}: loss {loss:.3f}{validation}, {rate:.0f} images/s"


def _save(job, log, state, metrics, seconds):
    whole = {"fit": state.state_dict(), "metrics": metrics, "seconds": seconds}
    if log:
        checkpoint.save({**whole, "log": log.logged}, job.stage.folder / "resume.pt")


def _result(job, network, logits, metrics, seconds):
    """result.json of a training stage."""
    top1, top5 = accuracy(logits, job.labelled.test.labels)
    return {
        "stage": job.stage.name,
        "dataset": job.labelled.name,
        "model": job.recipe.model,
        "seed": job.config["seed"],
        "num_parameters": sum(p.numel() for p in network.parameters()),
        "images_processed": job.images_to_process,
        "val_top1": round(metrics["val_top1"], 4),
        "test_top1": round(top1, 4),
        "test_top5": round(top5, 4),
        "seconds": round(seconds, 2),
        "images_per_second": round(job.images_to_process / seconds, 2),
        **({"weak_pretrain": job.weak_pretrain} if job.weak_pretrain else {}),
    }


def _publish(job, log, network, result):
    """Write model.pt, then hparams and result.json."""
    mean, std = job.config["normalisation"].values()
    parent = job.config["parent"]
    metrics = {name: result[name] for name in ("val_top1", "test_top1", "test_top5")}
    checkpoint.save_model(
        job.stage.folder / "model.pt",
        checkpoint.Checkpoint(
            network, job.recipe.model, list(job.classes), mean, std, job.config["input_size"],
            metrics, parent and {name: parent[name] for name in ("stage", "sha256")},
        ),
    )  # fmt: skip
    log.finish(result, chain_settings(job.stage.folder, job.config))


def _show_batch(job, board, images, augment):
    """Training images as the network sees them: augmented, normalisation undone."""
    torch.manual_seed(0)
    index = torch.linspace(0, len(job.labels) - 1, min(_SHOWN, len(job.labels))).long()
    device = augment.normalise.mean.device
    batch = images[index.to(images.device)].to(device)
    batch, targets = augment(batch, job.labels[index].to(device))
    mean, std = map(torch.tensor, job.config["normalisation"].values())
    pixels = (batch.cpu().permute(0, 2, 3, 1) * std + mean).clamp(0, 1) * 255
    board.training_batch(pixels.to(torch.uint8).numpy(), targets.cpu(), job.classes)
