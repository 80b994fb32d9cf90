"""The files that step 2 writes: selection.csv, scores.npz, skipped.csv, and the export."""

import csv
import os
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np

from files import whole_file

from .decode import cv2
from .listing import spans

HEADER = ["image", "label", "score", "rank"]


def write_selection(path, images, label, score, rank):
    """One row for each kept (image, label).

    images: str (M,);  label, rank: int (M,);  score: float32 (M,), written with the fewest digits
    that are read back as the same float32
    """
    columns = zip(images, label, score, rank, strict=True)
    rows = ([i, int(c), str(np.float32(s)), int(r)] for i, c, s, r in columns)
    _write_csv(path, HEADER, rows)


def read_selection(path, num_classes):
    """-> images (list of str), label (int64), score (float32), rank (int64), M long each.

    Raises ValueError, naming the line, for a file that is no selection over `num_classes` classes.
    """
    images, numbers = [], []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.reader(file)
        try:
            if next(rows, None) != HEADER:
                raise ValueError(f"does not begin with {','.join(HEADER)}")
            for image, label, score, rank in rows:
                image.encode()  # fails for bytes that are not UTF-8
                numbers.append((int(label), float(score), int(rank)))
                if not 0 <= numbers[-1][0] < num_classes:
                    raise ValueError(f"the label is not from 0 to {num_classes - 1}: {label}")
                if not 0 < numbers[-1][2] < 2**63:
                    raise ValueError(f"the rank is not from 1 on: {rank}")
                images.append(image)
        except (ValueError, csv.Error) as error:
            line = max(1, rows.line_num)
            raise ValueError(f"{path}, line {line} is no selection row ({error})") from error
    if not images:
        raise ValueError(f"{path} selects no images; lower --min-score in step 2")
    label, score, rank = zip(*numbers, strict=True)
    return images, np.array(label, np.int64), np.array(score, np.float32), np.array(rank, np.int64)


def read_soft_labels(path, images, num_classes):
    """The teacher's probabilities of its P best classes, scaled to sum to 1: float32 (M,C).

    path: scores.npz;  images: the M names of a selection
    Raises ValueError for a name that has no scores.
    """
    with np.load(path, allow_pickle=False) as scores:
        row = {name: i for i, name in enumerate(scores["image"].tolist())}
        if missing := next((name for name in images if name not in row), None):
            raise ValueError(f"{path} has no scores of {missing!r}; run step 2 with --overwrite")
        rows = np.array([row[name] for name in images])
        score, label = scores["score"][rows], scores["label"][rows]
    soft = np.zeros((len(images), num_classes), np.float32)
    np.put_along_axis(soft, label, score / score.sum(1, keepdims=True), 1)
    return soft


def write_skipped(path, skipped):
    """`skipped`: (image, reason) pairs."""
    _write_csv(path, ["image", "reason"], skipped)


class ScoreFile:
    """The scores and labels of the P best classes, entry after entry, until scores.npz is made."""

    def __init__(self, path, p):
        self.path, self.checksum = Path(path), 0
        self.record = np.dtype([("score", np.float32, (p,)), ("label", np.int32, (p,))])

    def check(self, entries, checksum):
        """ValueError unless the first `entries` entries have this CRC-32; None for any."""
        size = entries * self.record.itemsize
        whole = not size or (self.path.exists() and self.path.stat().st_size >= size)
        if whole and size:
            self.checksum = zlib.crc32(np.memmap(self.path, np.uint8, "r", shape=size))
        if not whole or checksum not in (None, self.checksum):
            raise ValueError(
                f"{self.path} is not what this stage has written; start the stage anew with "
                f"--overwrite"
            )

    def open(self, entries):
        """Open the file for writing after its first `entries` entries; any others are cut off."""
        mode = "r+b" if entries else "wb"
        self._file = open(self.path, mode, buffering=0)  # noqa: SIM115 - it stays open
        self._file.truncate(entries * self.record.itemsize)
        self._file.seek(0, os.SEEK_END)

    def write(self, score, label):
        """score: float32 (B,P);  label: int (B,P)"""
        entries = np.empty(len(score), self.record)
        entries["score"], entries["label"] = score, label
        left = memoryview(entries.tobytes())
        self.checksum = zlib.crc32(left, self.checksum)
        while left:  # a nearly full disk takes a part before it raises
            left = left[self._file.write(left) :]

    def flush(self):
        """Return when the entries are on the disk."""
        os.fsync(self._file.fileno())

    def read(self):
        """The entries written, memory-mapped: fields score and label, (N,P) each."""
        if not self.path.stat().st_size:  # an empty file cannot be mapped
            return np.empty(0, self.record)
        return np.memmap(self.path, self.record, "r")


def write_scores(path, names, scorable, files):
    """Write scores.npz, a block at a time and without pickles: image (n,), score and label (n,P).

    names(first, last): str of each entry;  scorable(first, last): bool, which entries to write
    files: [ScoreFile], which hold the N entries one after the other
    """
    chunks, start = [], 0
    for file in files:
        entries = file.read()
        for first, last in spans(len(entries)):
            chunks.append((entries[first:last], start + first, start + last))
        start += len(entries)
    count = sum(int(scorable(first, last).sum()) for _, first, last in chunks)
    longest = max((len(name) for _, *span in chunks for name in names(*span)), default=0)
    p = files[0].record["score"].shape[0]
    columns = {
        "image": (f"<U{longest}", (count,), lambda entries, *span: names(*span)),
        "score": ("<f4", (count, p), lambda entries, *span: entries["score"]),
        "label": ("<i4", (count, p), lambda entries, *span: entries["label"]),
    }
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, (kind, shape, column) in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in chunks:
                    values = np.asarray(column(*chunk), kind)[scorable(*chunk[1:])]
                    member.write(np.ascontiguousarray(values).tobytes())


def _write_csv(path, header, rows):
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        plain = csv.writer(file, lineterminator="\n")
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writerow(header)
        for row in rows:  # `usual` leaves a carriage return unquoted, which ends a line for readers
            (quoted if any("\r" in str(field) for field in row) else plain).writerow(row)


def export(folder, classes, pictures, label, rank):
    """Write the selection as class folders for other programs: FOLDER/<class>/<rank>-<name>.

    pictures: M pairs (file or None, uint8 RGB (S,S,3)).  An image that is a file of its own is
    copied as it is; any other is written as PNG from the cache.
    Raises ValueError when FOLDER is not empty.
    """
    folder = Path(folder)
    check_export(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(folder) as partial:
        partial.mkdir()
        for (file, image), c, r in zip(pictures, label, rank, strict=True):
            where = partial / classes[c].replace("/", "_")
            where.mkdir(exist_ok=True)
            if file is not None:
                name = os.fsdecode(os.fsencode(file.name)[-240:])  # a name has at most 255 bytes
                shutil.copyfile(file, where / f"{r:05d}-{name}")
            else:
                _, png = cv2.imencode(".png", image[..., ::-1])  # RGB -> BGR
                (where / f"{r:05d}.png").write_bytes(png)


def check_export(folder):
    """Raises ValueError unless the folder is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--export {folder} is not empty; name a new folder")
