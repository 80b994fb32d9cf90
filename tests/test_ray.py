"""Step 2 over remote shards on Ray Data, scores as tables, and step 3 from such a selection."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ray")
moto = pytest.importorskip("moto.server")

SIZE = 8
FLAGS = "--k 40 --p 2 --batch-size 64"


def write_shards(folder, shards, each, seed=0, extra=()):
    """<folder>/000000.tar, ...: noise images as PNGs.  extra: contents of the last shard's end."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(shards):
        with tarfile.open(folder / f"{number:06}.tar", "w") as archive:
            pictures = [_png(random) for _ in range(each)]
            for i, content in enumerate([*pictures, *(extra if number == shards - 1 else ())]):
                member = tarfile.TarInfo(f"{number}-{i}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _png(random):
    pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, folder_data):
    """2,000 images in 8 shards; one is unreadable, one repeats a test image."""
    folder = tmp_path_factory.mktemp("pool") / "shards"
    leaked = (folder_data / "test" / "ant" / "0.png").read_bytes()
    write_shards(folder, 8, 250, extra=[b"no picture", leaked])
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, folder_run, shards):
    """Step 2 as ever."""
    run = tmp_path_factory.mktemp("plain")
    shutil.copytree(folder_run / "teacher", run / "teacher")
    assert step_2(run, shards / "*.tar") == 0
    return run


def step_2(run, spec, *flags):
    from conftest import run_step

    return run_step("samples", run, FLAGS, "--unlabeled", spec, *flags)


@pytest.fixture
def run(folder_run, tmp_path, quick):
    shutil.copytree(folder_run / "teacher", tmp_path / "run" / "teacher")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def ray(bucket):
    """One Ray for all tests: it takes long to start."""
    from stages.ray_engine import cluster

    with cluster() as ray:
        yield ray


@pytest.fixture(scope="module")
def bucket(shards):
    """The shards in an S3 on the loopback: s3://bucket/shards/*.tar"""
    import fsspec

    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("bucket")
        for path in sorted(shards.iterdir()):
            fs.put_file(str(path), f"bucket/shards/{path.name}")
        yield fs
    server.stop()


def selected(run):
    return (run / "samples" / "selection.csv").read_bytes()


def result(run):
    return json.loads((run / "samples" / "result.json").read_text())


@pytest.fixture(scope="module")
def remote(tmp_path_factory, folder_run, ray):
    """Step 2 on Ray from S3, all scores kept."""
    run = tmp_path_factory.mktemp("remote")
    shutil.copytree(folder_run / "teacher", run / "teacher")
    spec = "s3://bucket/shards/{000000..000007}.tar"
    assert step_2(run, spec, "--engine ray --save-scores") == 0
    return run


@pytest.mark.slow
def test_ray_selects_what_the_plain_walk_selects_byte_for_byte(plain, remote):
    for name in ("selection.csv", "skipped.csv"):
        assert (remote / "samples" / name).read_bytes() == (plain / "samples" / name).read_bytes()
    ours, theirs = result(remote), result(plain)
    same = ("pool_size", "scored", "skipped", "left_out", "selected", "unique_images")
    assert [ours[name] for name in same] == [theirs[name] for name in same]
    assert theirs["skipped"] == 2


@contextmanager
def killing(most):
    """Kill the first `most` actors that are at a shard; -> their numbers."""
    killed, over = [], threading.Event()

    def kill():
        while len(killed) < most and not over.wait(0.05):
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    title = (folder / "cmdline").read_bytes()
                    if title.startswith(b"ray::MapWorker(MapBatches(Scorer)).submit"):
                        os.kill(int(folder.name), signal.SIGKILL)
                        killed.append(folder.name)
                        break

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield killed
    over.set()
    thread.join()


@pytest.mark.slow
def test_a_killed_actor_costs_its_shards_not_the_run(run, ray, plain, shards):
    with killing(1) as killed:
        assert step_2(run, shards / "*.tar", "--engine ray") == 0
    assert killed
    assert selected(run) == selected(plain)


@pytest.mark.slow
def test_a_shard_that_kills_every_actor_ends_the_run(run, ray, shards, capsys):
    with killing(100):
        assert step_2(run, shards / "000000.tar", "--engine ray") == 1
    error = capsys.readouterr().err
    assert "go on with --resume" in error and "Traceback" not in error


@pytest.mark.slow
def test_a_stopped_job_goes_on_with_the_shards_that_are_left(run, ray, plain, shards, monkeypatch):
    from stages import ray_engine

    asked, todo, answers = iter([0, 0, signal.SIGTERM]), [], ray_engine.answers
    monkeypatch.setattr(ray_engine.program, "interruption", lambda: next(asked, 0))
    assert step_2(run, shards / "*.tar", "--engine ray") == 143

    def noted(job, numbers):
        todo.extend(numbers)
        return answers(job, numbers)

    monkeypatch.setattr(ray_engine, "answers", noted)
    assert step_2(run, shards / "*.tar", "--engine ray --resume") == 0
    assert len(todo) == 8 - 3
    assert selected(run) == selected(plain)
    assert not list((run / "samples").glob("resume*"))


