"""Step 1 after a training on the folder names of a pool; the last layer alone."""

import json
import shutil
import tarfile
from itertools import count

import pytest
import torch
from conftest import CLASSES, assert_same_training

from stages import signals, training

pytestmark = pytest.mark.usefixtures("quick")
STATISTICS = ("running_mean", "running_var")


def model_of(stage):
    return torch.load(stage / "model.pt", weights_only=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory, pictures, folder_data):
    """A pool of 30 images in two folders, and one of copies of labelled images."""
    root = tmp_path_factory.mktemp("crawl") / "crawl"
    for number, name in enumerate(("roof", "sea")):
        pictures(root / name, 15, seed=200 + number)
    shutil.copytree(folder_data / "test" / "ant", root / "copies")
    return root


@pytest.fixture(scope="module")
def shards(crawl, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "crawl.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(crawl, "crawl")
    return path


@pytest.fixture
def weak_flags(folder_flags, crawl):
    return (*folder_flags, "--weak-epochs 2", "--weak-pretrain", crawl)


def test_step_1_goes_on_with_what_the_folder_names_have_taught(weak_flags, tmp_path, step):
    assert step("teacher", tmp_path, *weak_flags, "--learning-rate 1e-30") == 0
    weak, teacher = model_of(tmp_path / "weak/teacher"), model_of(tmp_path / "teacher")
    assert weak["classes"] == ["roof", "sea"]  # copies of test images have been left out
    assert tuple(teacher["classes"]) == CLASSES
    assert teacher["normalisation"] == weak["normalisation"]
    layers = [name for name, x in weak["state_dict"].items() if x.ndim == 4]
    assert all(torch.equal(weak["state_dict"][n], teacher["state_dict"][n]) for n in layers)
    first, then = (read(tmp_path / f / "result.json") for f in ("weak/teacher", "teacher"))
    assert first["images_processed"] == 2 * 28  # of 30; one for validation, one for the test
    assert then["weak_pretrain"]["images_processed"] == first["images_processed"]
    assert then["weak_pretrain"]["dataset"] == first["dataset"] == "tags of crawl"
    boards = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert boards == {tmp_path / "teacher", tmp_path / "weak/teacher"}


def test_tar_shards_have_the_same_tags(folder_flags, shards, tmp_path, step):
    flags = (*folder_flags, "--weak-epochs 1", "--weak-pretrain", shards)
    assert step("teacher", tmp_path, *flags) == 0
    assert model_of(tmp_path / "weak/teacher")["classes"] == ["roof", "sea"]


def test_both_trainings_in_pieces_end_with_the_same_bits(weak_flags, tmp_path, step, monkeypatch):
    assert step("teacher", tmp_path / "whole", *weak_flags) == 0
    monkeypatch.setattr(training, "LOOK_SECONDS", -1)
    stopped_in = set()
    for attempt in range(20):
        asked = count()
        monkeypatch.setattr(signals, "interruption", lambda: 15 if next(asked) >= 2 else None)  # noqa: B023
        code = step("teacher", tmp_path / "run", *weak_flags, *["--resume"][:attempt])
        if code == 0:
            break
        assert code == 143
        stopped_in |= {path.parent.parent.name for path in tmp_path.glob("run/**/resume.pt")}
    assert stopped_in == {"weak", "run"}
    for stage in ("weak/teacher", "teacher"):
        assert_same_training(tmp_path / "run" / stage, tmp_path / "whole" / stage)


@pytest.mark.parametrize(
    "pool, says",
    [("heldout", "heldout has no folder names"), ("patches", "patches has no folder names")],
)
def test_a_pool_without_folder_names_is_named(pool, says, folder_flags, tmp_path, refused):
    assert says in refused("teacher", tmp_path / "run", *folder_flags, "--weak-pretrain", pool)


def test_a_folder_without_folders_is_named(crawl, folder_flags, tmp_path, refused):
    flags = (*folder_flags, "--weak-pretrain", crawl / "sea")
    assert "the pool sea has 0 images in 0 folders" in refused("teacher", tmp_path / "run", *flags)


@pytest.mark.parametrize(
    "words, says",
    [
        ("--weak-pretrain crawl --weights resnet18_ssl", "--weak-pretrain: belongs to step 1"),
        ("--weak-epochs 3", "--weak-epochs: add --weak-pretrain"),
        ("--linear", "--linear: needs a network to start from"),
    ],
)
def test_flags_that_do_not_fit_are_named(words, says, folder_flags, tmp_path, refused):
    assert says in refused("teacher", tmp_path / "run", *folder_flags, words)


def test_a_finished_training_on_other_tags_is_not_taken(weak_flags, tmp_path, step, refused):
    assert step("teacher", tmp_path, *weak_flags) == 0
    shutil.rmtree(tmp_path / "teacher")
    error = refused("teacher", tmp_path, *weak_flags, "--weak-epochs 3 --resume")
    assert "was trained on" in error and "for 2 epochs" in error and "--overwrite" in error


def test_linear_trains_the_last_layer_alone(folder_run, folder_flags, tmp_path, step):
    given = model_of(folder_run / "student")["state_dict"]
    flags = (*folder_flags, "--weights", folder_run / "student", "--linear True")
    assert step("teacher", tmp_path, *flags) == 0
    mine = model_of(tmp_path / "teacher")["state_dict"]
    changed = {name for name, x in given.items() if not torch.equal(x, mine[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert any(name.endswith(STATISTICS) for name in given)
    assert read(tmp_path / "teacher/config.json")["linear"] is True
