"""What TensorBoard shows of a stage: curves, tables, figures, the projector.

TensorBoard sorts groups of tags by name: numbers put the curves first and let them tell the story.
"""

import sys
import threading
import warnings

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from data.sources import UNKNOWN

from .diagnostics import confusion, count_by_class, most_confused, verdicts
from .tables import flat, shorten

_EMBEDDED = 1000  # test images in the embedding projector, at most
_SPRITE = 32  # pixels a side of their pictures: all of them share one of 8192 px at most
_BEST = 8  # images of a class shown
_CLASSES = 20  # in one figure of the best images
_PAIRS = 16  # near-duplicates shown beside the labelled images that they resemble
_MISTAKES = 32  # misclassified test images shown
_CURVED = 20  # classes, above which precision-recall curves would be a page without end
# A curve for each name of metrics.jsonl.  Training's own accuracy is no measure of the network.
_CURVES = {
    "val_top1": "1 accuracy/validation top-1",
    "val_top5": "1 accuracy/validation top-5",
    "train_top1": "1 accuracy/training batches, augmented, against the labels given",
    "train_loss": "2 loss/training",
    "lr": "3 learning rate/learning rate",
    "images_per_second": "4 speed/images a second",
    "seconds": "4 speed/seconds an epoch",
}
# The columns of the table of runs (HPARAMS), the same for every stage: TensorBoard takes them from
# any one run.  They are what one changes, of the whole chain; the texts have all the rest.
_SETTINGS = {"stage": "", "seed": 0, "labels_per_class": 0, "strategy": "", "p": 0, "k": 0}
for _stage in ("teacher", "student", "finetuned"):
    _SETTINGS |= {f"{_stage} learning_rate": 0.0, f"{_stage} epochs": 0}
_FINAL = {
    "test_top1": "5 final, for HPARAMS/test top-1",
    "test_top5": "5 final, for HPARAMS/test top-5",
    "val_top1": "5 final, for HPARAMS/validation top-1",
    "pseudo_label_accuracy": "5 final, for HPARAMS/labels right, of all rows",
    "of_those_with_a_class": "5 final, for HPARAMS/labels right, of rows with a class",
}


