"""Pools: broken files are listed and never stop a run; the cache; duplicates of labelled images.

pytest tests/test_pools.py
"""

import errno
import functools
import hashlib
import http.server
import io
import os
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torchvision
from PIL import Image

from data import (
    Unreadable,
    decode,
    fingerprints,
    fit_square,
    load_labelled,
    open_pools,
    pixel_hash,
    split,
    tar,
)
from data import cache as cache_module
from data import pools as pools_module
from data.cache import Cache
from data.listing import Pictures
from data.workers import Worker

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX names, links and FIFOs")


def picture(seed=0, height=40, width=40):
    """A smooth random image, so that JPEG can hold it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image, suffix=".png", *options):
    channels = image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image
    return cv2.imencode(suffix, channels, options)[1].tobytes()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encode(content))


def png_claiming(width, height):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"0" * 99))
        + chunk(b"IEND", b"")
    )


def damaged_crc():
    content = bytearray(encode(picture()))
    content[content.index(b"IDAT") + 40] ^= 0xFF
    return bytes(content)


JPEG, PNG = encode(picture(), ".jpg"), encode(picture())
BROKEN = {
    "crc.png": (damaged_crc(), "damaged or truncated image"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "damaged or truncated image"),
    "cut.png": (PNG[: len(PNG) // 2], "damaged or truncated image"),
    "empty.jpg": (b"", "empty file"),
    "end.jpg": (JPEG[:-2], "damaged or truncated image"),
    "huge.png": (png_claiming(40000, 40000), "more than 67108864 pixels"),
    "text.jpg": (b"hello, this is text", "not an image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_what_is_wrong(name):
    content, reason = BROKEN[name]
    with pytest.raises(Unreadable) as caught:
        decode(content)
    assert str(caught.value) == reason


def test_unusual_files_read():
    grey = picture()[..., 0]
    assert decode(encode(grey)).tolist() == np.repeat(grey[..., None], 3, axis=2).tolist()
    assert (decode(encode(grey.astype(np.uint16) * 256 + 7)) == grey[..., None]).all()  # high byte
    alpha = np.dstack([picture()[..., ::-1], np.zeros((40, 40), np.uint8)])
    assert (decode(encode(alpha)) == picture()).all()  # alpha is dropped
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert decode(encode(red))[0, 0].tolist() == [255, 0, 0]  # RGB, not BGR


def test_exif_orientation_is_applied():
    tall = np.zeros((48, 16, 3), np.uint8)
    tall[:16] = 255
    tag = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)  # 6: turn right
    exif = b"Exif\0\0" + tag
    jpeg = encode(tall, ".jpg")
    jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    upright = decode(jpeg)
    assert upright.shape == (16, 48, 3)
    assert upright[:, -8:].mean() > 200 > 50 > upright[:, :8].mean()


def test_pixel_hash_knows_pixels_and_shape_only():
    image = picture()
    assert (
        pixel_hash(image) == pixel_hash(decode(encode(image, ".bmp")))
        and len(pixel_hash(image)) == 16
    )
    assert pixel_hash(image) == pixel_hash(np.asfortranarray(image))
    other = image.copy()
    other[3, 4, 1] ^= 1
    assert len({pixel_hash(x) for x in (image, other, image.reshape(20, 80, 3))}) == 3


def test_broken_files_in_a_pool_are_listed_and_keep_their_position(tmp_path):
    folder = tmp_path / "photos"
    for name, (content, _) in BROKEN.items():
        write(folder / name, content)
    for seed, name in enumerate(["a.png", "deep/er/b.png", "z.jpg"]):
        write(folder / name, picture(seed))
    for name in (".hidden.png", ".git/c.png", "notes.txt", "deep/list.csv"):
        write(folder / name, b"x")
    [pool] = open_pools([folder], tmp_path, 32)
    names = list(pool.names)
    assert names == sorted([*BROKEN, "a.png", "deep/er/b.png", "z.jpg"])
    assert {names[i]: reason for i, reason in pool.skipped.items()} == {
        name: reason for name, (_, reason) in BROKEN.items()
    }
    assert pool.name == "photos" and pool.name_of(0) == "photos/a.png" and pool.truth is None
    assert pool.images[0].shape == (len(names), 32, 32, 3) and not pool.images[0].flags.writeable
    row = names.index("deep/er/b.png")
    assert (pixels(pool)[row] == fit_square(picture(1), 32)).all()
    assert (prints(pool)[row] == fingerprints(fit_square(picture(1), 32)[None])).all()
    assert not pixels(pool)[names.index("cut.png")].any()
    assert pool.tags(row) == "er" and pool.tags(0) == ""
    assert pool.inputs["entries"] == len(names)


def pillow(suffix, *images, **options):
    """Encode with Pillow, which writes what OpenCV does not."""
    file = io.BytesIO()
    images[0].save(file, suffix, **options, **({"append_images": images[1:], "save_all": True}
                                               if len(images) > 1 else {}))  # fmt: skip
    return file.getvalue()


def with_orientation(content):
    """A JPEG that says: turn me to the right."""
    tag = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tag
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def unusual():
    """name -> content, the picture it holds (uint8 (40, 40, 3)), how far it may be off."""
    image, other = picture(1), picture(2)
    grey = image[..., :1].repeat(3, axis=2)
    bits = np.where(grey > 127, 255, 0).astype(np.uint8)
    pil, one, two = (Image.fromarray(x) for x in (image, grey[..., 0], other))
    palette = pil.quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    lossless = {"lossless": True}
    return {
        "png-named.jpg": (encode(image), image, 0),
        "cmyk.jpg": (pillow("JPEG", pil.convert("CMYK"), quality=95), image, 30),
        "grey.jpg": (pillow("JPEG", one, quality=95), grey, 10),
        "palette.png": (pillow("PNG", palette), shown, 0),
        "1-bit.png": (pillow("PNG", Image.fromarray(bits[..., 0]).convert("1")), bits, 0),
        "16-bit.png": (encode(image.astype(np.uint16) * 256 + 7), image, 0),
        "alpha.png": (encode(np.dstack([image[..., ::-1], image[..., 0] * 0])), image, 0),
        "animated.gif": (pillow("GIF", palette, two.quantize(16)), shown, 0),
        "animated.webp": (pillow("WEBP", pil, two, **lossless), image, 0),
        "turned.jpg": (with_orientation(encode(image, ".jpg")), np.rot90(image, -1), 20),
        "plain.webp": (pillow("WEBP", pil, **lossless), image, 0),
        "plain.bmp": (encode(image, ".bmp"), image, 0),
        "plain.tiff": (encode(image, ".tiff"), image, 0),
        "plain.ppm": (encode(image, ".ppm"), image, 0),
        "plain.jp2": (pillow("JPEG2000", pil), image, 0),
    }


def test_every_kind_of_file_is_read_or_listed_by_a_worker(tmp_path):
    good = unusual()
    for name, (content, _) in BROKEN.items():
        write(tmp_path / "pool" / name, content)
    for name, (content, *_) in good.items():
        write(tmp_path / "pool" / name, content)
    [pool] = open_pools([tmp_path / "pool"], tmp_path, 40)
    listed = {pool.names[i]: reason for i, reason in pool.skipped.items()}
    assert listed == {name: reason for name, (_, reason) in BROKEN.items()}
    for name, image in zip(pool.names, pixels(pool), strict=True):
        if name in good:
            _, wanted, tolerance = good[name]
            assert np.abs(image.astype(int) - wanted).mean() <= tolerance, name
        else:
            assert not image.any(), name


@posix
def test_strange_names_links_and_pipes(tmp_path):
    folder = tmp_path / "pool"
    write(folder / "good.png", picture())
    write(folder / "new\nline.png", picture(1))
    write(folder / ("x" * 251 + ".png"), picture(2))
    for name in (b"bad\xff.png", b"dir\xfe/in.png"):
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(encode(picture(3)))
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "link.png").symlink_to(folder / "good.png")
    (folder / "loop").symlink_to(folder)
    write(tmp_path / "elsewhere" / "far.png", picture(4))
    (folder / "folder.png").symlink_to(tmp_path / "elsewhere")
    [pool] = open_pools([folder], tmp_path / "data", 16)
    listed = {pool.names[i]: reason for i, reason in pool.skipped.items()}
    assert listed.pop("self.png").startswith("cannot be opened: ")
    assert listed == {
        "bad\\xff.png": "name is not UTF-8",
        "dangling.png": "dangling link",
        "dir\\xfe/in.png": "name is not UTF-8",
        "pipe.png": "not a regular file",
    }
    good = set(pool.names) - {pool.names[i] for i in pool.skipped}
    assert good == {"good.png", "link.png", "new\nline.png", "x" * 251 + ".png"}


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_listed(tmp_path):
    write(tmp_path / "pool" / "a.png", picture())
    write(tmp_path / "pool" / "b.png", picture())
    (tmp_path / "pool" / "b.png").chmod(0)
    [pool] = open_pools([tmp_path / "pool"], tmp_path, 16)
    assert list(pool.skipped) == [1] and "denied" in pool.skipped[1]
    (tmp_path / "pool" / "b.png").chmod(0o644)
    assert not open_pools([tmp_path / "pool"], tmp_path, 16)[0].skipped


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files given to a decoding worker so far."""
    seen, ask = [], Worker.ask

    def spy(worker, task):
        paths = [source[0] for source in task["sources"] if source]
        seen.extend(os.path.basename(os.fsdecode(path)) for path in paths)
        return ask(worker, task)

    monkeypatch.setattr(Worker, "ask", spy)
    return seen


