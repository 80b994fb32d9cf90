"""What steps 1, 3 and 4 share: follow a training, log it, save it, test once at the end."""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import cli
import distributed
import runlog
from data import Augment, Images, LabelledSet, Normalise, Split
from engine import accuracy, fit, predict
from models import build_model
from presets import Training

SAVE_SECONDS = 120  # between two saves inside a long epoch
EVALUATED = 512  # validation and test images at a time
_EMBEDDED = 1000  # test images in the embedding projector
_STAGES = list(runlog.STAGES)


@dataclass
class Job:
    """A training stage with everything settled, before its folder is touched."""

    folder: Path  # named after the stage
    config: dict  # config.json, see runlog.describe
    recipe: Training
    labelled: LabelledSet  # for its classes, validation and test images
    parts: Split
    images: Images  # and rows, labels: the training examples, see engine.fit
    rows: torch.Tensor
    labels: torch.Tensor
    weights: dict | None = None  # a state_dict to start from
    weights_source: str = ""  # where it came from, for an error

    @property
    def stage(self):
        return self.config["stage"]

    @property
    def classes(self):
        return self.labelled.classes

    @property
    def val(self):
        """Images, labels (N,)."""
        images = Images.of(self.labelled.train_images).subset(torch.from_numpy(self.parts.val))
        return images, torch.from_numpy(self.labelled.train_labels[self.parts.val])

    @property
    def test(self):
        """Images, labels (N,)."""
        labels = torch.from_numpy(self.labelled.test_labels)
        return Images.of(self.labelled.test_images), labels


