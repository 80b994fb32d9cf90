"""The files between step 2 and step 3: selection.csv, scores.npz, skipped.csv, the export."""

import csv
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np

CHUNK = 65_536  # entries in memory at once
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


class ScoreFile:
    """The P best classes of one entry after another, on the way to scores.npz."""

    def __init__(self, path, p):
        self.path = Path(path)
        self.record = np.dtype([("score", np.float32, (p,)), ("label", np.int32, (p,))])

    def open(self, rows):
        """To be written after the first `rows` entries; what followed them is cut off."""
        mode = "r+b" if rows else "wb"
        self._file = open(self.path, mode, buffering=0)  # noqa: SIM115 - open for a while
        self._file.truncate(rows * self.record.itemsize)
        self._file.seek(0, os.SEEK_END)

    def write(self, score, label):
        """score float32, label int (B,P)."""
        rows = np.empty(len(score), self.record)
        rows["score"], rows["label"] = score, label
        left = memoryview(rows.tobytes())
        while left:  # a disk that is nearly full takes a part before it complains
            left = left[self._file.write(left) :]

    def flush(self):
        """Return when the entries are on the disk."""
        os.fsync(self._file.fileno())

    def read(self):
        """The entries written, memory-mapped: fields score and label, (N,P) each."""
        if not self.path.stat().st_size:  # nothing to map
            return np.empty(0, self.record)
        return np.memmap(self.path, self.record, "r")


def write_scores(path, names, usable, files):
    """scores.npz, a chunk at a time, no pickles inside: image (n,), score and label (n,P).

    names(first, last): str of each entry;  usable(first, last): bool, entries to be written;
    files: ScoreFile's that hold the N entries one after the other
    """
    chunks, start = [], 0
    for file in files:
        rows = file.read()
        for first in range(0, len(rows), CHUNK):
            last = min(first + CHUNK, len(rows))
            chunks.append((rows[first:last], start + first, start + last))
        start += len(rows)
    count = longest = 0
    for _, first, last in chunks:
        here = usable(first, last)
        count += int(here.sum())
        longest = max(longest, *map(len, names(first, last)))
    p = files[0].record["score"].shape[0]
    columns = {
        "image": (f"<U{longest}", (count,), lambda rows, first, last: names(first, last)),
        "score": ("<f4", (count, p), lambda rows, first, last: rows["score"]),
        "label": ("<i4", (count, p), lambda rows, first, last: rows["label"]),
    }
    partial = Path(path).with_name("scores.partial.npz")
    with zipfile.ZipFile(partial, "w") as archive:
        for name, (kind, shape, column) in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in chunks:
                    values = np.asarray(column(*chunk), kind)[usable(*chunk[1:])]
                    member.write(np.ascontiguousarray(values).tobytes())
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
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for (file, image), c, r in zip(pictures, label, rank, strict=True):
        where = partial / classes[c].replace("/", "_")
        where.mkdir(parents=True, exist_ok=True)
        if file is not None:
            name = os.fsdecode(os.fsencode(file.name)[-240:])  # a name has at most 255 bytes
            shutil.copyfile(file, where / f"{r:05d}-{name}")
        else:
            _, png = cv2.imencode(".png", image[..., ::-1])  # RGB -> BGR
            (where / f"{r:05d}.png").write_bytes(png)
    if folder.exists():
        folder.rmdir()  # it is empty; not every system renames onto a folder
    partial.rename(folder)


def check_export(folder):
    """ValueError when the folder to export to holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--export {folder} is not empty; name a new folder")