def pixels(pool):
    """The images of a pool in their order, whatever its parts."""
    images = np.concatenate(pool.images)
    return images if pool.rows is None else images[pool.rows]


def prints(pool):
    return np.concatenate(pool.prints)


def test_cache_is_reused_until_a_file_changes(tmp_path, decoded):
    folder = tmp_path / "pool"
    for seed in range(3):
        write(folder / f"{seed}.png", picture(seed))
    first = open_pools([folder], tmp_path, 16)[0]
    assert sorted(decoded) == ["0.png", "1.png", "2.png"]
    decoded.clear()
    again = open_pools([folder], tmp_path, 16)[0]
    assert not decoded and (pixels(again) == pixels(first)).all()
    assert again.inputs == first.inputs

    open_pools([folder], tmp_path, 24)  # another size
    assert len(decoded) == 3
    write(folder / "3.png", picture(3))
    decoded.clear()
    grown = open_pools([folder], tmp_path, 16)[0]
    assert len(decoded) == 4 and grown.inputs["digest"] != first.inputs["digest"]

    path = folder / "1.png"  # edited in place, same length
    size = path.stat().st_size
    path.write_bytes(encode(picture(1))[:-1] + b"\0")
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    decoded.clear()
    edited = open_pools([folder], tmp_path, 16)[0]
    assert len(decoded) == 4 and edited.inputs["digest"] == grown.inputs["digest"]


