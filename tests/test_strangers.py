"""Strangers' files: what is not read is said, no two names are one, nothing takes for ever.

pytest tests/test_strangers.py
"""

import csv
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import files
import main
from data import selection
from data import workers as workers_module
from data.decode import Unreadable, decode
from data.labelled import load_labelled
from data.listing import LOST, Names, list_folder, list_tars
from data.pool import Pool, open_pool, reopen_pool
from data.sources import absolute, open_sources
from data.splits import split
from stages.prepare import cache_of

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX names and links")


def picture(seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def png(seed=0, side=16):
    return cv2.imencode(".png", picture(seed, side)[..., ::-1])[1].tobytes()


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if content is None else content)


def make_tar(path, members, **options):
    with tarfile.open(path, "w", errors="surrogateescape", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


# --- names --------------------------------------------------------------------------------------


def test_no_two_names_are_spelled_alike():
    raw = [b"x\xff", b"x\\xff", b"x\\\\xff", b"x\\", b"\\", "é".encode(), b"e\xcc\x81"]
    names = Names(raw)
    assert len(set(names)) == len(raw)
    assert names[0] == "x\\xff" and names[1] == "x\\\\xff" and names[5] == "é"


@posix
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_selected_name_leads_to_its_own_pixels_beside_one_that_looks_alike(tmp_path, kind):
    odd, plain = "x\udcff.png", "x\\xff.png"  # a byte that is not UTF-8; a backslash and letters
    if kind == "tar":
        make_tar(tmp_path / "pool.tar", [(plain, png(1)), (odd, png(2)), ("y.png", png(3))])
    else:
        for seed, name in enumerate((plain, odd, "y.png"), 1):
            write(tmp_path / "pool" / name, png(seed))
    [source] = open_sources([tmp_path / ("pool.tar" if kind == "tar" else "pool")], tmp_path, 16)
    pool = Pool([source])
    good = [i for i in range(3) if i not in source.unreadable]
    assert len(good) == 2 and len(set(source.names)) == 3
    assert pool.positions([pool.name_of(i) for i in good]).tolist() == good
    assert sorted(pool.images[good].flatten(1).sum(1).tolist()) == sorted(
        int(picture(seed).sum()) for seed in (1, 3)
    )


def test_a_second_member_of_the_same_name_does_not_stand_for_the_first(tmp_path):
    make_tar(tmp_path / "s.tar", [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))])
    pool = open_pool([tmp_path / "s.tar"], tmp_path, 16)
    assert pool.positions(["s/s.tar/a.png"]).tolist() == [0]


@pytest.mark.parametrize(
    "length, reason", [(1_025, "name longer than 1024 bytes"), (140_000, LOST)]
)
def test_a_name_beyond_all_measure_is_listed_and_kept_short(tmp_path, length, reason):
    make_tar(tmp_path / "s.tar", [("y.png", png()), ("x" * length + ".png", png())])
    listing = list_tars([tmp_path / "s.tar"])
    assert listing.unreadable == {1: reason} and max(map(len, listing.names)) < 200


@pytest.mark.parametrize(
    "classes", [("sea snake", "sea_snake"), ("Ant", "ant"), ("café", "cafe\u0301")]
)
def test_tags_are_exact_first_and_never_fold_two_classes_together(tmp_path, classes):
    for tag in classes:
        write(tmp_path / "pool" / tag / "a.png")
    if len(list((tmp_path / "pool").iterdir())) < 2:
        pytest.skip("this file system takes the two for one")
    pool = open_pool([tmp_path / "pool"], tmp_path, 16)
    found = [classes.index(pool.folder_of(i)) for i in range(2)]
    assert pool.tags(classes, 0, 2).tolist() == found
    pool.check_tags(classes)
    folded = classes[0].upper()
    write(tmp_path / "pool" / folded / "a.png")
    pool = open_pool([tmp_path / "pool"], tmp_path, 16)
    with pytest.raises(ValueError, match=f"'{folded}' of the pool could be named after two"):
        pool.check_tags(classes)
    pool.check_tags(classes[:1])  # no question with one of them alone


# --- nothing vanishes ---------------------------------------------------------------------------


