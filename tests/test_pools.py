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

from data import selection
from data import sources as sources_module
from data.cache import Cache
from data.decode import (
    checksums,
    decode,
    fit_square,
    pixel_hash,
)
from data.labelled import load_labelled
from data.listing import LOST, MemorySource, list_tars
from data.pool import Pool, draw, open_pool
from data.sources import NO_CLASS, open_sources
from data.splits import split
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
    [source] = open_sources([folder], tmp_path, 32)
    names = list(source.names)
    assert names == sorted([*BROKEN, "a.png", "deep/er/b.png", "z.jpg"])
    assert {names[i]: reason for i, reason in source.unreadable.items()} == {
        name: reason for name, (_, reason) in BROKEN.items()
    }
    assert source.name == "photos" and source.names[0] == "a.png" and source.truth is None
    assert source.images.shape == (len(names), 32, 32, 3)
    row = names.index("deep/er/b.png")
    assert (pixels(source)[row] == fit_square(picture(1), 32)).all()
    assert (checksums_of(source)[row] == checksums(fit_square(picture(1), 32)[None])).all()
    assert not pixels(source)[names.index("cut.png")].any()
    assert source.tag(row) == "er" and source.tag(0) == ""
    assert source.inputs["entries"] == len(names)


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
    [source] = open_sources([tmp_path / "pool"], tmp_path, 40)
    listed = {source.names[i]: reason for i, reason in source.unreadable.items()}
    assert listed == {name: reason for name, (_, reason) in BROKEN.items()}
    for name, image in zip(source.names, pixels(source), strict=True):
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
    [source] = open_sources([folder], tmp_path / "data", 16)
    listed = {source.names[i]: reason for i, reason in source.unreadable.items()}
    assert listed.pop("self.png").startswith("cannot be opened: ")
    assert listed == {
        "bad\\xff.png": "name is not UTF-8",
        "dangling.png": "dangling link",
        "dir\\xfe/in.png": "name is not UTF-8",
        "pipe.png": "not a regular file",
    }
    good = set(source.names) - {source.names[i] for i in source.unreadable}
    far = "folder.png/far.png"  # through a link to a folder
    assert good == {"good.png", "link.png", "new\nline.png", "x" * 251 + ".png", far}


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_listed(tmp_path):
    write(tmp_path / "pool" / "a.png", picture())
    write(tmp_path / "pool" / "b.png", picture())
    (tmp_path / "pool" / "b.png").chmod(0)
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert list(source.unreadable) == [1] and "denied" in source.unreadable[1]
    (tmp_path / "pool" / "b.png").chmod(0o644)
    assert not open_sources([tmp_path / "pool"], tmp_path, 16)[0].unreadable


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


def pixels(source):
    """All images of a source: uint8 (N, S, S, 3)."""
    return source.images[slice(None)].numpy().copy()  # of files that a test may damage


def checksums_of(source):
    return np.concatenate(source.checksums)


def test_cache_is_reused_until_a_file_changes(tmp_path, decoded):
    folder = tmp_path / "pool"
    for seed in range(3):
        write(folder / f"{seed}.png", picture(seed))
    first = open_sources([folder], tmp_path, 16)[0]
    assert sorted(decoded) == ["0.png", "1.png", "2.png"]
    decoded.clear()
    again = open_sources([folder], tmp_path, 16)[0]
    assert not decoded and (pixels(again) == pixels(first)).all()
    assert again.inputs == first.inputs

    open_sources([folder], tmp_path, 24)  # another size
    assert len(decoded) == 3
    write(folder / "3.png", picture(3))
    decoded.clear()
    grown = open_sources([folder], tmp_path, 16)[0]
    assert len(decoded) == 4 and grown.inputs["digest"] != first.inputs["digest"]

    path = folder / "1.png"  # edited in place, same length
    size = path.stat().st_size
    path.write_bytes(encode(picture(1))[:-1] + b"\0")
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    decoded.clear()
    edited = open_sources([folder], tmp_path, 16)[0]
    assert len(decoded) == 4 and edited.inputs["digest"] == grown.inputs["digest"]