@pytest.mark.parametrize("harm", [lambda content: content[:-5], lambda content: content + b"x"])
@pytest.mark.parametrize("file", ["images.npy", "meta.json", "prints.npy"])
def test_damaged_cache_is_built_again(tmp_path, decoded, file, harm):
    write(tmp_path / "pool" / "a.png", picture())
    first = pixels(open_pools([tmp_path / "pool"], tmp_path, 16)[0])
    [path] = (tmp_path / "cache").glob(f"*/{file}")
    path.write_bytes(harm(path.read_bytes()))
    decoded.clear()
    assert (pixels(open_pools([tmp_path / "pool"], tmp_path, 16)[0]) == first).all()
    assert decoded == ["a.png"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def cache_of(folder, name, read, count=600, size=8, arrange=None):
    return Cache(folder, name, Pictures(count, read), [(0, count, {})], size, arrange)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt(), SystemExit(143)]
)
def test_interrupted_cache_leaves_nothing(tmp_path, error):
    def read(i):
        if i == 500:
            raise error
        return picture(0)

    with pytest.raises(type(error)):
        cache_of(tmp_path, "half", read).open()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_an_error_not_a_crash(tmp_path, monkeypatch):
    write(tmp_path / "pool" / "a.png", picture())
    create = cache_module._create_npy

    def on_full_disk(path, shape):
        offset = create(path, shape)
        path.unlink()
        path.symlink_to("/dev/full")
        return offset

    with monkeypatch.context() as full:
        full.setattr(cache_module, "_create_npy", on_full_disk)
        with pytest.raises(OSError, match="No space left"):
            open_pools([tmp_path / "pool"], tmp_path, 32)
    assert list((tmp_path / "cache").iterdir()) == []
    assert not open_pools([tmp_path / "pool"], tmp_path, 32)[0].skipped