def test_what_is_not_used_is_counted_with_an_example_and_listed(tmp_path, capsys):
    pool = tmp_path / "pool"
    write(pool / "a.jfif", cv2.imencode(".jpg", picture())[1].tobytes())
    for name in ("b.avif", "c.heic", "no-suffix", "notes.txt", ".hidden", "@eaDir/a.jpg"):
        write(pool / name, b"x")
    opened = open_pool([pool], tmp_path, 16)
    assert opened.names_of(0, len(opened)) == ["pool/a.jfif"] and not opened.unreadable
    assert capsys.readouterr().err == ("pool 'pool': 4 file(s) are not used, such as 'b.avif'\n")
    assert [name for name, _ in opened.unused()] == ["pool/b.avif", "pool/c.heic", "pool/no-suffix"]


def test_folders_of_thumbnails_are_no_classes_and_no_images(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / part / name / "1.png", png(ord(name) + len(part)))
            write(tmp_path / part / name / "@eaDir" / "1.png")
        write(tmp_path / part / "@eaDir" / "1.png")
    loaded = load_labelled("folder", tmp_path, 16)
    assert loaded.classes == ("a", "b") and len(loaded.train) == 2


@posix
def test_links_to_folders_are_followed_once_by_their_real_path(tmp_path):
    pool, far = tmp_path / "pool", tmp_path / "far"
    write(pool / "own" / "1.png")
    write(far / "deep" / "2.png")
    write(pool / ".store" / "3.png")
    for name, target in {
        "a": far, "b": far, "c": far / "deep", "d": pool / "own", "e": pool, "f": tmp_path,
        "g": pool / ".store", "h": tmp_path / "nowhere",
    }.items():  # fmt: skip
        (pool / name).symlink_to(target)
    listing = list_folder(pool)
    assert list(listing.names) == ["a/deep/2.png", "g/3.png", "own/1.png"]
    assert listing.outside == ["a/deep/2.png", "g/3.png"]


def test_a_sample_of_a_shard_has_one_image(tmp_path):
    names = ("1.seg.png", "1.webp", "1.json", "2.png", "2.depth.png", "3.a.png", "3.b.png", "4.png")
    make_tar(tmp_path / "s.tar", [(name, png()) for name in names])
    listing = list_tars([tmp_path / "s.tar"])
    kept = [name.partition("/")[2] for name in listing.names]
    assert kept == ["1.webp", "2.png", "3.a.png", "3.b.png", "4.png"]
    assert [name for name, _ in listing.unused] == ["s.tar/1.seg.png", "s.tar/2.depth.png"]


# --- formats ------------------------------------------------------------------------------------


def jpeg2000(value):
    """A JPEG 2000 file that declares 16 bits."""
    return cv2.imencode(".jp2", np.full((64, 64, 3), value, np.uint16))[1].tobytes()


def test_a_jpeg_2000_that_uses_its_16_bits_is_read():
    assert (decode(jpeg2000(60000)) == 60000 // 256).all()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"\0\0\0\x1cftypavif" + bytes(20), "AVIF, which is not read"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC, which is not read"),
        (b"<!DOCTYPE html><html>", "HTML, which is not read"),
        (b"<?xml version='1.0'?>\n<svg>", "SVG, which is not read"),
        (cv2.imencode(".tiff", np.ones((9, 9, 3), np.float32))[1].tobytes(), "floating-point"),
        (cv2.imencode(".png", np.full((9, 9), 4000, np.uint16))[1].tobytes(), "12 bits or fewer"),
        (cv2.imencode(".tiff", np.full((9, 9), 900, np.uint16))[1].tobytes(), "12 bits or fewer"),
        (jpeg2000(4000), "12 bits or fewer"),
        (jpeg2000(4000)[jpeg2000(4000).index(b"\xff\x4f\xff\x51") :], "12 bits or fewer"),
        (jpeg2000(4000)[:100], "damaged or truncated"),
    ],
)
def test_the_reason_names_what_a_file_is(content, reason):
    with pytest.raises(Unreadable, match=reason):
        decode(content)


RAMP = np.arange(8, dtype=np.uint16)


