"""What the cells of the lab call: run a step of the project, read what it wrote, show a figure."""

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from sklearn.datasets import load_sample_images
from sklearn.metrics import confusion_matrix

import engine
from data import selection
from data.augment import Augment, Normalise
from data.decode import fit_square
from data.images import Images
from data.labelled import LabelledImages
from data.pool import reopen_pool
from models.networks import build_model
from presets import PRESETS, override
from report import figures
from stages import checkpoint
from stages.folder import read_record
from stages.prepare import load_dataset

QUICK = bool(os.environ.get("LAB_QUICK"))  # for a test: trainings that teach nothing
STEPS = ("teacher", "student", "finetuned")  # the networks of a run, in order


# --- running ------------------------------------------------------------------------------------


def run(script, folder, flags="", quiet=False):
    """A step of the project as on the command line, which is printed; finished steps stay.

    script: the module, such as main;  folder: the run's;  quiet: print only what goes wrong
    """
    words = ["--run-dir", str(folder), *shlex.split(str(flags)), "--resume"]
    print(end="" if quiet else f"$ python {shlex.join([f'{script.__name__}.py', *words])}\n")
    if QUICK and script.__name__ != "make_sample_data":
        words += ["--epochs", "1", "--passes", "1"]
        words += ["--input-size", "8"] if "--preset" in words else []
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(said))
            stack.enter_context(contextlib.redirect_stderr(said))
        try:
            script.main(words)
        except SystemExit:
            sys.__stderr__.write(said.getvalue())
            raise


def sweep(steps):
    """Many steps, one line in all.  steps: (script, folder, flags) each, as `run` takes them"""
    for number, (script, folder, flags) in enumerate(steps, 1):
        line = f"run {number} of {len(steps)}: {script.__name__}.py, {folder.name}"
        print(f"\r{line:<70}", end="", flush=True)
        run(script, folder, flags, quiet=True)
    done = f"done: {len(steps)} of {len(steps)} runs"
    print(f"\r{done:<70}")


def top1(stage):
    """Percent of the test images that a finished stage's network is right for."""
    return read_record(Path(stage) / "result.json")["test_top1"]


# --- reading ------------------------------------------------------------------------------------


class Tested(NamedTuple):
    """A finished stage's network and the test images."""

    classes: tuple[str, ...]
    seen: LabelledImages  # the labelled images that steps 1 and 4 train on
    images: Images  # the test images, uint8 (N,S,S,3)
    truth: np.ndarray  # int64 (N,), their classes
    says: np.ndarray  # int64 (N,), the classes that the network gives them

    @property
    def matrix(self):
        """int (C,C): rows are true classes, columns what the network says."""
        return confusion_matrix(self.truth, self.says, labels=range(len(self.classes)))


def tested(stage):
    """-> Tested, of a finished stage of steps 1, 3 or 4"""
    config = read_record(stage / "config.json")
    labelled, split = load_dataset(config, config)
    test = labelled.test
    says = predicted(stage, test.images)
    seen = labelled.train.subset(split.labelled)
    return Tested(labelled.classes, seen, test.images, test.labels.numpy(), says)


def predicted(stage, images):
    """The class that a finished stage's network gives to each image: uint8 (N,S,S,3) -> (N,)."""
    checkpoint_ = checkpoint.load_model(stage / "model.pt")
    chunks = engine.predict(checkpoint_.model, images, Normalise(checkpoint_.mean, checkpoint_.std))
    return torch.cat([logits.argmax(1) for _, logits in chunks]).numpy()


def recall(run):
    """{stage: percent right of each class's test images, (C,)} of a whole run"""
    results = {name: tested(run / name) for name in STEPS}
    return {name: 100 * t.matrix.diagonal() / t.matrix.sum(1) for name, t in results.items()}


class Kept(NamedTuple):
    """The rows of a selection, by class, then rank."""

    names: list[str]
    label: np.ndarray  # int64 (M,), the class that keeps the image
    score: np.ndarray  # float32 (M,), the teacher's
    is_patch: np.ndarray  # bool (M,), a piece of a photograph, of no class
    images: Images  # uint8 (M,S,S,3)
    patches: np.ndarray  # int64 (C,), how many rows of each class are patches


