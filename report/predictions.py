"""What predict.py shows: a table with bars, JSON, pictures for TensorBoard."""

import json
import sys
from itertools import islice
from typing import NamedTuple

import numpy as np

from .tables import printable

BAR = 24  # characters of a bar of 100 %
PER_FIGURE = 64  # pictures


class Prediction(NamedTuple):
    """What a network sees in an image; of an unreadable image only the name and the error."""

    name: str  # printable
    picture: np.ndarray | None  # uint8 (S, S, 3), as the network saw it
    best: list | None  # [(class, probability)], falling
    error: str | None
    truth: str | None = None  # the class, where the image lies in a folder named after one

    @property
    def mark(self):
        """Whether the best class is the true one, as text; empty where that is not known."""
        if self.truth is None or not self.best:
            return ""
        right = self.best[0][0] == self.truth
        return "  (right)" if right else f"  (wrong: {printable(self.truth)})"


def print_table(predictions):
    """Print the best classes with bars, broken images on stderr.  -> the number classified"""
    classified = 0
    for prediction in predictions:
        if prediction.error:
            print(f"{prediction.name}: {prediction.error}", file=sys.stderr, flush=True)
            continue
        classified += 1
        width = max(len(printable(name)) for name, _ in prediction.best)
        lines = [
            f"  {printable(name):<{width}} {100 * p:6.2f} %  {bar(p)}"
            for name, p in prediction.best
        ]
        print(prediction.name + prediction.mark, *lines, sep="\n", flush=True)
    return classified


def bar(share):
    """`share`, 0 to 1, as a bar; of # where the output takes no block characters."""
    if not (sys.stdout.encoding or "utf-8").lower().startswith("utf"):
        return "#" * round(BAR * share)
    whole, eighths = divmod(round(8 * BAR * share), 8)
    return "\N{FULL BLOCK}" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def print_json(predictions):
    """Print an array, object by object.  -> the number classified"""
    classified, separator = 0, "["
    for prediction in predictions:
        if prediction.error:
            facts = {"error": prediction.error}
        else:
            facts = {"predictions": [{"class": c, "probability": p} for c, p in prediction.best]}
            facts |= {"truth": prediction.truth} if prediction.truth else {}
            classified += 1
        line = json.dumps({"image": prediction.name, **facts}, allow_nan=False)
        print(separator, line, sep="\n", end="", flush=True)
        separator = ","
    print("\n]")
    return classified


def with_board(predictions, folder, name):
    """Passes the predictions on and draws the pictures among them for TensorBoard.

    folder: where the events file goes;  name: the network's
    """
    from .board import Board  # here: TensorBoard takes long to import

    with Board(folder) as board:
        drawn = 0
        while batch := list(islice(predictions, PER_FIGURE)):
            good = [prediction for prediction in batch if not prediction.error]
            if good:
                best = [(printable(x.best[0][0]), x.best[0][1]) for x in good]
                board.predictions([x.picture for x in good], best, name, drawn)
                drawn += len(good)
            yield from batch
