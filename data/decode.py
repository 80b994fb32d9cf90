"""Bytes to pixels: decoding, the square crop, and the hashes that tell copies of an image."""

import functools
import gzip
import hashlib
import math
import os
import re
import stat
import struct
import zlib

# OpenCV reads both settings while it is imported, so the other modules take cv2 from here.  A small
# damaged file may claim to be large: OpenCV's own limit, 2**30 pixels, would let it take 3.2 GB.
# Larger pictures than 2**26 pixels (8192 x 8192) are listed in skipped.csv, unless the user sets a
# higher limit.  Damaged files are listed too, so OpenCV's messages about them are not shown.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")

import cv2
import numpy as np

MAX_FILE_BYTES = 2**28  # bounds the memory that a file takes before it is decoded

# O_NONBLOCK: opening a FIFO would otherwise wait for a writer that never comes.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_FORMATS = b"jpg jpeg jpe jfif png apng webp bmp dib ppm pgm pbm pnm tif tiff gif jp2"
_SUFFIXES = tuple(b"." + name for name in _FORMATS.split())

_NOT_READ = b"avif heic heif jxl j2k svg psd ico tga exr hdr cr2 cr3 nef arw dng raf".split()

# The first bytes of the formats above.  Any other file is refused before OpenCV sees it, so that
# OpenCV's decoders for further formats (HDR, EXR, ...) never run on unknown files.
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_JP2, _SIZ = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"  # JPEG 2000: file, bare codestream
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|P[1-6]\s"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
# What else lies under such names: the reason says so.
_OTHERS = {
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "Photoshop": rb"8BPS",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "SVG": rb"\s*(<\?xml[^>]*>\s*)?<svg",
    "HTML": rb"(?i)\s*<(!doctype html|html)",
}
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"  # in the header of a PNM file: blanks and comments
_PNM = re.compile(rb"P([2356])" + 2 * (_GAP + rb"(\d{1,9})") + _GAP + rb"(\d{1,5})\s")
DARK = 4096  # a picture of 16 bits that stays below this uses 12 of them, and would be black


class Unreadable(Exception):
    """An image that cannot be used; the text is the short reason that goes into skipped.csv."""


def has_image_suffix(name):
    """Whether a file name (bytes) ends in one of _SUFFIXES, in any case."""
    return name.lower().endswith(_SUFFIXES)


def is_other_image(name):
    """Whether a file name (bytes) has the suffix of an image that `decode` does not read."""
    return name.lower().rpartition(b".")[2] in _NOT_READ


def decode(content, size=None):
    """Decode an image file: JPEG, PNG, WebP, GIF, BMP, TIFF, PNM or JPEG 2000.

    content: the file's bytes
    size: side in pixels of the square that the picture will be fitted to, or None.  With it a large
        JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster; its short side stays at
        least 1.5 times `size`.
    -> uint8 (H, W, 3), RGB, turned upright by its EXIF orientation

    Grey, palette, 1-bit and CMYK images become RGB.  Of 16 bits the high byte is kept, of an
    animation the first frame.  Alpha is dropped: a transparent pixel shows the colour stored in it.
    PNM values are scaled by the largest one that the file declares.
    While it decodes, a picture takes up to 8 bytes a pixel, one of 16 bits a channel up to 13.
    Raises Unreadable for an empty, truncated, damaged or too large image, for floating-point
    numbers, for 12 bits stored as 16, and for any other file.
    """
    if not content:
        raise Unreadable("empty file")
    if len(content) > MAX_FILE_BYTES:
        raise Unreadable(f"file larger than {MAX_FILE_BYTES} bytes")
    if not _MAGIC.match(content):
        kinds = [name for name, magic in _OTHERS.items() if re.match(magic, content, re.DOTALL)]
        raise Unreadable(f"{kinds[0]}, which is not read" if kinds else "not an image")
    if content.startswith(_PNG) and b"acTL" in content[:4096]:
        content = _first_frame(content)
    if (pnm := _PNM.match(content)) and int(pnm[4]) != 255:
        return _scaled_pnm(content, *map(int, pnm.groups()), pnm.end())
    flags = cv2.IMREAD_COLOR_RGB
    # A short JPEG is decoded at full size: reading its header would take longer than is saved.
    if size and len(content) >= size * size and content.startswith(_JPEG):
        flags |= _REDUCED[_jpeg_reduction(content, size)]
    if _may_hide_its_range(content):
        _check_depth(content)
    return _imdecode(content, flags)


def _imdecode(content, flags):
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # imdecode returns None for most bad files and raises for some
        if "CV_IO_MAX_IMAGE" in str(error):
            raise Unreadable(f"more than {_pixel_limit()} pixels") from None
        raise Unreadable("damaged image") from None
    if image is None or image.size == 0:
        raise Unreadable("damaged or truncated image")
    return image


