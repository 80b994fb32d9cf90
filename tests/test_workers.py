"""Decoding processes: a crash costs one file, nobody is left behind; the blocks of a cache.

pytest tests/test_workers.py
"""

import contextlib
import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import distributed
import files
from data import listing as listing_module
from data import workers as workers_module
from data.decode import (
    Unreadable,
    checksums,
    decode,
    fit_square,
)
from data.sources import open_sources
from data.workers import CRASHES, Died, Worker

CRASHING, KILLED_ONCE = b"crash-the-decoder", b"kill-it-once"
# Runs first in every worker: there is no image at hand that crashes the OpenCV of today.
SITECUSTOMIZE = f"""
import os, signal, cv2
real = cv2.imdecode
def imdecode(content, flags):
    content = content.tobytes()
    if {CRASHING!r} in content:
        os.abort()
    if {KILLED_ONCE!r} in content and not os.path.exists(os.environ["KILLED"]):
        open(os.environ["KILLED"], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(__import__("numpy").frombuffer(content, "uint8"), flags)
cv2.imdecode = imdecode
"""


def picture(seed, side=24):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def fill(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed:04d}.png").write_bytes(png(picture(seed)))


def pixels(source):
    return source.images[slice(None)].numpy()


def expected(count, size=16):
    return np.stack([fit_square(picture(seed), size) for seed in range(count)])


@pytest.fixture
def fresh_workers(tmp_path, monkeypatch):
    """Workers that SITECUSTOMIZE runs in."""
    if os.name == "nt":
        pytest.skip("needs POSIX signals")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("KILLED", str(tmp_path / "killed"))


def test_a_file_that_crashes_the_decoder_is_listed_alone(tmp_path, fresh_workers):
    fill(tmp_path / "pool", 40)
    for number in (7, 30):
        path = tmp_path / "pool" / f"{number:04d}.png"
        path.write_bytes(path.read_bytes() + CRASHING)
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert source.unreadable == {7: CRASHES, 30: CRASHES}
    wanted = expected(40)
    wanted[[7, 30]] = 0
    assert (pixels(source) == wanted).all()
    good = np.setdiff1d(np.arange(40), [7, 30])
    assert (np.concatenate(source.checksums)[good] == checksums(wanted)[good]).all()


def test_a_worker_killed_once_loses_no_file(tmp_path, fresh_workers):
    fill(tmp_path / "pool", 40)
    path = tmp_path / "pool" / "0020.png"
    path.write_bytes(path.read_bytes() + KILLED_ONCE)
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert (tmp_path / "killed").exists()
    assert not source.unreadable and (pixels(source) == expected(40)).all()