@pytest.mark.slow
def test_step_3_fetches_the_selected_members_and_nothing_else(remote, tmp_path, monkeypatch):
    from s3fs import S3FileSystem

    run, fetched, cat = tmp_path / "run", [], S3FileSystem._cat_file
    shutil.copytree(remote, run)

    def noted(self, path, version_id=None, start=None, end=None):
        fetched.append((path, start, end))
        return cat(self, path, version_id, start, end)

    monkeypatch.setattr(S3FileSystem, "_cat_file", noted)
    assert student(run, tmp_path / "cache") == 0
    with open(run / "samples" / "members.csv") as file:
        members = list(csv.DictReader(file))
    assert len(fetched) == len(members) == result(run)["unique_images"]
    sizes = sorted(int(member["length"]) for member in members)
    assert sorted(last - first for _, first, last in fetched) == sizes
    assert sum(sizes) < 0.2 * 2000 * max(sizes)


@pytest.mark.slow
def test_a_shard_that_has_changed_is_noticed(remote, bucket, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(remote, run)
    with open(run / "samples" / "members.csv") as file:
        changed = next(csv.DictReader(file))
    content = bytearray(bucket.cat_file(changed["shard"]))
    other = bytearray(content)
    other[int(changed["offset"]) + int(changed["length"]) // 2] ^= 1
    try:
        bucket.pipe_file(changed["shard"], bytes(other))
        assert student(run, tmp_path / "cache") == 2
    finally:
        bucket.pipe_file(changed["shard"], bytes(content))
    name = changed["shard"].removeprefix("s3://")
    assert f"{name} has changed since step 2 scored it" in capsys.readouterr().err


def student(run, cache):
    from conftest import run_step

    flags = "--epochs 1 --passes 1 --batch-size 16 --overwrite --cache-dir"
    return run_step("student", run, flags, cache)


DUCKDB = """
with scores as (select image, label, score, filename, file_row_number
                from read_parquet('{}', filename=true, file_row_number=true)),
     candidates as (select image, unnest(label) as label, unnest(score) as score,
                           filename, file_row_number from scores),
     ranked as (select image, label, score, row_number() over
                (partition by label order by score desc, filename, file_row_number) as rank
                from candidates)
select image, label, score, rank from ranked where rank <= 40 order by label, rank
"""


@pytest.mark.slow
def test_duckdb_makes_the_selection_again_from_the_scores(remote):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(DUCKDB.format(remote / "samples" / "shards" / "*.parquet")).fetchall()
    with open(remote / "samples" / "selection.csv", newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)][1:]
    ours = [(image, label, str(np.float32(score)), rank) for image, label, score, rank in found]
    assert [tuple(map(str, row)) for row in ours] == rows


@pytest.mark.slow
def test_scores_made_elsewhere_give_the_same_selection(remote, run, bucket):
    scores = remote / "samples" / "shards" / "*.parquet"
    assert step_2(run, "s3://bucket/shards/*.tar", "--scores", scores) == 0
    assert selected(run) == selected(remote)
    theirs = (remote / "samples" / "members.csv").read_bytes()
    assert (run / "samples" / "members.csv").read_bytes() == theirs


@pytest.mark.slow
def test_scores_of_a_copy_of_a_labelled_image_are_refused(run, bucket, tmp_path, capsys):
    import pyarrow
    from pyarrow.parquet import write_table

    table = {"image": ["shards/000007.tar/7-251.png"], "label": [[0]], "score": [[1.0]]}
    write_table(pyarrow.table(table), tmp_path / "own.parquet")
    spec = "s3://bucket/shards/*.tar"
    assert step_2(run, spec, "--scores", tmp_path / "own.parquet") == 1
    assert "1 selected images repeat labelled ones" in capsys.readouterr().err
    assert "duplicate of a labelled image" in (run / "samples" / "skipped.csv").read_text()
    table["label"] = [[9]]
    write_table(pyarrow.table(table), tmp_path / "own.parquet")
    assert step_2(run, spec, "--overwrite --scores", tmp_path / "own.parquet") == 1
    assert "labels from 0 to 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--engine ray --unlabeled heldout", "reads uncompressed tar shards"),
        ("--engine ray --unlabeled nowhere/*.tar", "/nowhere/*.tar'; check the path"),
        ("--engine ray --unlabeled s.tar --strategy random", "choose --strategy ranked or"),
    ],
)
def test_what_ray_does_not_take_is_refused_before_it_starts(run, refused, flags, error):
    assert error in refused("samples", run, flags)


def test_positions_follow_the_order_of_shards_and_members():
    from stages.ray_engine import first_position

    for shards in (1, 2, 3, 1000, 100_000):
        firsts = [first_position(n, shards)[0] for n in (0, shards // 2, shards - 1)]
        last, room = first_position(shards - 1, shards)
        assert firsts == sorted(firsts) and last + room - 1 <= 2**32 - 1
        assert room >= 2**32 // (2 * shards) - 1


def test_the_plain_path_knows_neither_ray_nor_fsspec():
    code = (
        "import make_sample_data, student_train, sys; print({'ray', 'pyarrow'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
