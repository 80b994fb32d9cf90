"""Steps 1, 3 and 4: follow a training, log it, save it, test once at the end."""

import math
import time
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase
from tqdm import tqdm

import distributed
from data.augment import Augment, Normalise
from data.images import Images
from data.labelled import LabelledImages, LabelledSet
from engine import TrainState, accuracy, count_steps, fit, predict
from files import whole_file
from models.networks import head_of
from presets import Training

from . import checkpoint, program
from .device import Compute
from .lifetime import OpenStage, chain_settings, identity, run_logged

LOOK_SECONDS = 1  # between two looks at a training: progress bar, signals
SAVE_SECONDS = 30  # between two saves: one of a ResNet-50 is 190 MB
# On a GPU: images trained on for each validation image, at least.  Evaluating an
# image takes about a third of the time of training on it, so evaluations take 2 % of the time.
TRAINED_PER_EVALUATED = 20
EVALUATED = 500  # images at a time; it divides 5,000 and 10,000
_SHOWN = 32  # training images in TensorBoard


@dataclass
class TrainingJob:
    """A training stage with everything settled, before its folder is touched."""

    stage: OpenStage
    config: dict  # config.json, see prepare.config_of
    compute: Compute
    recipe: Training
    seed: int  # of the order and of all random augmentations
    network: torch.nn.Module  # before its first step, see `frozen`
    labelled: LabelledSet  # for its class names and its test images
    val: LabelledImages
    images: Images  # the training examples, (N,S,S,3)
    labels: torch.Tensor  # (N,) int64, true or pseudo-labels; or (N,C) float32, probabilities

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
    device, recipe = job.compute.device, job.recipe
    job.network.to(device, memory_format=torch.channels_last)
    state = TrainState(job.network, recipe, job.seed, job.compute.precision)
    saved = take_up(job, state)
    normalise = Normalise(*job.config["normalisation"].values(), device)
    mixing = recipe.mixup, recipe.cutmix, recipe.mixed
    augment = Augment(normalise, recipe.augment, len(job.classes), *mixing)

    progress = state.epoch, state.images, saved.get("log", "")
    with run_logged(job.stage, job.config, open_board, *progress) as log:
        images, val = job.images.to(device), job.val.images.to(device)
        enough = program.enough_memory(recipe.batch_size, " (the learning rate follows)")
        with program.saving_first(), enough:
            metrics, seconds = train_and_log(job, log, state, images, val, augment, saved)
        program.tell("testing and drawing")
        test = job.labelled.test
        logits, features = test_once(state, test.images, normalise)
        val_logits = evaluate(state, val, normalise)
        result = _result(job, state.network, logits, metrics, seconds)
        if log:
            job.stage.check_ours()
            predicted = {"test": (logits, test.labels), "val": (val_logits, job.val.labels)}
            write_predictions(job.stage.folder / "predictions.npz", predicted)
            log.board.test_results(logits, test.labels, job.classes, state.images, test.images)
            predicted = logits.argmax(1)
            log.board.test_features(features, test.labels, test.images, job.classes, predicted)
            _publish(job, log, state.network, result)
    return result


def check_batches(network, recipe, count):
    """ValueError when a process would have fewer than two images of a batch, the least that batch
    norm takes while it is trained.  count: training examples
    """
    norms = any(isinstance(module, _NormBase) for module in network.modules())
    frozen = not all(parameter.requires_grad for parameter in network.parameters())
    least, processes = 2 if norms and not frozen else 1, distributed.size()
    _, batch_size = count_steps(count, recipe)
    if batch_size < least * processes:
        who = "one process" if processes == 1 else f"{processes} processes"
        raise ValueError(
            f"--batch-size: a batch of {batch_size} is too small for {who}, {least} image(s) each "
            f"at least ({'batch norm needs two' if least == 2 else 'none may be idle'}); raise it "
            f"(now {recipe.batch_size}), name more images or --passes, or start fewer processes"
        )


