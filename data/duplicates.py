"""The leak guard finds pool images that equal, or nearly equal, a labelled one, test images above
all: they are skipped, because the student would be trained on them.

An exact copy has the same pixels at the network's input size.  A near copy (encoded again,
brighter, cropped by a pixel) is found in two steps: the nearest labelled images by an 8x8 grey
thumbnail, then a comparison with those few at 32x32 in colour.  `similarity` is the mean of two
correlations, one of the colours and one of the detail that is left when a 5x5 blur is subtracted,
at the best of nine shifts by at most a pixel.  Colours alone would confuse a field with another
under the same sky; detail alone would confuse images with the same frame.

NEAR was chosen on CIFAR-100, test against training set, by looking at pairs on both sides of it:

    similarity above             0.77   0.73   0.69   0.65   0.62   0.59
    test images (of 10,000)       300    400    500    600    700    800
    same class, of the last 100    99     98     90     84     72     63
    Tiny-ImageNet (of 50,000)       9     17     32     75    137    239

CIFAR-100 saved as JPEG of quality 50, or made 10 % brighter, stays above 0.70.  ciFAIR counts 891
test images with a near-duplicate: those missed are other crops, and other photographs.

Some labelled sets are alike throughout, such as handwritten digits: more than SELF_SIMILAR of their
images are near-duplicates of one another.  For them STRICT is the limit instead: it skips one of
1,198 training digits, and finds 99 % of those saved at quality 50.
"""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .decode import cv2
from .images import Images

SUBSETS = ("train", "val", "test")
NEAR = 0.64  # similarity from which on an image is a near-duplicate, see above
STRICT = 0.97  # the same where the labelled images are all alike
SELF_SIMILAR = 0.2
NEIGHBOURS = 3  # labelled images that an image is compared with in colour
MAX_DISTANCE = 0.5  # between thumbnails of unit norm, which is a correlation of 0.875
FLAT = 2.0  # grey levels of contrast below which a thumbnail is noise
CHUNK = 4096  # images at a time, which bounds the memory
PAIRS = 128  # pairs compared at a time, few enough for the processor's cache
SIDE = 32  # pixels, of the images compared in colour


class Duplicate(NamedTuple):
    position: int  # in the images that were asked about
    match: int  # in the labelled images
    similarity: float | None  # None: exactly the same pixels


class LeakGuard:
    """Knows the labelled images and finds their duplicates in blocks of a pool.

    images: Images, those that are trained on, then those of validation, then those of the test set
    """

    def __init__(self, labelled, split):
        """labelled: LabelledSet;  split: Split"""
        train = labelled.train
        subsets = train.subset(split.labelled), train.subset(split.val), labelled.test
        self.images = Images.joined(*(subset.images for subset in subsets))
        sums = np.concatenate([subset.checksums for subset in subsets])
        self.known = {row.tobytes(): i for i, row in reversed(list(enumerate(sums)))}
        self.names = np.concatenate([subset.names for subset in subsets])
        self.ends = np.cumsum([len(subset) for subset in subsets])
        self._index = None

    def subset_of(self, duplicate):
        """Which labelled image a Duplicate repeats: one of "train", "val" or "test"."""
        return SUBSETS[int(np.searchsorted(self.ends, duplicate.match, side="right"))]

    def reason(self, duplicate):
        """Why a Duplicate is skipped, for skipped.csv."""
        like = f"of a labelled image: {self.subset_of(duplicate)} {self.names[duplicate.match]}"
        if duplicate.similarity is None:
            return f"duplicate {like}"
        return f"near-duplicate {like}, similarity {duplicate.similarity:.2f}"

    def find(self, images, checksums, skip=()):
        """The duplicates in a block of a pool: [Duplicate], by position.

        images: Images (B of them), of the labelled images' size;  checksums: uint8 (B, 16);
        skip: positions in the block that are not looked at
        """
        match = np.array([self.known.get(row.tobytes(), -1) for row in checksums], np.int64)
        readable = np.ones(len(checksums), bool)
        readable[list(skip)] = False
        exact, others = (np.flatnonzero(here & readable) for here in (match >= 0, match < 0))
        duplicates = [Duplicate(int(i), int(match[i]), None) for i in exact]
        if self._index is None:
            self._index = _Index(self.images)
        bar = tqdm(total=len(others), desc="leak guard", unit="image", disable=None, leave=False)
        with bar:
            for start in range(0, len(others), CHUNK):
                chunk = others[start : start + CHUNK]
                similarity, match = self._index.nearest(images[torch.from_numpy(chunk)].numpy())
                duplicates += [
                    Duplicate(int(chunk[i]), int(match[i]), round(float(similarity[i]), 4))
                    for i in np.flatnonzero(similarity >= self._index.threshold)
                ]
                bar.update(len(chunk))
        return sorted(duplicates)


