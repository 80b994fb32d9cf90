"""Classify images with a trained checkpoint or with a published ImageNet model.

    python predict.py photo.jpg holiday/ 'more/*.png'          # with runs/cifar100/finetuned
    python predict.py photo.jpg --checkpoint runs/lab/finetuned
    python predict.py photo.jpg --hub resnet50_swsl            # ImageNet's 1,000 classes

Reads    image files, folders of any depth, patterns of file names; a stage's folder, a model.pt or
         an exported file, or published weights (downloaded on first use)
Writes   to the screen; with --tensorboard also the pictures with their predictions

A broken image is reported and the others go on.  Exit code 0 when an image was classified, 1 when
none could be read, 2 for a bad flag or a name that leads to no image.
"""

import contextlib
import glob
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

import checkpoint
import cli
import runlog
from data import Normalise, Unreadable, decode, fit_square, read_file
from data.files import list_folder
from engine import predict
from models import build_model
from models.hub import HUB, LICENCE, MEAN, STD, ZOO, categories, evaluation_size, find, hub_weights

CHECKPOINT = Path("runs/cifar100/finetuned")
BOARD = Path("runs/predictions")
BAR = 24  # characters of a bar of 100 %
PER_FIGURE = 64  # pictures


def parse(argv):
    parser = cli.bare_parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or pattern")
    source = parser.add_mutually_exclusive_group().add_argument
    source("--checkpoint", type=Path, default=CHECKPOINT, metavar="PATH",
           help=f"stage's folder, model.pt or exported file (default {CHECKPOINT})")  # fmt: skip
    source("--hub", metavar="NAME", help=f"published weights: {', '.join(HUB)}; those named ssl "
           f"and swsl are {LICENCE}, not for commercial use")  # fmt: skip
    add = parser.add_argument
    add("--topk", type=cli.number(int, 1), default=5, metavar="N", help="classes shown (default 5)")
    add("--json", action="store_true", help="print a JSON array with an object for each image")
    add("--tensorboard", type=Path, nargs="?", const=BOARD, metavar="DIR",
        help=f"also write the pictures for TensorBoard (DIR: {BOARD})")  # fmt: skip
    add("--batch-size", type=cli.number(int, 1), default=64, metavar="N",
        help="images predicted at a time (default 64)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default auto")
    parser.set_defaults(deterministic=False)
    return parser.parse_args(argv)


@cli.program
def main(argv=None):
    args = parse(argv)
    device = cli.pick_device(args)
    entries = find_images(args.images)
    classifier = load(args, device)
    with cli.working():
        predictions = classify(classifier, entries, args.topk, args.batch_size)
        if args.tensorboard:
            predictions = with_board(predictions, args.tensorboard, classifier.name)
        classified = (print_json if args.json else print_table)(predictions)
    if not classified:
        raise cli.Failure(f"none of the {len(entries)} images could be read")


# --- the images ---------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An image to be read."""

    name: str  # printable
    read: Callable  # () -> the file's bytes, or raises Unreadable


def find_images(arguments):
    """Every image that the arguments name, in their order, a folder's sorted by path: -> [Entry].

    Raises FileNotFoundError for an argument that leads to none.
    """
    entries = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = _in_folder(argument)
        else:  # a file, or else a pattern that no shell has expanded
            there = os.path.lexists(argument)
            paths = [argument] if there else sorted(glob.glob(argument, recursive=True))
            found = [
                Entry(printable(path), partial(read_file, path))
                for path in paths
                if not os.path.isdir(path)
            ]
        if not found:
            raise FileNotFoundError(
                f"{printable(argument)}: no such image, no folder that holds any and no pattern "
                f"that matches any; name another"
            )
        entries += found
    return entries


def _in_folder(folder):
    listing, root = list_folder(folder), os.fsencode(folder)

    def read(i):
        if i in listing.unusable:
            raise Unreadable(listing.unusable[i])
        return read_file(os.path.join(root, listing.names.raw(i)))

    names = (printable(os.path.join(folder, name)) for name in listing.names)
    return [Entry(name, partial(read, i)) for i, name in enumerate(names)]