def test_two_processes_building_one_cache_share_the_first(tmp_path, monkeypatch):
    def build(arrange=lambda *_: np.arange(2)):
        [part] = cache_of(tmp_path, "race", picture, 2, arrange=arrange).open()
        return part.images

    def meanwhile(hashes, skipped):  # the other process finishes first
        with monkeypatch.context() as other:
            other.setattr(cache_module.os, "getpid", lambda: -1)
            build()
        [theirs] = tmp_path.glob("race-*/meta.json")
        first.append(theirs.stat().st_mtime_ns)
        return np.arange(2)

    first = []
    assert (build(meanwhile) == build()).all()
    [folder] = tmp_path.iterdir()
    assert (folder / "meta.json").stat().st_mtime_ns == first[0]  # perhaps mapped by them already


def test_cache_rows_come_in_the_order_asked_for(tmp_path):
    order = np.setdiff1d(np.arange(600), [3])[::-1]
    [plain] = cache_of(tmp_path, "plain", picture).open()
    [turned] = cache_of(tmp_path, "turned", picture, arrange=lambda *_: order).open()
    assert turned.order.tolist() == order.tolist() and plain.order is None
    assert (turned.images == plain.images[order]).all()
    assert (turned.prints == plain.prints[order]).all()
    assert turned.hashes[0].tobytes() == pixel_hash(picture(599))
    assert (plain.images[5] == fit_square(picture(5), 8)).all()


def make_tar(path, folder, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, name)


def test_tar_shards_equal_the_folder(tmp_path):
    folder = tmp_path / "pool"
    names = [f"{c}/{i}.png" for c in "ab" for i in range(4)]
    for seed, name in enumerate(names):
        write(folder / name, picture(seed))
    write(folder / "a" / "2.png", b"broken")
    make_tar(tmp_path / "shard-1.tar", folder, names[5:])
    make_tar(tmp_path / "shard-0.tar", folder, names[:5])
    as_folder, as_tars = open_pools([folder, str(tmp_path / "shard-*.tar")], tmp_path, 16)
    assert (pixels(as_folder) == pixels(as_tars)).all()
    assert (prints(as_folder) == prints(as_tars)).all()
    assert as_folder.skipped == as_tars.skipped == {2: "not an image"}
    assert as_tars.names[0] == "shard-0.tar/a/0.png" and as_tars.names[7] == "shard-1.tar/b/3.png"
    assert as_tars.tags(7) == as_folder.tags(7) == "b"
    [one] = open_pools([tmp_path / "shard-1.tar"], tmp_path, 16)
    assert one.name == "shard-1" and len(one) == 3


