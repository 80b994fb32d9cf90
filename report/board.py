"""What TensorBoard shows of a stage: curves, settings, figures, the projector."""

import json

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from data import UNKNOWN

from .diagnostics import verdicts

_EMBEDDED = 1000  # test images in the embedding projector, at most
_SPRITE = 32  # pixels a side of their pictures: all of them share one of 8192 px at most
_BEST = 8  # images of a class shown
_CLASSES = 20  # in one figure of the best images
_PAIRS = 16  # near-duplicates shown beside the labelled images that they resemble


class Board:
    """The events file of a folder.  A context manager: it closes the file.

    images, below, is anything that gives uint8 RGB (B,S,S,3) for `images[positions]`, positions
    int64 (B,), on the CPU: a tensor or data.Images.
    """

    def __init__(self, folder, purge_step=None):
        """purge_step: on resume, the first epoch to be drawn again; what was drawn of it goes."""
        from . import (
            figures,
        )  # here: matplotlib takes half a second, which --help need not wait for

        self._figures = figures
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=20)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._writer.close()

    def settings(self, config):
        """config: the content of config.json, shown as text."""
        self._writer.add_text("settings", f"```json\n{json.dumps(config, indent=2)}\n```")

    def epoch(self, metrics):
        """A point on each curve; `metrics`: numbers by name, with the epoch's as "epoch"."""
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, metrics["epoch"])

    def hparams(self, hparams, result):
        """A line in the table of runs: settings, and the numbers of result.json as final/*."""
        kinds = (int, float, str, bool)
        plain = {k: v if isinstance(v, kinds) else str(v) for k, v in hparams.items()}
        new = {k: v for k, v in result.items() if k not in hparams and isinstance(v, (int, float))}
        numbers = {f"final/{name}": value for name, value in new.items()}
        self._writer.add_hparams(plain, numbers, run_name=".")
        self._writer.flush()

    # --- training ---------------------------------------------------------------------------

    def training_batch(self, images, names):
        """images: uint8 (B,S,S,3), augmented;  names: the class of each."""
        heading = "Training images as the network sees them"
        figure = self._figures.image_batch(np.asarray(images), names, heading)
        self._writer.add_figure("augmented inputs", figure)

    def test_results(self, logits, labels, classes, epoch):
        """Confusion matrix and precision-recall curves.

        logits (N,C), labels int64 (N,), on the CPU;  classes: C names
        """
        number = len(classes)
        cell = labels * number + logits.argmax(1)
        matrix = cell.bincount(minlength=number**2).view(number, number).numpy()
        figure = self._figures.confusion_matrix(matrix, classes)
        self._writer.add_figure("test/confusion matrix", figure, epoch)
        probs = logits.softmax(1)
        for label, name in enumerate(classes):
            tag = f"test precision-recall/{name}"
            self._writer.add_pr_curve(tag, labels == label, probs[:, label], epoch)

    def test_features(self, features, labels, images, classes):
        """The projector.  features float (N,D), labels int64 (N,), on the CPU; N images."""
        count = len(labels)
        shown = torch.arange(0, count, max(1, count // _EMBEDDED))[:_EMBEDDED]
        pictures = images[shown].cpu().permute(0, 3, 1, 2).float() / 255
        if pictures.shape[2] > _SPRITE:
            pictures = torch.nn.functional.interpolate(pictures, (_SPRITE, _SPRITE), mode="area")
        names = [classes[label] for label in labels[shown]]
        self._writer.add_embedding(
            features[shown].float(), metadata=names, label_img=pictures, tag="test features"
        )

    # --- selection --------------------------------------------------------------------------

    def selection(self, rows, images, histogram, classes, k):
        """The best images of each class, scores, images per class, accuracy by rank.

        rows: diagnostics.SelectedRows;  images: the pool's
        histogram: int64 (bins,), the scored images by the score of their best class, from 0 to 1
        """
        correct = verdicts(rows)
        self._best_images(rows, images, classes, correct)
        self._writer.add_histogram("selection/score, kept", rows.score)
        figure = self._figures.score_histogram(np.asarray(histogram), rows.score)
        self._writer.add_figure("selection/scores", figure)
        counts = np.bincount(rows.label, minlength=len(classes))
        figure = self._figures.per_class_counts(counts, classes, k)
        self._writer.add_figure("selection/images per class", figure)
        judged = rows.truth != UNKNOWN
        if judged.any():
            last = max(k, rows.rank.max())
            right = correct[judged].astype(bool)
            figure = self._figures.accuracy_by_rank(rows.rank[judged], right, last)
            self._writer.add_figure("selection/accuracy by rank", figure)

    def _best_images(self, rows, images, classes, correct):
        for number, first in enumerate(range(0, len(classes), _CLASSES)):
            some = range(first, min(first + _CLASSES, len(classes)))
            best = [np.flatnonzero(rows.label == label)[:_BEST] for label in some]
            figure = self._figures.best_images(
                [np.asarray(images[torch.from_numpy(rows.position[which])]) for which in best],
                [rows.score[which] for which in best],
                [correct[which] for which in best],
                [classes[label] for label in some],
                f"Best-ranked images, classes {first + 1} to {some.stop} of {len(classes)}",
            )
            self._writer.add_figure("selection/best images of each class", figure, number)

    def near_duplicates(self, pairs, pool, labelled):
        """Pool images beside the labelled images that they resemble, from the nearest to the limit.

        pairs: (position in the pool, position in the labelled images, similarity from 0 to 1,
        subset: "train", "val" or "test") of each;  pool, labelled: images
        """
        if not pairs:
            return
        pairs = sorted(pairs, key=lambda pair: -pair[2])
        at = np.unique(np.linspace(0, len(pairs) - 1, _PAIRS).astype(int))
        ours, theirs, similarity, subset = zip(*[pairs[i] for i in at], strict=True)
        titles = [f"{name} {value:.2f}" for name, value in zip(subset, similarity, strict=True)]
        ours, theirs = pool[torch.tensor(ours)], labelled[torch.tensor(theirs)]
        figure = self._figures.pairs(np.asarray(ours), np.asarray(theirs), titles)
        self._writer.add_figure("left out/near-duplicates", figure)

    # --- predict.py -------------------------------------------------------------------------

    def predictions(self, pictures, best, name, first):
        """pictures: uint8 (S,S,3) each;  best: (class, probability) of each;  name: the network's;
        first: how many pictures are on the board already.
        """
        titles = [f"{self._figures.shorten(c, 13)} {probability:.0%}" for c, probability in best]
        figure = self._figures.image_batch(pictures, titles, f"Predictions of {name}")
        tag = f"predictions/{first + 1} to {first + len(pictures)}"
        self._writer.add_figure(tag, figure)