def _first_frame(content):
    """An animated PNG as a plain one: its other frames would take memory."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in (b"acTL", b"fcTL", b"fdAT"):
            parts.append(content[at:end])
        at = end
    return b"".join(parts)


def _may_hide_its_range(content):
    """Whether the file is a TIFF, or a PNG or JPEG 2000 that declares more than 12 bits."""
    if content.startswith(_PNG):
        return content[24:25] == b"\x10"
    # ISO/IEC 15444-1, A.5.1: the byte that holds the depth less one is 42 after the marker.
    if content.startswith((_JP2, _SIZ)):
        size = content.find(_SIZ)
        return size >= 0 and any(depth & 127 >= 12 for depth in content[size + 42 : size + 43])
    return content.startswith((b"II", b"MM"))


def _check_depth(content):
    """Raises Unreadable for numbers whose range the file does not say."""
    deep = _imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if deep.dtype.kind == "f":
        raise Unreadable("floating-point numbers; save the picture with 8 bits a channel")
    if deep.dtype == np.uint16 and 0 < deep.max() < DARK:
        raise Unreadable("12 bits or fewer stored as 16; scale the picture to its whole range")


def _scaled_pnm(content, kind, width, height, most, start):
    """A PNM picture whose largest value is not 255.

    OpenCV ignores a smaller one, and reads two bytes in the wrong order.
    """
    if not 0 < width * height <= _pixel_limit():
        raise Unreadable(f"more than {_pixel_limit()} pixels")
    if kind in (5, 6) and most > 255:
        channels = 3 if kind == 6 else 1
        if len(content) - start < 2 * width * height * channels:
            raise Unreadable("damaged or truncated image")
        image = np.frombuffer(content, ">u2", width * height * channels, start)
        image = np.broadcast_to(image.reshape(height, width, channels), (height, width, 3))
    else:
        image = _imdecode(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH)
        if kind in (2, 3) and most < 255:  # the one that OpenCV scales
            return image
    table = np.arange(2**16, dtype=np.float32) * 255 / max(most, 1)
    return np.rint(table).clip(0, 255).astype(np.uint8)[image]


_REDUCED = {  # in spite of the names the result has colour, because IMREAD_COLOR_RGB is set too
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def _jpeg_reduction(content, size):
    """The largest reduction that leaves the short side of a JPEG at least 1.5 times `size`."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame header
            height, width = struct.unpack_from(">HH", content, at + 5)
            if height * width > _pixel_limit():
                return 1  # refused at its full size, whatever it would be reduced to
            return next((f for f in (8, 4, 2) if min(height, width) >= 1.5 * f * size), 1)
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return 1


def _pixel_limit():
    return int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])


SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
DAMAGED_GZIP = EOFError, zlib.error, gzip.BadGzipFile  # what reading a compressed shard may raise


class _Unpacked(gzip.GzipFile):
    """A compressed file as it was before: seeking forwards unpacks, seeking backwards starts anew.

    A kilobyte can claim to unpack to a megabyte, and a header of any length: a read is bounded.
    """

    def read(self, size=-1):
        if not 0 <= size <= MAX_FILE_BYTES + 1:
            raise ValueError(f"a read of {size} bytes")
        return super().read(size)


def open_shard(path, buffering=-1):
    """A tar file, opened for reading; path: bytes"""
    if path.endswith(b"gz"):
        return _Unpacked(path)
    return open(path, "rb", buffering)


def read_file(path):
    """The bytes of a regular file.  Raises Unreadable for anything else, or where it won't open.

    cv2.imread is not used: it crashes on a name that is not UTF-8, and for a truncated file it
    returns a picture that is half grey.
    """
    try:
        file = os.open(path, _OPEN_FLAGS)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise Unreadable(f"file larger than {MAX_FILE_BYTES} bytes")
            content = os.read(file, status.st_size)
            while len(content) < status.st_size and (more := os.read(file, status.st_size)):
                content += more  # a network file system may return less than was asked for
        finally:
            os.close(file)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or error}") from None
    return content


def fit_square(image, size):
    """The middle square of an image, resized.

    image: uint8 (H, W, 3);  size: side in pixels
    -> uint8 (size, size, 3); the same pixels where the image has that size already

    A larger image is reduced in two steps: by a whole factor, averaging whole blocks of pixels, so
    that no aliasing is left; then by the rest, a factor below 2, interpolating between pixels.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    factor = max(1, side // size)
    whole = side // factor * factor  # pixels, a multiple of the factor
    top, left = (height - whole) // 2, (width - whole) // 2
    square = image[top : top + whole, left : left + whole]
    if factor > 1:
        side //= factor
        square = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    if side == size:
        return square
    method = cv2.INTER_LINEAR if side > size else cv2.INTER_CUBIC
    return cv2.resize(square, (size, size), interpolation=method)


def pixel_hash(image):
    """16 bytes that depend only on the decoded pixels and their shape.

    Taken before any resizing, so that every copy of a data set gives the same hashes, whatever its
    (lossless) file format.
    """
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return digest.digest()


def checksums(images):
    """16 bytes for each image as the network sees it: equal pixels give equal bytes.

    images: uint8 (N, S, S, 3) -> uint8 (N, 16)

    A checksum is two sums, modulo 2**64, of the pixels (eight at a time, as one number) times fixed
    random numbers.  It is faster than `pixel_hash`.  Two different images agree by chance in fewer
    than 1 of 2**56 pairs, but it is no protection against somebody who makes two that agree.
    """
    flat = np.ascontiguousarray(images).reshape(len(images), math.prod(images.shape[1:]))
    if short := -flat.shape[1] % 8:
        flat = np.pad(flat, ((0, 0), (0, short)))
    words = flat.view("<u8")
    first, second = _factors(words.shape[1])
    # The high bits of a word reach only the high bits of its product, so the second sum is over
    # the words with their bytes reversed.
    sums = [np.einsum("ij,j->i", words, first), np.einsum("ij,j->i", words.byteswap(), second)]
    return np.stack(sums, axis=1).view(np.uint8).reshape(len(flat), 16)


@functools.lru_cache(maxsize=8)
def _factors(count):
    """uint64 (2, count), all odd: then a difference in a single word always changes the sum."""
    return np.frombuffer(np.random.RandomState(0).bytes(16 * count), "<u8").reshape(2, count) | 1