def test_cut_shards_give_what_lies_before_the_cut(tmp_path):
    folder = tmp_path / "pool"
    for seed in range(6):
        write(folder / f"{seed}.png", picture(seed))
    names = [f"{seed}.png" for seed in range(6)]
    make_tar(tmp_path / "whole.tar", folder, names)
    content = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        fourth = archive.getmembers()[3]
    lost = "truncated or damaged archive: the members after this are lost"
    cuts = {
        "data": content[: fourth.offset_data + 100],
        "header": content[: fourth.offset + 100],
        "between": content[: fourth.offset],  # no end of the archive is marked there
        "overwritten": content[: fourth.offset] + b"x" * 512 + content[fourth.offset + 512 :],
    }
    for name, cut in cuts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").write_bytes(cut)
        make_tar(tmp_path / name / "b.tar", folder, names[4:])
        [pool] = open_pools([str(tmp_path / name / "*.tar")], tmp_path, 16)
        listed = {pool.names[i]: reason for i, reason in pool.skipped.items()}
        damaged = {"a.tar/3.png": "damaged or truncated image"} if name == "data" else {}
        assert listed == {"a.tar": lost, **damaged}, name
        good = [i for i in range(len(pool)) if i not in pool.skipped]
        assert [pool.names[i] for i in good] == [
            *(f"a.tar/{seed}.png" for seed in range(3)),
            "b.tar/4.png",
            "b.tar/5.png",
        ]
        wanted = [fit_square(picture(seed), 16) for seed in (0, 1, 2, 4, 5)]
        assert (pixels(pool)[good] == np.stack(wanted)).all()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path, format):
    names = [
        "a.png",
        "d/" * 30 + "b.png",
        "x" * 90 + ".png",
        "ü/é.png",
        "wide/" * 5 + "y" * 90 + ".png",
    ]
    names += [] if format == tarfile.USTAR_FORMAT else ["deep/" * 60 + "z" * 200 + ".png"]
    content = encode(picture())
    with tarfile.open(tmp_path / "s.tar", "w", format=format) as archive:
        for number, name in enumerate(names):
            folder = tarfile.TarInfo(f"folder-{number}.png")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content) + number, 0.5  # a fraction needs a pax header
            archive.addfile(member, io.BytesIO(content + bytes(number)))
    found = list(tar.members(tmp_path / "s.tar"))
    with tarfile.open(tmp_path / "s.tar") as archive:
        wanted = archive.getmembers()
    assert [member.name.decode().rstrip("/") for member in found] == [m.name for m in wanted]
    assert [(m.offset, m.size) for m in found] == [(m.offset_data, m.size) for m in wanted]
    assert [m.kind == "file" for m in found] == [m.isreg() for m in wanted]
    [pool] = open_pools([tmp_path / "s.tar"], tmp_path, 40)
    assert list(pool.names) == [f"s.tar/{name}" for name in names] and not pool.skipped
    assert (pixels(pool) == picture()).all()


def test_sizes_beyond_octal_digits_are_read(tmp_path):
    member = tarfile.TarInfo("big.png")
    member.size = 2**40
    (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    members = tar.members(tmp_path / "s.tar")
    assert next(members) == tar.Member(b"big.png", "file", 512, 2**40)
    with pytest.raises(tar.Damaged):
        next(members)


@posix
def test_strange_members_of_a_tar(tmp_path):
    write(tmp_path / "p" / "a.png", picture())
    write(tmp_path / "p" / ".b.png", picture())
    with tarfile.open(tmp_path / "s.tar", "w", errors="surrogateescape") as tar:
        for name in ("./a.png", ".b.png", "c\udcff.png", "a.png", "notes.txt"):
            tar.add(tmp_path / "p" / "a.png", name)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    [pool] = open_pools([tmp_path / "s.tar"], tmp_path, 16)
    assert list(pool.names) == ["s.tar/a.png", "s.tar/c\\xff.png", "s.tar/a.png", "s.tar/link.png"]
    assert pool.skipped == {
        1: "name is not UTF-8",
        2: "same name as an earlier member",
        3: "not a regular file",
    }


def test_pool_names_are_unique(tmp_path):
    for place in ("x/pool", "y/pool", "pool-2"):
        write(tmp_path / place / "a.png", picture())
    pools = open_pools(
        [tmp_path / p for p in ("pool-2", "x/pool", "y/pool", "x/pool")], tmp_path, 8
    )
    assert [pool.name for pool in pools] == ["pool-2", "pool", "pool-3", "pool-4"]


@pytest.mark.parametrize(
    "spec, error",
    [
        (
            "no/such/folder",
            "'no/such/folder' is neither a folder nor one of heldout, cifar10, tiny-",
        ),
        ("cifar-10", "'cifar-10' is neither"),
        ("", "'' is neither"),
        ("shards-*.tar", "no tar shard matches 'shards-"),
        ("heldout", "'heldout' is empty.*--labels-per-class"),
        ("EMPTY", "no images in .*EMPTY"),
        ("text.tar", "text.tar' cannot be read as an uncompressed tar"),
    ],
)
def test_unusable_pools_are_named(tmp_path, monkeypatch, spec, error):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "EMPTY" / "notes.txt", b"x")
    write(tmp_path / "text.tar", b"no archive" * 200)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as caught:
        open_pools([spec], tmp_path, 16)
    assert "\n" not in str(caught.value)