def test_a_worker_that_cannot_start_is_an_error_and_blames_no_file(tmp_path, monkeypatch, capfd):
    (tmp_path / "cv2.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fill(tmp_path / "pool", 3)
    with pytest.raises(OSError, match="does not start"):
        open_sources([tmp_path / "pool"], tmp_path, 16)
    assert list((tmp_path / "cache").iterdir()) == []
    assert "no such library" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_worker_reports_a_full_disk_and_goes_on(tmp_path):
    fill(tmp_path / "pool", 1)
    (tmp_path / "rows").write_bytes(b"")
    sources = [(os.fsencode(tmp_path / "pool" / "0000.png"), None, None)]
    task = {"offset": 0, "size": 16, "sources": sources, "hashes": False}
    worker = Worker()
    with pytest.raises(OSError) as caught:
        worker.ask({**task, "file": "/dev/full"})
    assert caught.value.errno == errno.ENOSPC
    prints, hashes, reasons = worker.ask({**task, "file": str(tmp_path / "rows")})
    assert (prints == checksums(expected(1))).all() and hashes is None and reasons == {}
    assert (tmp_path / "rows").read_bytes() == expected(1).tobytes()
    worker.process.kill()
    with pytest.raises(Died):
        worker.ask(task)


PARENT = """
import sys, time
from data.workers import Worker
print(Worker().process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(number):
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = Path("/proc", parent.stdout.readline().strip(), "stat")
        assert worker.exists()
        parent.send_signal(number)
        deadline = time.monotonic() + 10
        # A zombie ("Z") has ended; who collects it depends on the system.
        while worker.exists() and worker.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    "task", [b"", pickle.dumps({"sources": []})[:-1]], ids=["it starts", "a task is cut off"]
)
def test_a_worker_whose_parent_is_gone_ends_without_a_word(task):
    root, me = str(Path(workers_module.__file__).parents[1]), str(os.getpid())
    command = [sys.executable, "-P", "-c", workers_module.PROGRAM, root, me]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as worker:
        if not task:
            worker.stdout.close()  # it cannot say that it is ready
        worker.stdin.write(task)
        worker.stdin.close()
        assert worker.stderr.read() == b""
    assert worker.returncode == 0


def test_any_number_of_workers_gives_the_same_cache(tmp_path, monkeypatch):
    fill(tmp_path / "pool", 150)
    (tmp_path / "pool" / "0070.png").write_bytes(b"broken")
    found = []
    for count in (1, 3):
        monkeypatch.setattr(workers_module, "cores", lambda count=count: count)
        [source] = open_sources([tmp_path / "pool"], tmp_path / str(count), 16)
        found.append((pixels(source), np.concatenate(source.checksums), source.unreadable))
    assert (found[0][0] == found[1][0]).all() and (found[0][1] == found[1][1]).all()
    assert found[0][2] == found[1][2] == {70: "not an image"}


# ---- the blocks of a cache ----


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(listing_module, "BLOCK", 8)


@pytest.fixture
def asked(monkeypatch):
    """Names of the files given to a worker so far."""
    seen, ask = [], Worker.ask

    def spy(worker, task):
        seen.extend(os.path.basename(os.fsdecode(source[0])) for source in task["sources"])
        return ask(worker, task)

    monkeypatch.setattr(Worker, "ask", spy)
    return seen


def test_blocks_together_are_the_pool(tmp_path, small_blocks):
    fill(tmp_path / "pool", 50)
    (tmp_path / "pool" / "0033.png").write_bytes(b"broken")
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert list(map(len, source.checksums)) == [8] * 6 + [2]
    wanted = expected(50)
    wanted[33] = 0
    assert (pixels(source) == wanted).all() and source.unreadable == {33: "not an image"}
    assert (np.concatenate(source.checksums) == checksums(wanted)).all()
    for block in source.cache.open()[0]:
        assert isinstance(block.images, np.memmap) and isinstance(block.checksums, np.memmap)


@pytest.mark.parametrize("change, again", [("edit", 8), ("add", 37), ("remove", 35)])
def test_a_changed_file_rebuilds_its_block_and_those_that_move(
    tmp_path, small_blocks, asked, change, again
):
    fill(tmp_path / "pool", 60)
    open_sources([tmp_path / "pool"], tmp_path, 16)
    assert len(asked) == 60
    asked.clear()
    if change == "edit":
        (tmp_path / "pool" / "0030.png").write_bytes(png(picture(99)))
    elif change == "add":
        (tmp_path / "pool" / "0030-new.png").write_bytes(png(picture(99)))
    else:
        (tmp_path / "pool" / "0030.png").unlink()
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert len(asked) == again  # 0024.png begins a block
    files = sorted((tmp_path / "pool").iterdir())
    wanted = [fit_square(decode(path.read_bytes()), 16) for path in files]
    assert (pixels(source) == np.stack(wanted)).all()
    asked.clear()
    open_sources([tmp_path / "pool"], tmp_path, 16)
    assert not asked


def test_an_interrupted_build_goes_on_with_the_blocks_it_has(tmp_path, small_blocks, monkeypatch):
    fill(tmp_path / "pool", 60)
    taken, ask = [], Worker.ask

    def interrupted(worker, task):
        taken.extend(task["sources"])
        if len(taken) > 30:
            raise OSError(errno.ENOSPC, "disk full")
        return ask(worker, task)

    with monkeypatch.context() as once:
        once.setattr(workers_module, "cores", lambda: 1)
        once.setattr(Worker, "ask", interrupted)
        with pytest.raises(OSError, match="disk full"):
            open_sources([tmp_path / "pool"], tmp_path, 16)
    left = list((tmp_path / "cache").iterdir())
    assert left and all((folder / "meta.json").exists() for folder in left)
    taken.clear()
    kept = sum(len(np.load(folder / "images.npy")) for folder in left)
    monkeypatch.setattr(
        Worker, "ask", lambda worker, task: (taken.extend(task["sources"]), ask(worker, task))[1]
    )
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert len(taken) == 60 - kept and (pixels(source) == expected(60)).all()


def test_what_a_killed_build_left_is_cleared_by_the_next_one(tmp_path):
    fill(tmp_path / "pool", 3)
    cache, names = tmp_path / "cache", []
    mine = files.unfinished("pool-16px-0123").name
    sleepers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) for _ in "ab"]
    try:
        for process in sleepers:
            own = mine.replace(str(os.getpid()), str(process.pid))
            names.append(own)
            (cache / names[-1]).mkdir(parents=True)
            (cache / names[-1] / "images.npy").write_bytes(b"rows")
        sleepers[0].kill()
        sleepers[0].wait()
        [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    finally:
        for process in sleepers:
            process.kill()
            process.communicate()
    [(*_, folder)] = source.cache.blocks
    dead = {names[0]} if os.name == "nt" else set()  # where nobody tells whether a process lives
    assert {path.name for path in cache.iterdir()} == {folder.name, names[1]} | dead


def test_what_another_machine_left_is_cleared_in_time(tmp_path):
    fill(tmp_path / "pool", 3)
    for name, age in (("old-1-a", 7200), ("young-1-a", 60)):
        images = tmp_path / "cache" / f"pool-16px-0123.partial-{name}" / "images.npy"
        images.parent.mkdir(parents=True)
        images.write_bytes(b"rows")
        for path in (images, images.parent):
            os.utime(path, (time.time() - age,) * 2)
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    left = {folder.name for folder in (tmp_path / "cache").iterdir()}
    [(*_, folder)] = source.cache.blocks
    assert left == {folder.name, "pool-16px-0123.partial-young-1-a"}


@pytest.fixture
def processes(monkeypatch):
    """processes(rank, size, wait): what distributed says from then on."""
    monkeypatch.setattr(distributed, "in_turns", contextlib.nullcontext)

    def pretend(rank, size, wait):
        for name, value in (("rank", lambda: rank), ("size", lambda: size), ("wait", wait)):
            monkeypatch.setattr(distributed, name, value)

    return pretend


def test_several_processes_share_the_work(tmp_path, small_blocks, asked, processes):
    fill(tmp_path / "pool", 60)
    by_rank = {}

    def other_rank():
        by_rank[0] = list(asked)
        asked.clear()
        processes(1, 2, its_wait)
        [theirs] = open_sources([tmp_path / "pool"], tmp_path, 16)
        by_rank["theirs"] = pixels(theirs)

    def its_wait():
        by_rank[1] = list(asked)
        asked.clear()

    processes(0, 2, other_rank)
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert not asked  # after waiting, all that is needed is there
    assert sorted(by_rank[0] + by_rank[1]) == sorted(os.listdir(tmp_path / "pool"))
    assert by_rank[0] and by_rank[1]
    assert (pixels(source) == expected(60)).all() and (by_rank["theirs"] == expected(60)).all()


def test_a_share_that_never_came_is_built_after_waiting(tmp_path, small_blocks, processes):
    fill(tmp_path / "pool", 30)
    processes(1, 3, lambda: None)
    [source] = open_sources([tmp_path / "pool"], tmp_path, 16)
    assert (pixels(source) == expected(30)).all()


# ---- pixels ----


def test_checksums_tell_images_apart():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 9, 9, 3), np.uint8)  # 243 bytes, not a multiple of 8
    images[20:] = images[0]
    for row, position in enumerate(random.choice(243, 20, replace=False), 20):
        images[row].flat[position] ^= 0x80  # a single bit, the least that can differ
    found = {row.tobytes() for row in checksums(images)}
    assert len(found) == 40
    assert (checksums(images[7:9]) == checksums(images)[7:9]).all()
    assert checksums(images[:0]).shape == (0, 16)


@pytest.mark.parametrize("byte", [0, 7])
def test_checksums_see_every_byte_of_a_word(byte):
    # Bit 7 of byte 7 survives a multiplication modulo 2**64 in one bit only.
    images = np.zeros((300, 8, 8, 3), np.uint8)
    random = np.random.default_rng(1)
    for image in images:
        image.reshape(-1, 8)[random.permutation(24)[:12], byte] = 0x80
    same = {image.tobytes() for image in images}
    assert len({row.tobytes() for row in checksums(images)}) == len(same)


def photograph(height, width):
    """A sharp edge over a smooth ramp."""
    across = np.linspace(0, 255, width, dtype=np.float32)[None, :, None]
    image = np.broadcast_to(across, (height, width, 3)).copy()
    image[: height // 2, :, 1] = 255 - image[: height // 2, :, 1]
    return image.astype(np.uint8)


def jpeg(image):
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.mark.parametrize(
    "height, width, size, side",
    [(300, 400, 32, 75), (800, 900, 20, 100), (400, 100, 32, 50), (90, 120, 32, 90)],
)
def test_large_jpegs_are_reduced_while_they_are_decoded(height, width, size, side):
    content = jpeg(photograph(height, width)) + bytes(size * size)  # long enough to be looked into
    picture = decode(content, size)
    assert min(picture.shape[:2]) == side
    apart = fit_square(picture, size).astype(float) - fit_square(decode(content), size)
    assert np.abs(apart).mean() < 3


def test_reduced_jpegs_are_checked_all_the_same():
    content = jpeg(photograph(300, 400))
    for cut in (len(content) // 2, -2):
        with pytest.raises(Unreadable, match="damaged or truncated"):
            decode(content[:cut], 16)
    frame = content.index(b"\xff\xc0")
    huge = content[: frame + 5] + b"\xf0\x00\xf0\x00" + content[frame + 9 :]
    with pytest.raises(Unreadable, match="more than"):
        decode(huge, 16)


@pytest.mark.parametrize("side", [32, 33, 47, 63, 64, 65, 100, 129])
def test_fitting_keeps_the_picture_in_its_place(side):
    image = photograph(side, side + 10)
    fitted = fit_square(image, 32).astype(float)
    wanted = cv2.resize(image[:, 5:-5], (32, 32), interpolation=cv2.INTER_AREA)
    inside = np.abs(fitted - wanted)[:, 1:-1]
    assert np.abs(inside[:14]).max() <= 8 and np.abs(inside[18:]).max() <= 8  # but for the edge
