"""Classify images with a trained checkpoint or with a published ImageNet model.

    python predict.py photo.jpg holiday/ 'more/*.png'          # with runs/cifar100/finetuned
    python predict.py photo.jpg --checkpoint runs/lab/finetuned
    python predict.py photo.jpg --hub resnet50_swsl            # ImageNet's 1,000 classes

Reads    image files, folders of any depth, patterns of file names; a stage's folder, a model.pt or
         an exported file, or published weights (downloaded on first use)
Writes   to the screen; with --tensorboard also the pictures with their predictions

The answer is marked right or wrong for an image in a folder that is named after a class.
A broken image is reported and the others go on.  Exit code 0 when an image was classified, 1 when
none could be read, 2 for a bad flag or a name that leads to no image.
"""

import glob
import math
import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stages import flags
from stages.program import begin

CHECKPOINT = Path("runs/cifar100/finetuned")
BOARD = Path("runs/predictions")
SECONDS = 30  # seconds that one picture may take; some small files take minutes


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or pattern")
    source = parser.add_mutually_exclusive_group().add_argument
    source("--checkpoint", type=flags.path, default=CHECKPOINT, metavar="PATH",
           help=f"stage's folder, model.pt or exported file (default {CHECKPOINT})")  # fmt: skip
    source("--hub", metavar="NAME", help="published weights, such as resnet50_swsl; a wrong "
           "name lists them; ssl and swsl ones are CC-BY-NC 4.0, no commercial use")  # fmt: skip
    add = parser.add_argument
    add("--topk", type=flags.number(int, 1), default=5, metavar="N",
        help="classes shown (default 5)")  # fmt: skip
    add("--json", action="store_true", help="print a JSON array with an object for each image")
    add("--tensorboard", type=flags.path, nargs="?", const=BOARD, metavar="DIR",
        help=f"also write the pictures for TensorBoard (DIR: {BOARD})")  # fmt: skip
    add("--batch-size", type=flags.number(int, 1), default=64, metavar="N",
        help="images predicted at a time (default 64)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    begin(parse, goes_on=False)

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from data.augment import Normalise
from data.decode import Unreadable, decode, fit_square, read_file
from data.listing import list_folder
from engine import predict
from models import hub, weights
from models.networks import build_model
from report.predictions import Prediction, print_json, print_table, with_board
from report.tables import printable
from stages import checkpoint
from stages.device import faster_precision, set_up_device
from stages.folder import state_of
from stages.program import Failure, as_failures, program


@program
def main(argv=None):
    args = parse(argv)
    device = set_up_device(args.device)
    paths = find_images(args.images)
    if args.hub:
        classifier = published_classifier(hub.hub_name(args.hub), device)
    else:
        classifier = own_classifier(args.checkpoint, device)
    with as_failures():
        predictions = classify(classifier, paths, args.topk, args.batch_size)
        if args.tensorboard:
            predictions = with_board(predictions, args.tensorboard, classifier.name)
        classified = (print_json if args.json else print_table)(predictions)
    if not classified:
        raise Failure(f"none of the {len(paths)} images could be read")


# --- the images ---------------------------------------------------------------------------------


def find_images(arguments):
    """The paths of the images that the arguments name, in their order, a folder's images sorted.

    Raises FileNotFoundError for an argument that leads to no image.
    """
    images = []
    for argument in map(os.path.expanduser, arguments):
        if os.path.isdir(argument):
            names = list_folder(argument).names
            paths = [os.path.join(argument, os.fsdecode(names.raw(i))) for i in range(len(names))]
        elif os.path.lexists(argument):
            paths = [argument]
        else:  # a pattern that no shell has expanded
            paths = [p for p in sorted(glob.glob(argument, recursive=True)) if not os.path.isdir(p)]
        if not paths:
            raise FileNotFoundError(
                f"{argument}: no such image, no folder that holds any and no pattern that matches "
                f"any; name another"
            )
        images += paths
    return images


# --- the network --------------------------------------------------------------------------------


class Classifier(NamedTuple):
    """A network with all that its use on new images needs."""

    name: str
    model: torch.nn.Module  # on its device
    classes: list[str]
    fit: Callable  # a file's bytes -> uint8 (S, S, 3), or raises Unreadable
    normalise: Normalise


def own_classifier(path, device):
    """The Classifier in a finished stage's folder, a model.pt or an exported file.

    Raises FileNotFoundError where there is none, ValueError for a damaged file.
    """
    file = path
    if path.is_dir() or not path.exists():
        if state_of(path) != "finished":
            raise FileNotFoundError(
                f"{path} is no finished stage (no result.json); train one with `python main.py`, "
                f"name another --checkpoint, or a published model (--hub resnet50_swsl)"
            )
        file = path / "model.pt"
    trained = checkpoint.load_model(file, device)
    fit, normalise = (
        partial(square, size=trained.input_size),
        Normalise(trained.mean, trained.std, device),
    )
    return Classifier(f"{trained.name} of {path}", trained.model, trained.classes, fit, normalise)


def published_classifier(name, device):
    """The Classifier of a hub name, see models/hub.py.  Raises ConnectionError, offline."""
    state, mean_std = hub.published_weights(name)
    if name in hub.ZOO:
        print(f"the weights {name} are {hub.LICENCE}: no commercial use", file=sys.stderr)
    classes = hub.categories()
    model = build_model(hub.HUB[name], len(classes))
    weights.start_from(model, state, name)
    model.to(device, memory_format=torch.channels_last)
    resize, crop = hub.evaluation_size(name)
    fit = partial(resize_and_crop, resize=resize, crop=crop)
    return Classifier(name, model, classes, fit, Normalise(*mean_std, device))


def square(content, size):
    """An encoded image as training and scoring see it: uint8 (size, size, 3)."""
    return fit_square(decode(content, size), size)


def resize_and_crop(content, resize, crop):
    """An encoded image as ImageNet's evaluation sees it: uint8 (crop, crop, 3).

    resize: of the shorter side;  crop: of the middle square cut from that; both in pixels
    """
    image = torch.from_numpy(decode(content)).permute(2, 0, 1)  # HWC -> CHW
    image = transforms.center_crop(transforms.resize(image, [resize]), [crop, crop])
    return image.permute(1, 2, 0).numpy()


def classify(classifier, paths, topk, batch_size):
    """Yields a Prediction for each path, in order; at most `batch_size` images are in memory."""
    named = {printable(name): name for name in classifier.classes}
    for first in range(0, len(paths), batch_size):
        batch, pictures, errors = paths[first : first + batch_size], {}, {}
        for path in batch:
            try:
                pictures[path] = in_time(classifier.fit, read_file(path))
            except Unreadable as error:
                errors[path] = str(error)
        best = dict(zip(pictures, best_classes(classifier, pictures.values(), topk), strict=True))
        for path in batch:
            if path in best and not all(math.isfinite(p) for _, p in best[path]):
                errors[path] = f"{classifier.name} gives numbers that are not finite"
            outcome = pictures.get(path), best.get(path), errors.get(path)
            truth = named.get(printable(Path(path).parent.name))
            yield Prediction(printable(path), *outcome, truth)


def in_time(work, *arguments):
    """What `work` gives or raises; Unreadable where it takes longer than SECONDS."""
    answers = queue.SimpleQueue()

    def answer():
        try:
            answers.put((work(*arguments), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        result, error = answers.get(timeout=SECONDS)
    except queue.Empty:
        raise Unreadable(f"takes longer than {SECONDS} s to decode") from None
    if error:
        raise error
    return result


def best_classes(classifier, pictures, topk):
    """[[(class, probability)]]: the `topk` best classes of each picture, falling."""
    if not pictures:
        return []
    device = next(classifier.model.parameters()).device
    images = torch.from_numpy(np.stack(list(pictures))).to(device)
    precision = getattr(torch, faster_precision(device))
    ((_, logits),) = predict(
        classifier.model, images, classifier.normalise, len(images), precision=precision
    )
    probs, labels = logits.softmax(1).topk(min(topk, logits.shape[1]))
    return [
        [(classifier.classes[label], p) for label, p in zip(*row, strict=True)]
        for row in zip(labels.tolist(), probs.tolist(), strict=True)
    ]


if __name__ == "__main__":
    main()