class _Index:
    """The labelled images, prepared for the search of similar ones."""

    def __init__(self, images):
        from sklearn.neighbors import NearestNeighbors  # imported here: it takes a second

        self.images = images
        chunks = (images[first : first + CHUNK] for first in range(0, len(images), CHUNK))
        pairs = [_thumbnails(_resize(chunk.numpy(), 8)) for chunk in chunks]
        thumbnails, contrast = zip(*pairs, strict=True)
        self.thumbnails = np.concatenate(thumbnails)
        self.flat = np.flatnonzero(np.concatenate(contrast) < FLAT)
        self.neighbours = NearestNeighbors(algorithm="brute").fit(self.thumbnails)
        if len(self.flat):
            flat = _resize(self._pixels(self.flat), 8).reshape(len(self.flat), -1)
            self.colours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat)
        sample = np.sort(np.random.RandomState(0).permutation(len(images))[:1000])
        alike = self.nearest(self._pixels(sample), own=sample)[0] >= NEAR
        self.threshold = STRICT if alike.mean() > SELF_SIMILAR else NEAR

    def _pixels(self, index):
        return self.images[torch.from_numpy(index)].numpy()

    def nearest(self, images, own=None):
        """The labelled image most similar to each image: similarity (B,), position (B,).

        images: uint8 (B, S, S, 3);  own: (B,) the images' own positions, which do not count
        The similarity is 0 where no labelled image comes near.
        """
        unit, contrast = _thumbnails(_resize(images, 8))
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
        flat = np.flatnonzero(contrast < FLAT)
        if len(flat) and len(self.flat) and own is None:
            best[flat], which[flat] = self._same_colours(images[flat])
        return best, which

    def _same_colours(self, images):
        """Similarity (B,), 0 or 1, and match (B,) of images with too little contrast to correlate.

        They are similar where their colours agree.
        """
        ours = _resize(images, 8).reshape(len(images), -1)
        match = self.flat[self.colours.kneighbors(ours, return_distance=False)[:, 0]]
        apart = np.abs(_resize(images, SIDE) - _resize(self._pixels(match), SIDE))
        return apart.mean((1, 2, 3)) <= FLAT, match


def _resize(images, side):
    """uint8 (B, S, S, 3) -> float32 (B, side, side, 3)"""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.array(small, np.float32).reshape(-1, side, side, 3)


def _thumbnails(small):
    """float32 (B, 8, 8, 3) -> grey, its mean subtracted, of unit norm (B, 64); contrast (B,)"""
    grey = (small @ np.array([0.299, 0.587, 0.114], np.float32)).reshape(len(small), 64)
    grey -= grey.mean(1, keepdims=True)
    norm = np.linalg.norm(grey, axis=1)
    return grey / np.maximum(norm, 1e-6)[:, None], norm / 8


def _compare(ours, theirs):
    """The similarity of pairs of images: uint8 (B, S, S, 3) twice -> float32 (B,)"""
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
    """The correlation of the middle of their images with ours, at all shifts by -1, 0 or 1 pixels.

    ours, theirs: float32 (B, SIDE, SIDE, 3) -> (9, B)

    Each image is one row of numbers, in which a shift is an offset.  What an offset carries over
    from one line to the next meets a zero, because the middle leaves out the border.
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
