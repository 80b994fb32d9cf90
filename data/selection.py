"""The files between step 2 and step 3: selection.csv, scores.npz, skipped.csv, the export."""

import csv
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

HEADER = ["image", "label", "score", "rank"]


def write_selection(path, images, label, score, rank):
    """One row a kept (image, label): `images` (M,) str; label, rank int and score float32 (M,).

    A score is written with the fewest digits that give the same float32 back.
    """
    rows = (
        [i, int(c), str(np.float32(s)), int(r)]
        for i, c, s, r in zip(images, label, score, rank, strict=True)
    )
    _write_csv(path, HEADER, rows)


def read_selection(path, num_classes):
    """-> images (list of str), label (int64), score (float32), rank (int64), M long each.

    Raises ValueError, naming the line, for a file that is no selection over `num_classes` classes.
    """
    images, numbers = [], []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, None) != HEADER:
            raise ValueError(f"{path} does not begin with the line {','.join(HEADER)}")
        for row in rows:
            try:
                image, label, score, rank = row
                numbers.append((int(label), float(score), int(rank)))
            except ValueError:
                raise ValueError(
                    f"{path}, line {rows.line_num}: {row} is no selection row"
                ) from None
            if not 0 <= numbers[-1][0] < num_classes:
                raise ValueError(
                    f"{path}, line {rows.line_num}: label {label} is not below {num_classes}"
                )
            images.append(image)
    if not images:
        raise ValueError(f"{path} selects no images; lower --min-score in step 2")
    label, score, rank = zip(*numbers, strict=True)
    return images, np.array(label, np.int64), np.array(score, np.float32), np.array(rank, np.int64)


def write_skipped(path, skipped):
    """`skipped`: (image, reason) pairs."""
    _write_csv(path, ["image", "reason"], skipped)


def write_scores(path, images, score, label):
    """images (N,) str, score float32 (N,P) falling, label int32 (N,P); no pickles inside."""
    partial = Path(path).with_name("scores.partial.npz")
    np.savez(partial, image=np.array(images, dtype=np.str_), score=score, label=label)
    os.replace(partial, path)


def _write_csv(path, header, rows):
    partial = Path(path).with_name(Path(path).name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(partial, path)


def export(folder, classes, pictures, label, rank):
    """Write the selection as class folders for other programs: FOLDER/<class>/<rank>-<name>.

    pictures: M pairs (file or None, uint8 RGB (S,S,3)); an image that is a file of its own is
    copied as it is, any other is written as PNG from the cache.
    Raises ValueError when FOLDER is not empty.
    """
    folder = Path(folder)
    check_export(folder)
    for (file, image), c, r in zip(pictures, label, rank, strict=True):
        where = folder / classes[c].replace("/", "_")
        where.mkdir(parents=True, exist_ok=True)
        if file is not None:
            shutil.copyfile(file, where / f"{r:05d}-{file.name}")
        else:
            _, png = cv2.imencode(".png", image[..., ::-1])  # RGB -> BGR
            (where / f"{r:05d}.png").write_bytes(png)


def check_export(folder):
    """ValueError when the folder to export to holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--export {folder} is not empty; name a new folder")