def test_heldout_knows_the_truth_and_patches_need_no_files(tmp_path):
    digits = load_labelled("digits", tmp_path, 16)
    parts = split(digits.train_labels, 0, 10, 5)
    heldout, patches = open_pools(["heldout", "patches"], tmp_path, 16, digits, parts)
    assert len(heldout) == len(parts.heldout) and heldout.truth.dtype == np.int64
    assert (heldout.truth == digits.train_labels[parts.heldout]).all()
    assert (pixels(heldout) == digits.train_images[parts.heldout]).all()
    assert heldout.names[3] == digits.train_names[parts.heldout[3]]
    assert len(patches) > 100 and len(set(patches.names)) == len(patches)
    [again] = open_pools(["patches"], tmp_path, 16)
    assert (pixels(again) == pixels(patches)).all() and again.inputs == patches.inputs


def test_stl10_is_read_upright(tmp_path, monkeypatch):
    images = np.stack([picture(seed, 96, 96) for seed in range(3)])
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    stored = images.transpose(0, 3, 2, 1)  # colour planes, each column by column
    sums = {}
    for file in ("train_X.bin", "train_y.bin", "unlabeled_X.bin", "test_X.bin", "test_y.bin"):
        (folder / file).write_bytes(stored.tobytes() if "X" in file else b"\1\2\3")
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    for part in ("train_list", "test_list"):
        patched = [[file, sums[file]] for file, _ in getattr(torchvision.datasets.STL10, part)]
        monkeypatch.setattr(torchvision.datasets.STL10, part, patched)
    [pool] = open_pools(["stl10"], tmp_path, 96)
    assert (pixels(pool) == images).all() and pool.name_of(2) == "stl10/2"


def test_tiny_imagenet_is_downloaded_once(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    with zipfile.ZipFile(site / "tiny.zip", "w") as archive:
        for seed, name in enumerate(["train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG"]):
            archive.writestr(f"tiny-imagenet-200/{name}", encode(picture(seed), ".jpg"))
        archive.writestr("tiny-imagenet-200/test/images/test_0.JPEG", JPEG)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/tiny.zip"
        monkeypatch.setattr(pools_module, "TINY_IMAGENET_URL", address)
        with pytest.raises(ConnectionError, match=r"cannot download tiny-imagenet.*corrupted"):
            open_pools(["tiny-imagenet"], tmp_path / "data", 32)  # not the official checksum
        assert not list((tmp_path / "data").glob("tiny-imagenet-200*"))
        checksum = hashlib.md5((site / "tiny.zip").read_bytes()).hexdigest()
        monkeypatch.setattr(pools_module, "TINY_IMAGENET_MD5", checksum)
        [pool] = open_pools(["tiny-imagenet"], tmp_path / "data", 32)
        server.shutdown()
    [again] = open_pools(["tiny-imagenet"], tmp_path / "data", 32)  # offline now
    assert list(again.names) == ["n01/images/n01_0.JPEG", "n02/images/n02_0.JPEG"]
    assert [again.tags(i) for i in range(2)] == ["n01", "n02"]
    assert (pixels(again) == pixels(pool)).all()
    assert not list((tmp_path / "data").glob("*.partial*"))


@pytest.mark.slow
def test_opencv_obeys_the_pixel_limit_and_keeps_quiet():
    # In a new process: OpenCV reads the limit while it is imported, here perhaps by another test.
    # 10000 x 10000 is above our limit and below OpenCV's own.
    program = (
        "import sys, data\n"
        "for size in map(int, sys.argv[1:]):\n"
        "    try: data.decode(sys.stdin.buffer.read(size))\n"
        "    except data.Unreadable as reason: print(reason)"
    )
    contents = png_claiming(10000, 10000), BROKEN["cut.png"][0]
    done = subprocess.run(
        [sys.executable, "-c", program, *(str(len(content)) for content in contents)],
        input=b"".join(contents),
        capture_output=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    assert lines == ["more than 67108864 pixels", "damaged or truncated image"]
    assert not done.stderr  # OpenCV keeps quiet: the reasons are ours to report
