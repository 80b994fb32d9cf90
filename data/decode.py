"""Bytes to pixels: decoding, the square crop, the hash by which copies are recognised."""

import hashlib
import os
import stat

import cv2
import numpy as np

MAX_FILE_BYTES = 2**28  # a file under the pixel limit is smaller than this in every format we read

_FORMATS = "jpg|jpeg|jpe|png|webp|bmp|dib|ppm|pgm|pbm|pnm|tif|tiff|gif|jp2"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split("|"))


class Unreadable(Exception):
    """An image that cannot be used; the text is the short reason that goes into skipped.csv."""


def has_image_suffix(name):
    """Whether the file name (bytes or str) ends in one of IMAGE_SUFFIXES, in any case."""
    suffix = os.path.splitext(name)[1].lower()
    return (suffix.decode("latin-1") if isinstance(suffix, bytes) else suffix) in IMAGE_SUFFIXES


def decode(content):
    """The picture in an encoded file.

    content: bytes
    -> uint8 (H, W, 3), RGB, turned upright by its EXIF orientation

    Grey, palette, 1-bit and CMYK images become RGB; of 16 bits the high byte stays; of an animation
    the first frame.  Alpha is dropped: transparent pixels show the colour stored beneath them.
    Raises Unreadable: an empty, truncated, damaged or too large image, or no image at all.
    """
    if not content:
        raise Unreadable("empty file")
    if len(content) > MAX_FILE_BYTES:
        raise Unreadable(f"file larger than {MAX_FILE_BYTES} bytes")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # imdecode returns None for most bad files and raises for some
        if "CV_IO_MAX_IMAGE" in str(error):  # see data/__init__.py
            limit = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
            raise Unreadable(f"more than {limit} pixels") from None
        raise Unreadable("damaged image") from None
    if image is None or image.size == 0:
        raise Unreadable("not an image, or truncated")
    return image


def decode_file(path):
    """`decode` for a path (bytes or str).  Raises Unreadable also for what cannot be opened."""
    try:
        # Checked before opening: opening a FIFO would wait for a writer that never comes.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise Unreadable(f"file larger than {MAX_FILE_BYTES} bytes")
        # Read here rather than by cv2.imread, which crashes on a name that is not UTF-8 and
        # returns half-grey pictures for truncated files.
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or error}") from None
    return decode(content)


def fit_square(image, size):
    """The middle square of an image, resized.

    image: uint8 (H, W, 3);  size: side in pixels
    -> uint8 (size, size, 3); the same pixels where the image has that size already
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square
    # Averaging over areas keeps a reduced picture free of aliasing; it would enlarge into blocks.
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(square, (size, size), interpolation=method)


def pixel_hash(image):
    """16 bytes that depend on the decoded pixels and their shape only.

    Taken before any resizing, so that every copy of a data set, whatever its (lossless) file
    format, gives the same hashes.
    """
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return digest.digest()