def kept(run):
    """-> Kept, of a run whose step 2 has finished"""
    config = read_record(run / "samples" / "config.json")
    labelled, split = load_dataset(config, config)
    names, label, score, _ = selection.read_selection(run / "samples" / "selection.csv", 10)
    pool = reopen_pool(config, config["data_dir"], labelled, split)
    images = pool.images.subset(torch.from_numpy(pool.positions(names)))
    is_patch = np.array([name.startswith("patches") for name in names])
    count = np.bincount(label[is_patch], minlength=10)
    return Kept(names, label, score, is_patch, images, count)


# --- showing ------------------------------------------------------------------------------------


def show(figure, file):
    """Write a figure and show it in a notebook; elsewhere say where it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    ipython = sys.modules.get("IPython")
    if ipython and ipython.get_ipython():
        width = round(100 * figure.get_figwidth())
        ipython.display.display(ipython.display.Image(file, width=width))
    else:
        print(f"picture: {file}")


def by_class(recall, patches, title):
    """Percent right of each class after each step, and its patches -> Figure.

    recall: as the function of that name gives it;  patches: (C,)
    """
    figure = figures.blank(9, 4.2)
    axes = figure.add_subplot()
    looks = {"teacher": ("o", figures.GREY), "student": ("D", figures.ORANGE)}
    looks |= {"finetuned": ("s", figures.BLUE)}
    classes = np.arange(len(patches))
    axes.vlines(classes, recall["teacher"], recall["student"], color="0.75", linewidth=3)
    for name, (mark, colour) in looks.items():
        axes.plot(classes, recall[name], mark, color=colour, label=name, clip_on=False)
    axes.set_xticks(classes, [f"{c}\n{count} patches" for c, count in enumerate(patches)])
    axes.set(ylim=(0, 102), ylabel="right, % of the class")
    return figures.finish(figure, axes, title)


def flower(side):
    """The photograph of a flower: uint8 (side,side,3)"""
    return fit_square(load_sample_images().images[1], side)


def draw(text, font, file, ink=255, side=64):
    """A sign, white on black or, with ink=0, black on white, as a file of side x side pixels."""
    image = np.full((64, 64), 255 - ink, np.uint8)
    cv2.putText(image, text, (5, 60), font, 2.6, ink, 9)
    cv2.imwrite(str(file), cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))


# --- the student's own training -----------------------------------------------------------------


def beginning(images, **changes):
    """A training of step 3 before its first step, the same at every call: -> TrainState, Augment

    images: that it will see, uint8 (N,S,S,3);  changes: of the preset demo's recipe
    """
    torch.manual_seed(0)
    recipe = override(PRESETS["demo"].student, **changes)
    model = build_model(recipe.model, 10).to(memory_format=torch.channels_last)
    std, mean = torch.std_mean(images[:].float().div(255), dim=(0, 1, 2))
    normalise = Normalise(mean.tolist(), std.tolist())
    augment = Augment(normalise, recipe.augment, 10, recipe.mixup, recipe.cutmix)
    return engine.TrainState(model, recipe), augment


def steps_of(state, augment, images, labels, batch):
    """engine.fit's loop around somebody's own `batch`: yields after every step.

    batch(model, optimizer, augment, images, labels, rate): see exercise 8
    """
    recipe, done = state.recipe, 0
    steps, _ = engine.count_steps(len(labels), recipe)
    for epoch in range(recipe.epochs):
        for index in engine.epoch_batches(len(labels), recipe, state.seed, epoch):
            rate = engine.learning_rate(recipe, done, steps)
            batch(state.model, state.optimizer, augment, images[index], labels[index], rate)
            done += 1
            yield state


def own_student(batch, rows, test):
    """Train a student on a selection with one's own `batch`: -> percent of the test images right

    batch: None for engine.fit's own step;  rows: Kept;  test: Tested
    """
    state, augment = beginning(rows.images, epochs=1 if QUICK else 4)
    images, labels = rows.images, torch.from_numpy(rows.label)
    steps = batch and steps_of(state, augment, images, labels, batch)
    for _ in steps or engine.fit(state, images, labels, augment):
        pass
    chunks = engine.predict(state.model, test.images, augment.normalise)
    says = torch.cat([logits.argmax(1) for _, logits in chunks]).numpy()
    return 100 * float(np.mean(says == test.truth))