@pytest.mark.parametrize("harm", [lambda content: content[:-5], lambda content: content + b"x"])
@pytest.mark.parametrize("file", ["images.npy", "meta.json", "checksums.npy"])
def test_damaged_cache_is_built_again(tmp_path, decoded, file, harm):
    write(tmp_path / "pool" / "a.png", picture())
    first = pixels(open_sources([tmp_path / "pool"], tmp_path, 16)[0])
    [path] = (tmp_path / "cache").glob(f"*/{file}")
    path.write_bytes(harm(path.read_bytes()))
    decoded.clear()
    assert (pixels(open_sources([tmp_path / "pool"], tmp_path, 16)[0]) == first).all()
    assert decoded == ["a.png"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("file", ["images.npy", "meta.json", "checksums.npy"])
def test_a_flipped_bit_in_the_cache_is_noticed_wherever_it_is(tmp_path, decoded, capsys, file):
    write(tmp_path / "pool" / "a.png", picture())
    first = pixels(open_sources([tmp_path / "pool"], tmp_path, 16)[0])
    [path] = (tmp_path / "cache").glob(f"*/{file}")
    content = path.read_bytes()
    for share in (0.2, 0.5, 0.999):
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[int(share * len(content))] ^= 4
        path.write_bytes(damaged)
        decoded.clear()
        assert (pixels(open_sources([tmp_path / "pool"], tmp_path, 16)[0]) == first).all()
        assert path.read_bytes() == content and decoded == ["a.png"]


def cache_of(folder, name, read, count=600, size=8, hashes=False):
    return Cache(folder, name, MemorySource(count, read), {}, size, hashes)


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
    create = np.lib.format.open_memmap

    def on_full_disk(path, mode, *rest):
        made = create(path, mode, *rest)
        if mode == "w+":
            path.unlink()
            path.symlink_to("/dev/full")
        return made

    with monkeypatch.context() as full:
        full.setattr(np.lib.format, "open_memmap", on_full_disk)
        with pytest.raises(OSError, match="No space left"):
            open_sources([tmp_path / "pool"], tmp_path, 32)
    assert list((tmp_path / "cache").iterdir()) == []
    assert not open_sources([tmp_path / "pool"], tmp_path, 32)[0].unreadable


def test_two_processes_building_one_cache_share_the_first(tmp_path, monkeypatch):
    def build(read=picture):
        [block], _ = cache_of(tmp_path, "race", read, 2).open()
        return block.images

    def meanwhile(i):  # the other process finishes first
        if not first:
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: -1)
                build()
            [theirs] = tmp_path.glob("race-*/meta.json")
            first.append(theirs.stat().st_mtime_ns)
        return picture(i)

    first = []
    assert (build(meanwhile) == build()).all()
    [folder] = tmp_path.iterdir()
    assert (folder / "meta.json").stat().st_mtime_ns == first[0]  # perhaps mapped by them already


def test_pixel_hashes_are_kept_where_asked_for(tmp_path):
    [plain], _ = cache_of(tmp_path, "both", picture).open()
    [hashed], _ = cache_of(tmp_path, "both", picture, hashes=True).open()
    assert plain.pixel_hashes is None and len(list(tmp_path.iterdir())) == 2
    assert [row.tobytes() for row in hashed.pixel_hashes[[0, 599]]] == [
        pixel_hash(picture(0)),
        pixel_hash(picture(599)),
    ]
    assert (hashed.images == plain.images).all()
    assert (plain.images[5] == fit_square(picture(5), 8)).all()


def make_tar(path, folder, names):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name in names:
            tar.add(folder / name, name)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_tar_shards_equal_the_folder(tmp_path, suffix):
    folder = tmp_path / "pool"
    names = [f"{c}/{i}.png" for c in "ab" for i in range(4)]
    for seed, name in enumerate(names):
        write(folder / name, picture(seed))
    write(folder / "a" / "2.png", b"broken")
    make_tar(tmp_path / f"shard-1.{suffix}", folder, names[5:])
    make_tar(tmp_path / f"shard-0.{suffix}", folder, names[:5])
    as_folder, as_tars = open_sources([folder, str(tmp_path / f"shard-*.{suffix}")], tmp_path, 16)
    assert (pixels(as_folder) == pixels(as_tars)).all()
    assert (checksums_of(as_folder) == checksums_of(as_tars)).all()
    assert as_folder.unreadable == as_tars.unreadable == {2: "not an image"}
    names = [as_tars.names[i] for i in (0, 7)]
    assert names == [f"shard-0.{suffix}/a/0.png", f"shard-1.{suffix}/b/3.png"]
    assert as_tars.tag(7) == as_folder.tag(7) == "b"
    [one] = open_sources([tmp_path / f"shard-1.{suffix}"], tmp_path, 16)
    assert one.name == "shard-1" and len(one) == 3