def printable(path):
    """A path as text that a terminal and JSON can take, other characters as backslash escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- the network --------------------------------------------------------------------------------


class Classifier(NamedTuple):
    """A network with all that its use on new images needs."""

    name: str
    model: torch.nn.Module  # on its device
    classes: list
    fit: Callable  # a file's bytes -> uint8 (S, S, 3), or raises Unreadable
    normalise: Normalise


def load(args, device):
    """The Classifier of --hub or --checkpoint."""
    if args.hub:
        return _published(find(args.hub), device)
    path = args.checkpoint
    if path.is_dir() or not path.exists():
        if runlog.state_of(path) != "finished":
            raise FileNotFoundError(
                f"{path} is no finished stage (no result.json); train one with `python main.py`, "
                f"name another --checkpoint, or a published model (--hub resnet50_swsl)"
            )
        path = path / "model.pt"
    own = checkpoint.load_model(path, device)
    fit, normalise = partial(square, size=own.input_size), Normalise(own.mean, own.std, device)
    return Classifier(f"{own.name} of {args.checkpoint}", own.model, own.classes, fit, normalise)


def _published(name, device):
    with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces a download on stdout
        weights = hub_weights(name)
    if name in ZOO:
        print(f"the weights {name} are {LICENCE}: no commercial use", file=sys.stderr)
    classes = categories()
    model = build_model(HUB[name], len(classes))
    checkpoint.start_from(model, weights, name)
    model.to(device, memory_format=torch.channels_last)
    resize, crop = evaluation_size(name)
    fit = partial(resize_and_crop, resize=resize, crop=crop)
    return Classifier(name, model, classes, fit, Normalise(MEAN, STD, device))


def square(content, size):
    """An encoded image as training and scoring see it: uint8 (size, size, 3)."""
    return fit_square(decode(content, size), size)


def resize_and_crop(content, resize, crop):
    """ImageNet's evaluation: the shorter side to `resize` pixels, of that the middle `crop` square.

    An encoded image -> uint8 (crop, crop, 3)
    """
    image = torch.from_numpy(decode(content)).permute(2, 0, 1)  # HWC -> CHW
    image = transforms.center_crop(transforms.resize(image, [resize]), [crop, crop])
    return image.permute(1, 2, 0).numpy()


class Prediction(NamedTuple):
    """What the network made of an image: `best`, or `error` for one that could not be read."""

    name: str
    picture: np.ndarray | None = None  # uint8 (S, S, 3), as the network saw it
    best: list | None = None  # [(class, probability)], falling
    error: str | None = None


def classify(classifier, entries, topk, batch_size):
    """Yields a Prediction for each Entry, in order; at most `batch_size` images are in memory."""
    entries = iter(entries)
    while batch := list(islice(entries, batch_size)):
        seen = []
        for entry in batch:
            try:
                seen.append(Prediction(entry.name, picture=classifier.fit(entry.read())))
            except Unreadable as error:
                seen.append(Prediction(entry.name, error=str(error)))
        pictures = [one.picture for one in seen if one.error is None]
        best = iter(_best_classes(classifier, pictures, topk) if pictures else ())
        yield from (one if one.error else one._replace(best=next(best)) for one in seen)


def _best_classes(classifier, pictures, topk):
    """The best classes of each picture, with their probabilities."""
    device = next(classifier.model.parameters()).device
    images = torch.from_numpy(np.stack(pictures)).to(device)
    ((_, logits),) = predict(classifier.model, images, classifier.normalise, len(images))
    probs, labels = logits.softmax(1).topk(min(topk, logits.shape[1]))
    for row, which in zip(probs.tolist(), labels.tolist(), strict=True):
        yield [(classifier.classes[label], p) for label, p in zip(which, row, strict=True)]


# --- what is shown ------------------------------------------------------------------------------


def print_table(predictions):
    """The best classes with bars; broken images on stderr.  -> the number classified"""
    classified = 0
    for one in predictions:
        if one.error:
            print(f"{one.name}: {one.error}", file=sys.stderr, flush=True)
            continue
        classified += 1
        width = max(len(printable(name)) for name, _ in one.best)
        lines = [f"  {printable(name):<{width}} {100 * p:6.2f} %  {bar(p)}" for name, p in one.best]
        text, encoding = "\n".join([one.name, *lines]), sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    return classified


def bar(share):
    """`share`, 0 to 1, drawn; of # where the output takes no block characters."""
    if not (sys.stdout.encoding or "utf-8").lower().startswith("utf"):
        return "#" * round(BAR * share)
    whole, eighths = divmod(round(8 * BAR * share), 8)
    return "\N{FULL BLOCK}" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def print_json(predictions):
    """An array, written object by object.  -> the number classified"""
    classified, separator = 0, "["
    for one in predictions:
        if one.error:
            found = {"error": one.error}
        else:
            found = {"predictions": [{"class": c, "probability": p} for c, p in one.best]}
            classified += 1
        print(separator, json.dumps({"image": one.name, **found}), sep="\n", end="", flush=True)
        separator = ","
    print("\n]")
    return classified


def with_board(predictions, folder, name):
    """Passes the predictions on and draws the pictures among them for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter  # here: these two take long to import

    import figures

    with SummaryWriter(str(folder)) as board:
        drawn = 0
        while some := list(islice(predictions, PER_FIGURE)):
            good = [one for one in some if not one.error]
            if good:
                titles = [f"{printable(one.best[0][0])} {one.best[0][1]:.0%}" for one in good]
                heading = f"Predictions of {name}"
                figure = figures.image_batch([x.picture for x in good], titles, heading=heading)
                board.add_figure(f"predictions/{drawn + 1} to {drawn + len(good)}", figure)
                drawn += len(good)
            yield from some


if __name__ == "__main__":
    main()