def normalisation(images, rows):
    """Mean and standard deviation of the images per channel, on the scale 0 to 1.

    images: data.Images; rows (R,).  Rounded to four digits, so that it prints as it is.
    """
    total, square = torch.zeros(2, 3, dtype=torch.float64)
    for index in rows.split(max(1, 2**22 // images.shape[1] ** 2)):  # 50 MB of float32
        batch = images[index].float() / 255
        total += batch.mean((1, 2)).double().sum(0)  # a mean an image is exact enough in float32
        square += batch.square().mean((1, 2)).double().sum(0)
    mean = total / len(rows)
    std = (square / len(rows) - mean**2).clamp(min=1e-4).sqrt()
    return [round(x, 4) for x in mean.tolist()], [round(x, 4) for x in std.tolist()]


def run(job, device, resume):
    """Train, log, save, test; return result.json's content.  Writes to the folder."""
    if job.config["preset"] == "cifar100" and device.type == "cpu":
        _print_hours(job, device)
    check_batches(job.recipe, len(job.rows))
    path = job.folder / "resume.pt"
    state = checkpoint.load(path) if resume and path.exists() else None
    seed = 1000 * job.config["seed"] + _STAGES.index(job.stage)  # no two stages draw alike
    torch.manual_seed(seed)
    model = build_model(job.recipe.model, len(job.classes))
    if job.weights is not None:
        checkpoint.start_from(model, job.weights, job.weights_source)
    model.to(device, memory_format=torch.channels_last)
    mean, std = job.config["normalisation"].values()
    normalise = Normalise(mean, std, device)
    augment = Augment(
        normalise, job.recipe.augment, len(job.classes), job.recipe.mixup, job.recipe.cutmix
    )
    epochs_done = state["fit"]["epoch"] if state else 0
    new = None if resume else job.config
    with cli.running(job.folder, new, epochs_done if resume else None) as log:
        images = job.images.to(device)
        ticks = fit(
            model, images, job.rows, job.labels, job.recipe, augment,
            seed=seed, state=state and state["fit"],
        )  # fmt: skip
        with cli.saving_on_interrupt():
            if log and not resume:
                ticks = _showing(ticks, lambda: _show_batch(log, images, job, augment, mean, std))
            model, metrics, seconds = _follow(job, log, ticks, normalise, state)
        logits, labels = collect(model, job.test, normalise)  # the test set is read once: here
        result = _summary(job, model, logits, labels, metrics, seconds)
        if log:
            _show_test(job, log, model, normalise, logits, labels)
            _publish(job, log, model, result)
    return result


def _showing(ticks, show):
    """Passes `ticks` on and calls show() once steps have been done: drawing delays no start."""
    for progress in ticks:
        if show and progress.step:
            show()
            show = None
        yield progress


def check_batches(recipe, rows):
    """Raises ValueError when some process would have fewer than two images of a batch, the least
    that batch norm takes."""
    images, processes = rows * recipe.passes, distributed.size()
    least = images // math.ceil(images / recipe.batch_size)
    if processes > 1 and least < 2 * processes:
        raise ValueError(
            f"a batch of {least} images cannot be shared by {processes} processes, two images each "
            f"at least; start fewer, or raise --batch-size (now {recipe.batch_size})"
        )


def _follow(job, log, ticks, normalise, state):
    """Consume `fit`: a line an epoch, a save an epoch and every SAVE_SECONDS.

    Returns the trained network, the last epoch's metrics, and the seconds spent in all.
    """
    spent, metrics = (state["seconds"], state["metrics"]) if state else (0.0, {})
    began = saved = since = time.monotonic()
    images = None  # processed when the clock of images/s started
    total = job.recipe.epochs * job.recipe.passes * len(job.rows)
    bar = tqdm(total=total, unit="img", unit_scale=True, disable=None, desc=job.stage)

    def save():
        if not log:
            return  # the first process saves for all
        seconds = spent + time.monotonic() - began
        parts = {"fit": progress.state(), "seconds": seconds, "metrics": metrics}
        checkpoint.save(parts, job.folder / "resume.pt")

    for progress in ticks:
        bar.update(progress.images - bar.n)
        bar.set_postfix(epoch=progress.epoch, loss=f"{progress.loss:.3f}", refresh=False)
        if images is None:
            images = progress.images
        if progress.metrics:
            now = time.monotonic()
            top1, top5 = accuracy(*collect(progress.model, job.val, normalise))
            rate = (progress.images - images) / (now - since)
            metrics = {"epoch": progress.epoch, **progress.metrics}
            metrics |= {"val_top1": top1, "val_top5": top5}
            if log:
                log.epoch({**metrics, "seconds": now - since, "images_per_second": rate})
            since, images = time.monotonic(), progress.images
        # Asked once: a signal after this is the next tick's.  All processes stop together.
        stop = distributed.largest(cli.interruption() or 0)
        if progress.metrics or time.monotonic() - saved > SAVE_SECONDS or stop:
            save()
            saved = time.monotonic()
        if stop:
            distributed.wait()  # torchrun ends the others once one has left
            cli.stop(bar, job.folder, stop)
    bar.close()
    return progress.model, metrics, spent + time.monotonic() - began


def collect(model, images_labels, prepare):
    """Logits (N,C) and labels (N,) of a labelled set, on the CPU; each process does its part."""
    images, labels = images_labels
    first, last = distributed.share(len(images), EVALUATED)
    parts = [x.cpu() for _, x in predict(model, images, prepare, EVALUATED, first, last)]
    logits = torch.zeros(len(images), model.fc.out_features)
    logits[first:last] = torch.cat([logits[:0], *parts])
    return distributed.total_(logits), labels


def _summary(job, model, logits, labels, metrics, seconds):
    """result.json of a training stage."""
    top1, top5 = accuracy(logits, labels)
    images = job.recipe.epochs * job.recipe.passes * len(job.rows)
    return {
        "stage": job.stage,
        "dataset": job.config["dataset"],
        "model": job.recipe.model,
        "seed": job.config["seed"],
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "images_processed": images,
        "val_top1": round(metrics["val_top1"], 4),
        "test_top1": round(top1, 4),
        "test_top5": round(top5, 4),
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 2),
    }


def _publish(job, log, model, result):
    """model.pt, then hparams and result.json."""
    mean, std = job.config["normalisation"].values()
    parent = job.config["parent"]
    metrics = {name: result[name] for name in ("val_top1", "test_top1", "test_top5")}
    checkpoint.save_model(
        job.folder / "model.pt",
        checkpoint.Checkpoint(
            model, job.recipe.model, list(job.classes), mean, std, job.config["input_size"],
            metrics, parent and {name: parent[name] for name in ("stage", "sha256")},
        ),
    )  # fmt: skip
    names = ("stage", "preset", "dataset", "seed", "labels_per_class", "input_size")
    hparams = {name: job.config[name] for name in names} | job.config["training"]
    log.finish(result, hparams)


def report(title, job, result, trained_on, more):
    """Print what a training stage did; `more`: further rows for the table."""
    rows = [
        ("network", f"{result['model']}, {result['num_parameters']:,} parameters"),
        ("trained on", f"{trained_on}, {result['images_processed']:,} in all"),
        ("validation", f"{result['val_top1']:.2f} % top-1 of {len(job.parts.val):,}"),
        ("test", f"{result['test_top1']:.2f} % top-1, {result['test_top5']:.2f} % top-5"),
        ("time", f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s"),
        ("written to", job.folder),
    ]
    cli.table(title, rows + more)


# --- TensorBoard --------------------------------------------------------------------------------


def _show_batch(log, images, job, augment, mean, std):
    """The first training batch as the network sees it: augmented, normalisation undone."""
    import figures  # here, as everywhere: matplotlib takes half a second to import

    torch.manual_seed(0)
    index = torch.linspace(0, len(job.rows) - 1, min(32, len(job.rows))).long()  # of all classes
    device = augment.normalise.mean.device
    batch = images[job.rows[index].to(images.device)].to(device)
    batch, _ = augment(batch, job.labels[index].to(device))
    scale, shift = torch.tensor(std), torch.tensor(mean)
    pixels = (batch.cpu().permute(0, 2, 3, 1) * scale + shift).clamp(0, 1) * 255
    names = [job.classes[label] for label in job.labels[index]]
    figure = figures.image_batch(pixels.to(torch.uint8).numpy(), names)
    log.tensorboard.add_figure("augmented inputs", figure)


def _show_test(job, log, model, prepare, logits, labels):
    """Confusion matrix, precision-recall curves, and the projector of test features."""
    import figures

    board, epochs, number = log.tensorboard, job.recipe.epochs, len(job.classes)
    counts = (labels * number + logits.argmax(1)).bincount(minlength=number**2)
    matrix = counts.view(number, number).numpy()
    board.add_figure("test/confusion matrix", figures.confusion_matrix(matrix, job.classes), epochs)
    probs = logits.softmax(1)
    for label, name in enumerate(job.classes):
        board.add_pr_curve(
            f"test precision-recall/{name}", labels == label, probs[:, label], epochs
        )
    shown = torch.arange(0, len(labels), max(1, len(labels) // _EMBEDDED))[:_EMBEDDED]
    features = []
    hook = model.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    for _ in predict(model, job.test[0].subset(shown), prepare, EVALUATED):
        pass
    hook.remove()
    pictures = job.test[0][shown].permute(0, 3, 1, 2).float() / 255
    if pictures.shape[2] > 32:  # TensorBoard takes one picture of at most 8192 px for all of them
        pictures = torch.nn.functional.interpolate(pictures, size=(32, 32), mode="area")
    names = [job.classes[label] for label in labels[shown]]
    features = torch.cat([batch.cpu() for batch in features])
    board.add_embedding(features, metadata=names, label_img=pictures, tag="test features")


# --- on a CPU -----------------------------------------------------------------------------------


def _print_hours(job, device):
    """Say how long this training will take here, from three steps on a few images."""
    model = build_model(job.recipe.model, len(job.classes)).to(
        device, memory_format=torch.channels_last
    )
    size, few = job.config["input_size"], 16
    images = torch.zeros(few, size, size, 3, dtype=torch.uint8)
    labels = torch.zeros(few * 3, dtype=torch.int64)
    rows = torch.arange(few).repeat(3)
    recipe = Training(model=job.recipe.model, epochs=1, batch_size=few)
    augment = Augment(Normalise([0.5] * 3, [0.25] * 3), "none", len(job.classes))
    began = time.monotonic()
    for progress in itertools.islice(fit(model, images, rows, labels, recipe, augment), 100):
        done = progress.images
    rate = done / (time.monotonic() - began)
    total = job.recipe.epochs * job.recipe.passes * len(job.rows)
    print(
        f"{job.recipe.model} at {size} px on this CPU: about {rate:.0f} images/s, so about "
        f"{total / rate / 3600:.0f} hours for this step.  `--preset lab` runs all four steps on "
        f"real CIFAR-100 in about 20 minutes on two cores.",
        flush=True,
    )
