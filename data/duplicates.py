"""Pool images that equal, or nearly equal, a labelled one: they would leak labels or test images.

Exact copies have the same pixel hash.  Near copies (encoded again, brighter, cropped by a pixel)
are found in two steps: the nearest labelled images by an 8x8 grey thumbnail, then a comparison of
those few at 32x32 in colour.  `similarity` is the mean of two correlations, of the colours and of
the detail that is left when a 5x5 blur is taken away, at the best of nine one-pixel shifts.
Colours alone take one field under a sky for another; detail alone takes frames for each other.

NEAR was chosen on CIFAR-100, test against training set, by looking at pairs on both sides of it:

    similarity above             0.81   0.77   0.72   0.68   0.65   0.62
    test images (of 10,000)       300    400    500    600    700    800
    same class, of the last 100    97     94     86     82     79     57
    Tiny-ImageNet (of 50,000)       9     24     52    107    188    288

ciFAIR counts 891 test images with a near-duplicate by hand; those that are missed here are other
crops and other photographs of one object.  At 0.66 some 650 are found, and 0.3 % of Tiny-ImageNet
is given up, half of it wrongly.  Where the labelled images are so alike that more than SELF_SIMILAR
of them would be near-duplicates of one another (handwritten digits: all), STRICT holds instead;
there it finds one of 1,048 held-out digits.
"""

import cv2
import numpy as np
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

NEAR = 0.66  # see above
STRICT = 0.97
SELF_SIMILAR = 0.2
NEIGHBOURS = 3  # candidates for the comparison in colour
MAX_DISTANCE = 0.5  # between thumbnails of unit norm: a correlation of 0.875
FLAT = 2.0  # grey levels of contrast below which a thumbnail is noise
CHUNK = 4096  # images at once, which bounds the memory
SIDE = 32  # pixels, of the images compared in colour


def find_duplicates(pool_images, pool_hashes, labelled_images, labelled_hashes, skip=()):
    """Which images of a pool are, or nearly are, in the labelled set.

    *_images: uint8 (N, S, S, 3), any S;  *_hashes: uint8 (N, 16);  skip: pool positions to leave out
    -> {position: reason}, by position
    """
    known = {row.tobytes() for row in np.asarray(labelled_hashes)}
    skip = set(skip)
    rest = np.array([i for i in range(len(pool_images)) if i not in skip], np.int64)
    exact = np.array([pool_hashes[i].tobytes() in known for i in rest], bool)
    found = {int(i): "duplicate of a labelled image" for i in rest[exact]}
    rest = rest[~exact]
    if not len(labelled_images):
        return found

    index = _Index(labelled_images)
    near = index.usual_threshold()
    chunks = range(0, len(rest), CHUNK)
    for start in tqdm(chunks, desc="duplicates", unit="chunk", disable=None, leave=False):
        rows = rest[start : start + CHUNK]
        hit = index.similarity(pool_images[rows]) >= near
        found.update({int(i): "near-duplicate of a labelled image" for i in rows[hit]})
    return dict(sorted(found.items()))


class _Index:
    """The labelled images, ready to be searched."""

    def __init__(self, images):
        self.images = images
        thumbnails, contrast = [], []
        for start in range(0, len(images), CHUNK):
            unit, spread = _describe(_resize(images[start : start + CHUNK], 8))
            thumbnails.append(unit)
            contrast.append(spread)
        self.thumbnails = np.concatenate(thumbnails)
        self.flat = np.flatnonzero(np.concatenate(contrast) < FLAT)
        self.neighbours = NearestNeighbors(algorithm="brute").fit(self.thumbnails)

    def usual_threshold(self):
        """NEAR, or STRICT where the labelled images themselves are all alike."""
        rows = np.random.RandomState(0).permutation(len(self.images))[:1000]
        alike = self.similarity(self.images[np.sort(rows)], own=np.sort(rows)) >= NEAR
        return STRICT if alike.mean() > SELF_SIMILAR else NEAR

    def similarity(self, images, own=None):
        """The highest similarity of each image to a labelled one, 0 where none comes near.

        images: uint8 (B, S, S, 3);  own: (B,) labelled positions that do not count -> (B,)
        """
        unit, contrast = _describe(_resize(images, 8))
        best = np.zeros(len(images), np.float32)
        count = min(NEIGHBOURS + (own is not None), len(self.thumbnails))
        distance, match = self.neighbours.kneighbors(unit, count)
        candidate = (distance < MAX_DISTANCE) & (contrast >= FLAT)[:, None]
        if own is not None:
            candidate &= match != own[:, None]
        for query, column in np.argwhere(candidate):
            theirs = self.images[match[query, column]]
            best[query] = max(best[query], _compare(images[query], theirs))
        rows = np.flatnonzero(contrast < FLAT)
        if len(rows) and len(self.flat) and own is None:
            best[rows] = self._same_colours(images[rows])
        return best

    def _same_colours(self, images):
        """Images of almost no contrast have no shape to correlate: 1 where the colours agree."""
        theirs = _resize(self.images[self.flat], 8).reshape(len(self.flat), -1)
        nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(theirs)
        ours = _resize(images, 8).reshape(len(images), -1)
        match = self.flat[nearest.kneighbors(ours, return_distance=False)[:, 0]]
        apart = np.abs(_resize(images, SIDE) - _resize(self.images[match], SIDE))
        return apart.mean((1, 2, 3)) <= FLAT


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
    """Mean correlation of colour and detail of two images, uint8 (S, S, 3), at the best shift."""
    ours, theirs = _resize([ours, theirs], SIDE)
    total = np.zeros((3, 3), np.float32)
    for view in (_colour, _detail):
        # Slides the other image's middle over ours: a correlation for each shift by -1, 0, 1.
        total += cv2.matchTemplate(view(ours), view(theirs)[1:-1, 1:-1], cv2.TM_CCORR_NORMED)
    return total.max() / 2


def _colour(image):
    return image - image.mean((0, 1))


def _detail(image):
    return image - cv2.blur(image, (5, 5))