def test_a_range_of_shards_is_those_it_names(tmp_path):
    for number in range(4):
        with tarfile.open(tmp_path / f"part-{number:03d}.tar", "w") as archive:
            content = encode(picture(number))
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (source,) = open_sources([tmp_path / "part-{001..003}.tar"], tmp_path, 8)
    assert [name.split("/")[-1] for name in source.names] == ["1.png", "2.png", "3.png"]
    with pytest.raises(FileNotFoundError, match=r"no tar shard matches '.*part-004.tar'"):
        open_sources([tmp_path / "part-{001..004}.tar"], tmp_path, 8)


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
        [source] = open_sources([str(tmp_path / name / "*.tar")], tmp_path, 16)
        listed = {source.names[i]: reason for i, reason in source.unreadable.items()}
        damaged = {"a.tar/3.png": "damaged or truncated image"} if name == "data" else {}
        assert listed == {"a.tar": lost, **damaged}, name
        good = [i for i in range(len(source)) if i not in source.unreadable]
        assert [source.names[i] for i in good] == [
            *(f"a.tar/{seed}.png" for seed in range(3)),
            "b.tar/4.png",
            "b.tar/5.png",
        ]
        wanted = [fit_square(picture(seed), 16) for seed in (0, 1, 2, 4, 5)]
        assert (pixels(source)[good] == np.stack(wanted)).all()


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
    with tarfile.open(tmp_path / "s.tar") as archive:
        wanted = [member for member in archive.getmembers() if member.isreg()]
    listing = list_tars([tmp_path / "s.tar"])
    places = [source[1:] for source in listing.sources(0, len(listing))]
    assert places == [(member.offset_data, member.size) for member in wanted]
    [source] = open_sources([tmp_path / "s.tar"], tmp_path, 40)
    assert list(source.names) == [f"s.tar/{name}" for name in names] and not source.unreadable
    assert (pixels(source) == picture()).all()


