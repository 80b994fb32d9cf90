"""The leak guard: pool images that equal, or nearly equal, a labelled one are found and left out;
a test image among them would be trained on.

Exact copies have the same pixels at the network's input size.  Near copies (encoded again,
brighter, cropped by a pixel) are found in two steps: the nearest labelled images by an 8x8 grey
thumbnail, then a comparison of those few at 32x32 in colour.  `similarity` is the mean of two
correlations, of the colours and of the detail left when a 5x5 blur is taken away, at the best of
nine shifts by at most a pixel.  Colours alone take one field under a sky for another; detail alone
takes frames for each other.

NEAR was chosen on CIFAR-100, test against training set, by looking at pairs on both sides of it:

    similarity above             0.77   0.73   0.69   0.65   0.62   0.59
    test images (of 10,000)       300    400    500    600    700    800
    same class, of the last 100    99     98     90     84     72     63
    Tiny-ImageNet (of 50,000)       9     17     32     75    137    239

ciFAIR counts 891 test images with a near-duplicate; those missed here are other crops, and other
photographs of one object.  At 0.64, 618 are found, and 0.2 % of Tiny-ImageNet is given up, most of
it wrongly.  CIFAR-100 saved as JPEG of quality 50 or made 10 % brighter stays above 0.70
(1,000 images tried).

Where the labelled images are so alike that more than SELF_SIMILAR of them are near-duplicates of
one another (handwritten digits: nearly all), STRICT holds instead.  It drops one training digit of
1,198 for resembling a test digit, and still finds 99 % of those saved at quality 50.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

import distributed

from .images import Images

PARTS = ("train", "val", "test")
VERSION = 1  # raise it when the answers change: they are kept
NEAR = 0.64  # see above
STRICT = 0.97
SELF_SIMILAR = 0.2
NEIGHBOURS = 3  # candidates for the comparison in colour
MAX_DISTANCE = 0.5  # between thumbnails of unit norm: a correlation of 0.875
FLAT = 2.0  # grey levels of contrast below which a thumbnail is noise
CHUNK = 4096  # images at once, which bounds the memory
PAIRS = 128  # compared at once, few enough to stay in the processor's cache
SIDE = 32  # pixels, of the images compared in colour


class Duplicate(NamedTuple):
    position: int  # in the images asked about
    match: int  # in the labelled images
    similarity: float | None  # None: the very same pixels


class LeakGuard:
    """The labelled images, and what they answer about blocks of a pool.

    images    data.Images: those that train, those of validation, those of the test set
    """

    def __init__(self, labelled, parts, folder):
        """labelled: LabelledSet;  parts: Split;  folder: where the answers are kept"""
        own = {"train": parts.labelled, "val": parts.val}
        train, test = Images.of(labelled.train_images), Images.of(labelled.test_images)
        self.images = Images.joined(
            *(train.subset(torch.from_numpy(rows)) for rows in own.values()), test
        )
        prints = [labelled.train_prints[rows] for rows in own.values()]
        self.prints = np.concatenate([*prints, labelled.test_prints])
        names = [labelled.train_names[rows] for rows in own.values()]
        self.names = np.concatenate([*names, labelled.test_names])
        self.ends = np.cumsum([*map(len, own.values()), len(labelled.test_names)])
        self.folder = Path(folder)
        self._digest = hashlib.sha256(self.prints.tobytes()).digest()
        self._index = None

    def part_of(self, duplicate):
        """ "train", "val" or "test": where the labelled image of a Duplicate is from."""
        return PARTS[int(np.searchsorted(self.ends, duplicate.match, side="right"))]

    def reason(self, duplicate):
        """Why a Duplicate is left out, for skipped.csv."""
        like = f"of a labelled image: {self.part_of(duplicate)} {self.names[duplicate.match]}"
        if duplicate.similarity is None:
            return f"duplicate {like}"
        return f"near-duplicate {like}, similarity {duplicate.similarity:.2f}"

    def find(self, images, prints, skip=()):
        """The duplicates in a block of a pool: list of Duplicate, by position.

        images: data.Images (B of them), at the labelled images' size;  prints: uint8 (B, 16), their
        `fingerprints`;  skip: positions in the block to pass by
        """
        facts = f"{VERSION} {images.shape} {self.images.shape}".encode()
        digest = hashlib.sha256(facts + self._digest + prints.tobytes() + bytes(str(skip), "ascii"))
        path = self.folder / f"{digest.hexdigest()[:32]}.json"
        try:
            return [Duplicate(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (FileNotFoundError, ValueError, TypeError):  # not asked before, or damaged
            found = self._find(images, prints, skip)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{distributed.unique_name()}")
        partial.write_text(json.dumps(found), encoding="utf-8")
        os.replace(partial, path)
        return found

    def _find(self, images, prints, skip):
        known = {row.tobytes(): i for i, row in reversed(list(enumerate(self.prints)))}
        match = np.array([known.get(row.tobytes(), -1) for row in prints], np.int64)
        readable = np.ones(len(prints), bool)
        readable[list(skip)] = False
        found = [
            Duplicate(int(i), int(match[i]), None) for i in np.flatnonzero((match >= 0) & readable)
        ]
        rest = np.flatnonzero((match < 0) & readable)
        if self._index is None:
            self._index = _Index(self.images)
        for start in tqdm(range(0, len(rest), CHUNK), desc="leak guard", unit="chunk",
                          disable=None, leave=False):  # fmt: skip
            rows = rest[start : start + CHUNK]
            similarity, match = self._index.nearest(images[torch.from_numpy(rows)].numpy())
            found += [
                Duplicate(int(rows[i]), int(match[i]), round(float(similarity[i]), 4))
                for i in np.flatnonzero(similarity >= self._index.threshold)
            ]
        return sorted(found)


class _Index:
    """The labelled images, ready to be searched."""

    def __init__(self, images):
        self.images = images
        thumbnails, contrast = [], []
        for start in range(0, len(images), CHUNK):
            unit, spread = _describe(_resize(images[start : start + CHUNK].numpy(), 8))
            thumbnails.append(unit)
            contrast.append(spread)
        from sklearn.neighbors import NearestNeighbors  # a second to import, and seldom needed

        self.thumbnails = np.concatenate(thumbnails)
        self.flat = np.flatnonzero(np.concatenate(contrast) < FLAT)
        self.neighbours = NearestNeighbors(algorithm="brute").fit(self.thumbnails)
        if len(self.flat):
            flat = _resize(self._pixels(self.flat), 8).reshape(len(self.flat), -1)
            self.colours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat)
        self.threshold = self._usual_threshold()

    def _usual_threshold(self):
        """NEAR, or STRICT where the labelled images themselves are all alike."""
        rows = np.sort(np.random.RandomState(0).permutation(len(self.images))[:1000])
        alike = self.nearest(self._pixels(rows), own=rows)[0] >= NEAR
        return STRICT if alike.mean() > SELF_SIMILAR else NEAR

    def _pixels(self, rows):
        return self.images[torch.from_numpy(rows)].numpy()

    def nearest(self, images, own=None):
        """The labelled image most similar to each image: similarity (B,), position (B,).

        images: uint8 (B, S, S, 3);  own: (B,) labelled positions that do not count
        A similarity of 0 says that none comes near.
        """
        unit, contrast = _describe(_resize(images, 8))
        best, which = np.zeros(len(images), np.float32), np.zeros(len(images), np.int64)
        count = min(NEIGHBOURS + (own is not None), len(self.thumbnails))
        distance, match = self.neighbours.kneighbors(unit, count)
        candidate = (distance < MAX_DISTANCE) & (contrast >= FLAT)[:, None]
        if own is not None:
            candidate &= match != own[:, None]
        pairs = np.argwhere(candidate)
        for start in range(0, len(pairs), PAIRS):
            query, column = pairs[start : start + PAIRS].T
            similarity = _compare(images[query], self._pixels(match[query, column]))
            for i, labelled, value in zip(query, match[query, column], similarity, strict=True):
                if value > best[i]:
                    best[i], which[i] = value, labelled
        rows = np.flatnonzero(contrast < FLAT)
        if len(rows) and len(self.flat) and own is None:
            best[rows], which[rows] = self._same_colours(images[rows])
        return best, which

    def _same_colours(self, images):
        """Images of almost no contrast have no shape to correlate: 1 where the colours agree."""
        ours = _resize(images, 8).reshape(len(images), -1)
        match = self.flat[self.colours.kneighbors(ours, return_distance=False)[:, 0]]
        apart = np.abs(_resize(images, SIDE) - _resize(self._pixels(match), SIDE))
        return apart.mean((1, 2, 3)) <= FLAT, match


def _resize(images, side):
    """uint8 (B, S, S, 3) -> float32 (B, side, side, 3)"""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.array(small, np.float32).reshape(-1, side, side, 3)


def _describe(small):
    """Thumbnails float32 (B, 8, 8, 3) -> grey without mean, of unit norm (B, 64); contrast (B,)"""
    grey = (small @ np.array([0.299, 0.587, 0.114], np.float32)).reshape(len(small), 64)
    grey -= grey.mean(1, keepdims=True)
    norm = np.linalg.norm(grey, axis=1)
    return grey / np.maximum(norm, 1e-6)[:, None], norm / 8


def _compare(ours, theirs):
    """Mean correlation of colour and detail of pairs of images, at the best shift.

    ours, theirs: uint8 (B, S, S, 3) -> float32 (B,)
    """
    ours, theirs = _resize(ours, SIDE), _resize(theirs, SIDE)
    colour = _correlate(_colour(ours), _colour(theirs))
    detail = _correlate(_detail(ours), _detail(theirs))
    return (colour + detail).max(0) / 2


def _colour(images):
    return images - images.mean((1, 2), keepdims=True)


def _detail(images):
    blurred = np.stack([cv2.blur(image, (5, 5)) for image in images])
    # Clipped, so that one strong edge (a horizon, a frame) does not outweigh everything else.
    return np.clip(images - blurred, -8, 8)


def _correlate(ours, theirs):
    """The middle of their images laid over ours at all shifts by -1, 0, 1.

    ours, theirs: float32 (B, SIDE, SIDE, 3) -> (9, B)

    In flat images a shift is an offset; what it wraps around meets the zeros outside the middle.
    """
    row, count = SIDE * 3, SIDE * SIDE * 3
    middle = np.zeros((SIDE, SIDE, 3), np.float32)
    middle[1:-1, 1:-1] = 1
    middle = middle.ravel()
    theirs = theirs.reshape(-1, count) * middle
    ours = np.pad(ours.reshape(-1, count), ((0, 0), (row + 3, row + 3)))
    squares, their_square = ours * ours, np.einsum("bk,bk->b", theirs, theirs)
    shifts = []
    for start in (down * row + right * 3 for down in range(3) for right in range(3)):
        here = np.s_[:, start : start + count]
        norm = np.sqrt(squares[here] @ middle * their_square)
        shifts.append(np.einsum("bk,bk->b", ours[here], theirs) / np.maximum(norm, 1))
    return np.array(shifts)