@pytest.mark.parametrize(
    "most, body",
    [
        (7, b"P5 8 1 7\n" + bytes(range(8))),
        (7, b"P5\n# a comment\n8 1\n7\n" + bytes(range(8))),
        (7, b"P6 8 1 7\n" + bytes(np.repeat(RAMP, 3).astype(np.uint8))),
        (7, b"P2 8 1 7\n0 1 2 3 4 5 6 7\n"),
        (700, b"P5 8 1 700\n" + (RAMP * 100).astype(">u2").tobytes()),
        (700, b"P6 8 1 700\n" + np.repeat(RAMP * 100, 3).astype(">u2").tobytes()),
        (700, b"P2 8 1 700\n0 100 200 300 400 500 600 700\n"),
    ],
)
def test_the_values_of_a_pnm_file_are_scaled_by_the_largest_that_it_declares(most, body):
    wanted = np.repeat(np.rint(RAMP * 255 / 7)[:, None], 3, 1)
    assert np.abs(decode(body)[0].astype(float) - wanted).max() <= 1
    with pytest.raises(Unreadable):
        decode(body[: len(body) // 2])
    with pytest.raises(Unreadable, match="more than"):
        decode(body.replace(b"8 1", b"90000 90000"))


def test_of_an_animated_png_only_the_first_frame_is_decoded():
    frames, file = [Image.fromarray(picture(seed, 64)) for seed in range(5)], io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert b"acTL" in file.getvalue()
    assert (decode(file.getvalue()) == picture(0, 64)).all()


# --- time ---------------------------------------------------------------------------------------

SLOW = b"decode-me-for-ever"
SITECUSTOMIZE = f"""
import cv2
real = cv2.imdecode
def imdecode(content, flags):
    while {SLOW!r} in content.tobytes():
        pass
    return real(content, flags)
cv2.imdecode = imdecode
"""


@posix
def test_a_picture_that_takes_too_long_is_listed_alone(tmp_path, monkeypatch):
    write(tmp_path / "site" / "sitecustomize.py", SITECUSTOMIZE.encode())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setattr(workers_module, "SECONDS", 0.3)
    for number in range(5):
        write(tmp_path / "pool" / f"{number}.png", png(number) + SLOW * (number == 2))
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert source.unreadable == {2: workers_module.TOO_SLOW}
    assert (source.images[[4]][0].numpy() == picture(4)).all()


PARENT = """
import sys, threading, time
from data.workers import Worker
worker = Worker()
print(worker.process.pid, flush=True)
task = {"file": sys.argv[1], "offset": 0, "size": 8, "hashes": False}
task["sources"] = [(sys.argv[2].encode(), None, None)]
threading.Thread(target=worker.ask, args=(task,)).start()
time.sleep(0.3)
print("busy", flush=True)
time.sleep(100)
"""


@posix
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
def test_a_worker_dies_with_its_parent_even_while_it_decodes(tmp_path, monkeypatch):
    write(tmp_path / "site" / "sitecustomize.py", SITECUSTOMIZE.encode())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    write(tmp_path / "slow.png", png() + SLOW)
    write(tmp_path / "out", b"")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "out"), str(tmp_path / "slow.png")]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        worker = Path("/proc", parent.stdout.readline().strip(), "stat")
        assert parent.stdout.readline() == "busy\n" and worker.exists()
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 20
        while worker.exists() and worker.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_unusual_size_ends_an_archive_at_once(tmp_path, kind):
    make_tar(tmp_path / "good.tar", [("a.png", png())])
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, 2**20
    good = (tmp_path / "good.tar").read_bytes()[: 512 + -(-len(png()) // 512) * 512]
    bomb = header.tobuf(tarfile.USTAR_FORMAT) + b"1" * 2**20
    (tmp_path / "s.tar").write_bytes(good + bomb)
    began = time.monotonic()
    listing = list_tars([tmp_path / "s.tar"])
    assert list(listing.names) == ["s.tar/a.png", "s.tar"] and listing.unreadable == {1: LOST}
    assert time.monotonic() - began < 5


def test_a_range_of_shards_is_bounded_before_it_is_written_out(tmp_path):
    for last in ("99999999999", "9" * 18):
        with pytest.raises(ValueError, match="shards; give at most 100,000"):
            open_sources([str(tmp_path / f"x-{{0..{last}}}.tar")], tmp_path, 16)


# --- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["data [v2]", "a[bc]/d[!e]", "what?"])
def test_brackets_of_a_folder_that_is_there_mean_themselves(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    for number in (0, 1, 7):
        make_tar(tmp_path / folder / f"s-{number}.tar", [("a.png", png(number))])
    [source] = open_sources([str(tmp_path / folder / "s-[0-3].tar")], tmp_path, 16)
    assert list(source.names) == ["s-0.tar/a.png", "s-1.tar/a.png"]


def test_a_pool_is_found_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("pool") == absolute("~/pool") == str(tmp_path / "pool")
    assert absolute("s-*.tar") == str(tmp_path / "s-*.tar")
    assert [absolute(name) for name in ("heldout", "stl10")] == ["heldout", "stl10"]


def scored(pool):
    """What step 2 keeps of a pool."""
    pools = {source.name: source.inputs for source in pool.sources}
    return {"unlabeled": [s.spec for s in pool.sources], "pools": pools, "input_size": 16}


def test_a_pool_that_has_moved_is_checked_by_its_digest_and_keeps_its_name(tmp_path):
    for number in range(3):
        write(tmp_path / "pool" / f"{number}.png", png(number))
    config = scored(open_pool([tmp_path / "pool"], tmp_path, 16))
    (tmp_path / "pool").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="pool"):
        reopen_pool(config, tmp_path, None, None)
    again = reopen_pool(config, tmp_path, None, None, specs=[tmp_path / "moved"])
    assert again.name_of(2) == "pool/2.png"
    write(tmp_path / "moved" / "3.png")
    with pytest.raises(ValueError, match=r"pool pool .*moved.* has changed.*--unlabeled"):
        reopen_pool(config, tmp_path, None, None, specs=[tmp_path / "moved"])
    with pytest.raises(ValueError, match="step 2 scored 1 pools"):
        reopen_pool(config, tmp_path, None, None, specs=["patches", "patches"])


def test_images_replaced_by_others_of_the_same_size_are_noticed(tmp_path):
    for number in range(3):
        write(tmp_path / "pool" / f"{number}.bmp", cv2.imencode(".bmp", picture(number))[1])
    pool = open_pool([tmp_path / "pool"], tmp_path, 16)
    config, digest = scored(pool), pool.pixel_digest([2, 0, 2])
    pool.check_pixels(np.array([0, 2]), digest)
    write(tmp_path / "pool" / "1.bmp", cv2.imencode(".bmp", picture(7))[1])
    reopen_pool(config, tmp_path, None, None).check_pixels([0, 2], digest)  # not selected
    write(tmp_path / "pool" / "2.bmp", cv2.imencode(".bmp", picture(8))[1])
    with pytest.raises(ValueError, match="other pixels than those that step 2 scored"):
        reopen_pool(config, tmp_path, None, None).check_pixels([0, 2], digest)


# --- validation folders, Unicode ----------------------------------------------------------------


def make_set(root, parts, classes=("a", "b"), each=3):
    for number, part in enumerate(parts):
        for label, name in enumerate(classes):
            for i in range(each):
                write(root / part / name / f"{i}.png", png(100 * number + 10 * label + i))


@pytest.mark.parametrize("folder", ["val", "valid", "validation"])
def test_a_folder_of_validation_images_validates(tmp_path, folder):
    make_set(tmp_path, ("train", "test", folder))
    with pytest.warns(UserWarning, match=f"{folder}': its 6 images are for validation"):
        loaded = load_labelled("folder", tmp_path, 16)
    parts = split(loaded.train.labels, 0, 2, 1, loaded.classes, loaded.val)
    val = loaded.train.subset(parts.val)
    wanted = {png(200 + 10 * label + i) for label in range(2) for i in range(3)}
    assert {
        cv2.imencode(".png", x.numpy()[..., ::-1])[1].tobytes() for x in val.images[:]
    } == wanted
    assert len(parts.labelled) == 4 and len(parts.heldout) == 2 and len(loaded.test) == 6
    whole = torch.cat([parts.labelled, parts.val, parts.heldout])
    assert whole.sort().values.tolist() == list(range(12))


def test_without_a_test_folder_the_validation_folder_is_the_test_set(tmp_path):
    make_set(tmp_path, ("train", "val"))
    with pytest.warns(UserWarning, match="no folder .*test': .*val' is the test set"):
        loaded = load_labelled("folder", tmp_path, 16)
    assert loaded.val is None and len(loaded.test) == len(loaded.train) == 6
    make_set(tmp_path, ("valid",))
    with pytest.raises(ValueError, match="which one validates"):
        load_labelled("folder", tmp_path, 16)


def test_a_class_in_another_unicode_form_is_the_same_class(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_set(tmp_path, ("train",), ("a", nfc))
    make_set(tmp_path, ("test",), ("a", nfd))
    loaded = load_labelled("folder", tmp_path, 16)
    assert loaded.classes == ("a", nfc) and loaded.test.labels.tolist() == [0] * 3 + [1] * 3
    make_set(tmp_path, ("train",), (nfd,))
    if len(list((tmp_path / "train").iterdir())) == 3:
        with pytest.raises(ValueError, match="twice, in two Unicode forms"):
            load_labelled("folder", tmp_path, 16)


# --- unfinished files ---------------------------------------------------------------------------


def test_what_a_living_process_has_is_not_removed_however_old_it_looks(tmp_path):
    mine = files.unfinished(tmp_path / "block")
    mine.mkdir()
    os.utime(mine, (0, 0))
    files.clear_abandoned(tmp_path)
    assert mine.exists()


def test_two_writers_of_one_process_have_temporary_files_of_their_own(tmp_path):
    assert files.unfinished(tmp_path / "a") != files.unfinished(tmp_path / "a")
    with files.whole_file(tmp_path / "a") as one, files.whole_file(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


@posix
def test_a_damaged_cache_can_be_read_by_several_at_once(tmp_path):
    for number in range(20):
        write(tmp_path / "pool" / f"{number:02d}.png", png(number))
    first = open_sources([tmp_path / "pool"], tmp_path, 16)[0].images[:].numpy().copy()
    [path] = (tmp_path / "cache").glob("*/images.npy")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    found, errors = [], []

    def read():
        try:
            found.append(open_sources([tmp_path / "pool"], tmp_path, 16)[0].images[:].numpy())
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not errors and len(found) == 6
    assert all((images == first).all() for images in found)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_skipped_csv_takes_names_with_every_character(tmp_path):
    pairs = [("a\\xff.png", "one"), ('b",\n.png', "two"), ("c\r.png", "three")]
    selection.write_skipped(tmp_path / "skipped.csv", pairs)
    with open(tmp_path / "skipped.csv", newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == pairs


# --- the steps ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_step_3_wants_the_pool_that_was_scored_wherever_it_is(run_before, step, refused, tmp_path):
    pool, moved, run = tmp_path / "pool", tmp_path / "moved", run_before("samples")
    for number in range(6):
        write(pool / f"{number}.bmp", cv2.imencode(".bmp", picture(number))[1])
    write(pool / "7.heic", b"x")
    flags = ("--unlabeled", pool, "--strategy random --k 2 --cache-dir", tmp_path / "cache")
    assert step("samples", run, *flags) == 0
    assert "pool/7.heic,not used" in (run / "samples/skipped.csv").read_text()
    assert list((tmp_path / "cache").glob("pool-8px-*"))
    pool.rename(moved)
    error = refused("student", run)
    assert str(pool) in error
    for path in moved.glob("*.bmp"):
        path.write_bytes(cv2.imencode(".bmp", picture(99))[1])
    error = refused("student", run, "--unlabeled", moved)
    assert "other pixels than those that step 2 scored" in error
    for number in range(6):
        write(moved / f"{number}.bmp", cv2.imencode(".bmp", picture(number))[1])
    short = "--unlabeled", moved, "--epochs 1 --passes 1 --batch-size 4 --input-size 16"
    assert step("student", run, *short) == 0


def test_decoded_images_are_kept_where_the_flags_say():
    settings = {"dataset": "folder", "data_dir": Path("mine"), "cache_dir": None}
    assert cache_of(settings) == Path("datasets/cache")
    assert cache_of(settings | {"dataset": "digits"}) == Path("mine/cache")
    assert cache_of(settings | {"cache_dir": "there"}) == Path("there")
    assert main.parse(["--cache-dir=~/x"]).cache_dir == Path.home() / "x"