class Board:
    """The events file of a folder.  A context manager: it closes the file.

    images, below, is anything that gives uint8 RGB (B,S,S,3) for `images[positions]`, positions
    int64 (B,), on the CPU: a tensor or data.Images.
    """

    def __init__(self, folder, purge_step=None):
        """purge_step: on resume, the first step to be drawn anew; what is there from it on goes."""
        from . import (
            figures,
        )  # here: matplotlib takes half a second, which --help need not wait for

        self._figures, self._said = figures, False
        threading.excepthook = _say_no_error_twice
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=20)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._writer.close()

    def _draw(self, tag, step, draw, *numbers):
        """A figure, `draw(*numbers)`.  Its failure costs one line on stderr, never the stage; an
        error of the disk is the stage's own.
        """
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                self._writer.add_figure(tag, draw(*numbers), step)
            except OSError:
                raise
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"TensorBoard lacks the picture {tag!r}: {reason}", file=sys.stderr)
        if not self._said and any(
            "missing from font" in str(warning.message) for warning in warned
        ):
            self._said = True
            print("TensorBoard's pictures have boxes for letters of class names that their font, "
                  "DejaVu Sans, lacks", file=sys.stderr)  # fmt: skip

    def settings(self, config):
        """config: the content of config.json, shown as a table."""
        self._writer.add_text("settings", table(("setting", "value"), flat(config)))
        self._writer.flush()  # nothing waits that would be written into a folder made anew

    def epoch(self, metrics, images):
        """A point on each curve: numbers by name, after so many images of this training."""
        for name, tag in _CURVES.items():
            if name in metrics:
                self._writer.add_scalar(tag, metrics[name], images)
        self._writer.flush()

    def hparams(self, hparams, result):
        """A line in the table of runs, settings and accuracies; all of result.json as text."""
        kinds = (int, float, str, bool)
        plain = {k: v if isinstance(v, kinds) else str(v) for k, v in hparams.items()}
        columns, _, _ = hparams_summaries(_SETTINGS, dict.fromkeys(_FINAL.values(), 0))
        for summary in (columns, *hparams_summaries(plain, {})[1:]):
            self._writer.file_writer.add_summary(summary)
        for name, tag in _FINAL.items():
            if result.get(name) is not None:
                self._writer.add_scalar(tag, result[name])
        text = (
            "Accuracies are in percent; the test images were read once, with the last weights. The "
            "steps of the curves are images processed in this training."
        )
        lines = table(("number of result.json", "value"), flat(result))
        self._writer.add_text("final numbers", f"{text}\n\n{lines}")
        self._writer.flush()

    # --- training ---------------------------------------------------------------------------

    def training_batch(self, images, targets, classes):
        """images: uint8 (B,S,S,3), augmented;  targets: see `label_titles`;  classes: names"""
        heading = "Training images as the network sees them"
        pictures, titles = np.asarray(images), label_titles(targets, classes)
        draw = self._figures.image_batch
        self._draw("training/augmented inputs", None, draw, pictures, titles, heading)

    def test_results(self, logits, labels, classes, step, images):
        """Confusion matrix and the pairs confused most, misclassified images, and, of few classes,
        precision and recall.

        logits (N,C), labels int64 (N,), on the CPU;  classes: C names;  images: N images
        step: images processed in the training
        """
        predicted = logits.argmax(1)
        matrix = confusion(predicted, labels, len(classes))
        draw = self._figures.confusion_matrix
        self._draw("test/1 confusion matrix", step, draw, matrix, classes)
        pairs = table(("true class", "taken for", "images", "% of the true class"),
                      most_confused(matrix, classes))  # fmt: skip
        self._writer.add_text("most confused classes of the test", pairs, step)
        probs = logits.softmax(1)
        self._mistakes(probs, labels, classes, step, images)
        for label, name in enumerate(classes if len(classes) <= _CURVED else ()):
            tag = f"test precision-recall/{name}"
            self._writer.add_pr_curve(tag, labels == label, probs[:, label], step)

    def _mistakes(self, probs, labels, classes, step, images):
        """Misclassified images, the surest first."""
        sure, predicted = probs.max(1)
        wrong = (predicted != labels).nonzero()[:, 0]
        if not len(wrong):
            return
        shown = wrong[sure[wrong].argsort(descending=True, stable=True)][:_MISTAKES]
        titles = [
            f"{shorten(classes[labels[i]], 8)} as {shorten(classes[predicted[i]], 8)}"
            for i in shown
        ]
        heading = (
            f"Misclassified test images, the {len(shown)} surest of {len(wrong):,}: true as said"
        )
        draw, pictures = self._figures.image_batch, np.asarray(images[shown])
        self._draw("test/2 misclassified", step, draw, pictures, titles, heading)

    def test_features(self, features, labels, images, classes, predicted):
        """The projector, to be coloured by the true class, the predicted one, and right or wrong.

        features float (N,D), labels, predicted int64 (N,), on the CPU; N images
        """
        count = len(labels)
        shown = torch.linspace(0, count - 1, min(count, _EMBEDDED)).long()
        pictures = images[shown].cpu().permute(0, 3, 1, 2).float() / 255
        if pictures.shape[2] > _SPRITE:
            pictures = torch.nn.functional.interpolate(pictures, (_SPRITE, _SPRITE), mode="area")
        names = [" ".join(str(name).split()) for name in classes]  # in a table of tabs and lines
        columns = [
            [names[true], names[said], "right" if true == said else "wrong"]
            for true, said in zip(labels[shown].tolist(), predicted[shown].tolist(), strict=True)
        ]
        self._writer.add_embedding(
            features[shown].float(), metadata=columns, label_img=pictures, tag="test features",
            metadata_header=["true class", "predicted class", "right or wrong"],
        )  # fmt: skip

    # --- selection --------------------------------------------------------------------------

    def selection(self, rows, images, histogram, classes, k):
        """The best images of each class, scores, images per class, accuracy by rank.

        rows: diagnostics.SelectedRows;  images: the pool's
        histogram: int64 (bins,), the scored images by the score of their best class, from 0 to 1
        """
        correct = verdicts(rows)
        self._best_images(rows, images, classes, correct)
        draw = self._figures.score_histogram
        self._draw("selection/scores", None, draw, np.asarray(histogram), rows.score)
        draw, counts = self._figures.kept_per_class, count_by_class(rows, len(classes))
        self._draw("selection/images per class", None, draw, counts, classes, k)
        judged = rows.truth != UNKNOWN
        if judged.any():
            last, right = max(k, rows.rank.max()), correct[judged].astype(bool)
            draw = self._figures.accuracy_by_rank
            self._draw("selection/accuracy by rank", None, draw, rows.rank[judged], right, last)

    def _best_images(self, rows, images, classes, correct):
        for number, first in enumerate(range(0, len(classes), _CLASSES)):
            labels = range(first, min(first + _CLASSES, len(classes)))
            best = [np.flatnonzero(rows.label == label)[:_BEST] for label in labels]
            self._draw(
                "selection/best images of each class",
                number,
                self._figures.best_images,
                [np.asarray(images[torch.from_numpy(rows.position[which])]) for which in best],
                [rows.score[which] for which in best],
                [correct[which] for which in best],
                [classes[label] for label in labels],
                f"Best-ranked images, classes {first + 1} to {labels.stop} of {len(classes)}",
            )

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
        tag, draw = "selection left out/near-duplicates", self._figures.pairs
        self._draw(tag, None, draw, np.asarray(ours), np.asarray(theirs), titles)

    # --- predict.py -------------------------------------------------------------------------

    def predictions(self, pictures, best, name, first):
        """pictures: uint8 (S,S,3) each;  best: (class, probability) of each;  name: the network's;
        first: how many pictures are on the board already.
        """
        titles = [f"{shorten(c, 13)} {probability:.0%}" for c, probability in best]
        tag, draw = f"predictions/{first + 1} to {first + len(pictures)}", self._figures.image_batch
        self._draw(tag, None, draw, pictures, titles, f"Predictions of {name}")


def _say_no_error_twice(failed):
    """threading.excepthook: TensorBoard's thread keeps an error of the disk for the next call of
    its writer, which raises it, so the thread itself prints no traceback.
    """
    if not type(failed.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failed)


# --- texts --------------------------------------------------------------------------------------


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(x).replace("|", "\\|") for x in line) + " |" for line in lines
    )


def label_titles(targets, classes):
    """The class of each training image, of a mixed one both: "70% ant + bee".

    targets: int64 (B,), or class probabilities (B,C)
    """
    if targets.ndim == 1:
        return [classes[label] for label in targets.tolist()]
    titles = []
    for shares, labels in zip(*targets.topk(2), strict=True):
        first, second = (shorten(classes[label], 6) for label in labels.tolist())
        mixed = f"{shares[0]:.0%} {first} + {second}"
        titles.append(mixed if shares[1] > 0.005 else classes[labels[0]])
    return titles