@pytest.mark.parametrize("size", [2**40, -512])
def test_sizes_that_no_archive_holds_end_it(tmp_path, size):
    member = tarfile.TarInfo("big.png")
    member.size = size
    (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    listing = list_tars([tmp_path / "s.tar"])
    assert list(listing.names) == ["s.tar/big.png", "s.tar"][size < 0 :]
    assert LOST in listing.unreadable.values()


def test_a_sparse_member_is_not_a_regular_file(tmp_path):
    member = tarfile.TarInfo("holes.png")
    member.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "s.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    listing = list_tars([tmp_path / "s.tar"])
    assert list(listing.names) == ["s.tar/holes.png"]
    assert listing.unreadable == {0: "not a regular file"}


@posix
def test_a_damaged_compressed_shard_gives_what_lies_before_the_damage(tmp_path):
    random = np.random.default_rng(0)
    for seed in range(6):  # noise, which does not get smaller: each has its own place in the file
        write(tmp_path / f"{seed}.png", encode(random.integers(0, 256, (200, 200, 3), np.uint8)))
    make_tar(tmp_path / "whole.tar.gz", tmp_path, [f"{seed}.png" for seed in range(6)])
    content = (tmp_path / "whole.tar.gz").read_bytes()
    half = len(content) // 2
    for number, damaged in enumerate(
        (content[:half], content[:half] + b"\xff" * 4000 + content[half + 4000 :])
    ):
        (tmp_path / f"{number}.tgz").write_bytes(damaged)
        [source] = open_sources([tmp_path / f"{number}.tgz"], tmp_path, 16)
        good = [source.names[i] for i in range(len(source)) if i not in source.unreadable]
        assert good[:2] == [f"{number}.tgz/0.png", f"{number}.tgz/1.png"] and len(good) <= 4
        assert source.names[len(source) - 1] == f"{number}.tgz"  # stands for the rest
        assert set(source.unreadable.values()) >= {LOST}


def test_a_header_may_not_unpack_to_more_than_an_image_may_take(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "long.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * 3000 + ".png"))
    assert len(list_tars([tmp_path / "long.tar.gz"])) == 1
    monkeypatch.setattr(sys.modules["data.decode"], "MAX_FILE_BYTES", 2000)
    with pytest.raises(ValueError, match=r"long.tar.gz' cannot be read as a compressed tar"):
        list_tars([tmp_path / "long.tar.gz"])


@posix
def test_a_tar_leads_nowhere_else(tmp_path):
    content, kinds = encode(picture()), (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("../out.png", "/abs/out.png", "a/../../out.png"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = {path for path in tmp_path.rglob("*")}
    [source] = open_sources([tmp_path / "s.tar"], tmp_path / "data", 16)
    listed = {source.names[i]: reason for i, reason in source.unreadable.items()}
    outside = [f"s.tar/{name}" for name in ("../out.png", "/abs/out.png", "a/../../out.png")]
    assert listed == {
        **dict.fromkeys(outside, "name leads out of the archive"),
        **{f"s.tar/{number}.png": "not a regular file" for number in range(3)},
    }
    assert {path for path in tmp_path.rglob("*") if "data" not in path.parts} == before


@posix
def test_links_out_of_a_pool_are_reported(tmp_path, capsys):
    write(tmp_path / "elsewhere" / "far.png", picture(1))
    write(tmp_path / "pool" / "near.png", picture())
    (tmp_path / "pool" / "inside.png").symlink_to("near.png")
    open_pool([tmp_path / "pool"], tmp_path, 16)
    assert not capsys.readouterr().err
    (tmp_path / "pool" / "out.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    pool = open_pool([tmp_path / "pool"], tmp_path, 16)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'out.png'" in error and str(tmp_path / "pool") in error
    assert not pool.unreadable and len(pool) == 3


@posix
def test_names_that_look_alike_are_kept_apart(tmp_path):
    nfc, nfd = "caf\u00e9.png", "cafe\u0301.png"
    names = [nfc, nfd, 'a "quoted", name.png', "new\nline.png", "carriage\rreturn.png"]
    for seed, name in enumerate(names):
        write(tmp_path / "pool" / name, picture(seed))
    if len(list((tmp_path / "pool").iterdir())) < len(names):
        pytest.skip("this file system takes the two for one")
    pool = open_pool([tmp_path / "pool"], tmp_path, 16)
    images, numbers = pool.names_of(0, len(pool)), np.arange(1, len(pool) + 1)
    selection.write_selection(tmp_path / "s.csv", images, numbers % 2, numbers / 8, numbers)
    again, *_ = selection.read_selection(tmp_path / "s.csv", 2)
    assert sorted(images) == sorted(f"pool/{name}" for name in names) and again == images
    for seed, name in enumerate(names):
        [position] = pool.positions([f"pool/{name}"])
        assert (pool.images[[position]][0].numpy() == fit_square(picture(seed), 16)).all()


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
    [source] = open_sources([tmp_path / "s.tar"], tmp_path, 16)
    assert list(source.names) == [
        "s.tar/a.png",
        "s.tar/c\\xff.png",
        "s.tar/a.png",
        "s.tar/link.png",
    ]
    assert source.unreadable == {
        1: "name is not UTF-8",
        2: "same name as an earlier member",
        3: "not a regular file",
    }


def test_a_part_of_a_pool_is_drawn_at_random_and_smaller_parts_are_in_larger(tmp_path):
    for number in range(5):
        write(tmp_path / f"one/{number}.png", picture(number))
        write(tmp_path / f"two/{number}.png", picture(5 + number))
    write(tmp_path / "two/broken.png", b"no image")
    pool = open_pool([tmp_path / "one", tmp_path / "two"], tmp_path, 32)
    small, large, again, other = (
        draw(pool, size, seed) for size, seed in ((4, 0), (8, 0), (8, 0), (8, 1))
    )
    names = [part.names_of(0, len(part)) for part in (small, large, again, other)]
    assert list(map(len, names)) == [4, 8, 8, 8] and set(names[0]) < set(names[1])
    assert names[1] == names[2] != names[3] and names[1] == sorted(names[1])
    for part in (small, large):
        whole = pool.positions(part.names_of(0, len(part)))
        assert (part.images[:] == pool.images[whole]).all()
        assert (part.checksums(np.arange(len(part))) == pool.checksums(whole)).all()
        broken = {part.name_of(position) for position in part.unreadable}
        assert broken == {"two/broken.png"} & set(part.names_of(0, len(part)))
    assert len(draw(pool, 11, 3)) == 11 and draw(pool, 11, 3).count_skipped()["unreadable"] == 1
    with pytest.raises(ValueError, match="--pool-size 12 is above the 11 images"):
        draw(pool, 12, 0)


def test_pool_names_are_unique(tmp_path):
    for place in ("x/pool", "y/pool", "pool-2"):
        write(tmp_path / place / "a.png", picture())
    sources = open_sources(
        [tmp_path / p for p in ("pool-2", "x/pool", "y/pool", "x/pool")], tmp_path, 8
    )
    assert [source.name for source in sources] == ["pool-2", "pool", "pool-3", "pool-4"]


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
        ("text.tar.gz", "text.tar.gz' cannot be read as a compressed tar"),
    ],
)
def test_unusable_pools_are_named(tmp_path, monkeypatch, spec, error):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "EMPTY" / "notes.txt", b"x")
    write(tmp_path / "text.tar", b"no archive" * 200)
    write(tmp_path / "text.tar.gz", b"no archive" * 200)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as caught:
        open_sources([spec], tmp_path, 16)
    assert "\n" not in str(caught.value)


def test_heldout_knows_the_truth_and_patches_need_no_files(tmp_path):
    digits = load_labelled("digits", tmp_path, 16)
    parts = split(digits.train.labels, 0, 10, 5)
    heldout, patches = open_sources(["heldout", "patches"], tmp_path, 16, digits, parts)
    assert len(heldout) == len(parts.heldout) and heldout.truth.dtype == np.int64
    assert (heldout.truth == digits.train.labels[parts.heldout].numpy()).all()
    assert (heldout.images[slice(None)] == digits.train.images[parts.heldout]).all()
    assert heldout.names[3] == digits.train.names[parts.heldout[3]]
    assert set(patches.truth.tolist()) == {NO_CLASS}
    pool = Pool([heldout, patches])
    assert pool.truth_of(np.array([0, len(heldout)])).tolist() == [heldout.truth[0], NO_CLASS]
    assert pool.true_counts(10).tolist() == np.bincount(heldout.truth, minlength=10).tolist()
    assert len(patches) > 100 and len(set(patches.names)) == len(patches)
    [again] = open_sources(["patches"], tmp_path, 16)
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
    [source] = open_sources(["stl10"], tmp_path, 96)
    assert (pixels(source) == images).all() and source.names[2] == "2"


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
        monkeypatch.setattr(sources_module, "TINY_IMAGENET_URL", address)
        with pytest.raises(ConnectionError, match=r"cannot download tiny-imagenet.*corrupted"):
            open_sources(["tiny-imagenet"], tmp_path / "data", 32)  # not the official checksum
        assert not list((tmp_path / "data").glob("tiny-imagenet-200*"))
        checksum = hashlib.md5((site / "tiny.zip").read_bytes()).hexdigest()
        monkeypatch.setattr(sources_module, "TINY_IMAGENET_MD5", checksum)
        [source] = open_sources(["tiny-imagenet"], tmp_path / "data", 32)
        server.shutdown()
    [again] = open_sources(["tiny-imagenet"], tmp_path / "data", 32)  # offline now
    assert list(again.names) == ["n01/images/n01_0.JPEG", "n02/images/n02_0.JPEG"]
    assert [again.tag(i) for i in range(2)] == ["n01", "n02"]
    assert (pixels(again) == pixels(source)).all()
    assert not list((tmp_path / "data").glob("*.partial*"))


BOMBS = {  # a few bytes that claim 30,000 x 30,000 pixels
    "png": png_claiming(30000, 30000),
    "jpeg": (jpeg := encode(picture(), ".jpg"))[: (at := jpeg.index(b"\xff\xc0") + 5)]
    + struct.pack(">HH", 30000, 30000)
    + jpeg[at + 4 :],
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6),
    "pnm": b"P6 30000 30000 255\n" + bytes(99),
    "gif": b"GIF89a"
    + struct.pack("<HH", 30000, 30000)
    + pillow("GIF", Image.fromarray(picture()).quantize(16))[10:],
}


@pytest.mark.slow
def test_opencv_obeys_the_pixel_limit_before_it_takes_memory_and_keeps_quiet():
    # In a new process: OpenCV reads the limit while it is imported, here perhaps by another test.
    # 10000 x 10000 is above our limit and below OpenCV's own.
    pytest.importorskip("resource")
    program = (
        "import sys, resource\n"
        "from data.decode import Unreadable, decode\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for size in map(int, sys.argv[1:]):\n"
        "    try: print(decode(sys.stdin.buffer.read(size)).shape)\n"
        "    except Unreadable as reason: print(reason)\n"
        "print(peak() - before)"
    )
    contents = png_claiming(10000, 10000), BROKEN["cut.png"][0], *BOMBS.values()
    done = subprocess.run(
        [sys.executable, "-c", program, *(str(len(content)) for content in contents)],
        input=b"".join(contents),
        capture_output=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    *lines, grown = done.stdout.decode().splitlines()
    too_large = "more than 67108864 pixels"
    assert lines == [too_large, "damaged or truncated image", *[too_large] * len(BOMBS)]
    assert not done.stderr  # OpenCV keeps quiet: the reasons are ours to report
    assert int(grown) * (1024 if sys.platform == "linux" else 1) < 200e6