def take_up(job, state):
    """Let `state` go on from resume.pt; -> its content, {} where there is none.

    Raises ValueError for anything that this stage has not saved.
    """
    path = job.stage.folder / "resume.pt"
    if not (job.stage.saved and path.exists()):
        return {}
    with checkpoint.resuming(path):
        saved = checkpoint.load(path)
        if saved["stage"] != identity(job.config):
            raise ValueError("it was saved by another stage")
        state.load_state_dict(saved["fit"])
        images, size = len(job.labels) * job.recipe.passes, job.recipe.batch_size
        first, end = (epoch * images // size for epoch in (state.epoch, state.epoch + 1))
        done = state.epoch == job.recipe.epochs and state.batch == 0
        there = 0 <= state.epoch < job.recipe.epochs and 0 <= state.batch < end - first
        if not (done or there) or state.step != first + state.batch:
            raise ValueError("its epoch, batch and step do not fit together")
        saved["seconds"] = float(saved["seconds"])
        if not isinstance(saved["log"], str) or not isinstance(saved["metrics"], dict):
            raise ValueError("its log or its metrics are none")
        return saved


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
        signum = distributed.largest(program.interruption() or 0)
        overdue = distributed.largest(time.monotonic() - last_save) > SAVE_SECONDS
        if overdue or signum or done:
            _save(job, log, state, metrics, spent + time.monotonic() - began)
            last_save = time.monotonic()
        if signum:
            distributed.wait()  # torchrun ends the others once one has left
            program.stop(bar, job.stage.folder, signum)
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
        job.stage.check_ours()
        whole |= {"log": log.logged, "stage": identity(job.config)}
        checkpoint.save(whole, job.stage.folder / "resume.pt")


# --- validation and test ------------------------------------------------------------------------


def evaluate(state, images, prepare):
    """Logits (N,C) on the CPU, whatever the number of processes; each predicts its share.

    They are collected on the device and copied once, since a copy makes a GPU wait.
    None where a signal has cut one of the processes short, see `program.came_to_its_end`.
    """
    network = state.network
    distributed.same_(network.buffers())  # each process's batch norm has seen its own share
    first, last = distributed.share(len(images), EVALUATED)
    _, head = head_of(network)
    logits = torch.zeros(len(images), head.out_features, device=state.sums.device)
    chunks = predict(network, images, prepare, EVALUATED, first, last, state.precision)

    def collect():
        for start, chunk in chunks:
            logits[start : start + len(chunk)] = chunk

    cut = distributed.largest(int(not program.came_to_its_end(collect)))
    return None if cut else distributed.total_(logits).cpu()


def write_predictions(path, predicted):
    """predictions.npz: of each image its given label, the class predicted, and the probability of
    the label, in the order of the data set, so that two networks can be compared image by image.

    predicted: {"test" or "val": (logits (N,C), labels (N,))};  arrays are named test_label ...
    """
    arrays = {}
    for name, (logits, labels) in predicted.items():
        of_label = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        arrays |= {
            f"{name}_label": labels.numpy().astype(np.int32),
            f"{name}_top1": logits.argmax(1).numpy().astype(np.int32),
            f"{name}_probability": of_label.numpy().astype(np.float32),
        }
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def test_once(state, images, prepare):
    """The test set is read here, once: -> logits (N,C), features before the last layer (N,D)."""
    inputs, (_, head) = [], head_of(state.network)
    hook = head.register_forward_pre_hook(lambda _, x: inputs.append(x[0].float()))
    logits = evaluate(state, images, prepare)
    hook.remove()
    features = torch.zeros(len(images), head.in_features, device=state.sums.device)
    first, last = distributed.share(len(images), EVALUATED)
    features[first:last] = torch.cat([features[:0], *inputs])
    return logits, distributed.total_(features).cpu()


# --- what remains -------------------------------------------------------------------------------


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
        "test_images": len(job.labelled.test),
        "val_top1": round(metrics["val_top1"], 4),
        "test_top1": round(top1, 4),
        "test_top5": round(top5, 4),
        "seconds": round(seconds, 2),
        "images_per_second": round(job.images_to_process / seconds, 2),
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
