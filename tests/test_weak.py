"""Step 1 on the folder names of a pool, and then on the labels; the last layer alone."""

import json
import tarfile

import cv2
import pytest
import torch
from conftest import CLASSES
from sklearn.datasets import load_digits

pytestmark = pytest.mark.usefixtures("quick")
STATISTICS = ("running_mean", "running_var")
TAGS = ["--preset demo --input-size 8 --epochs 2 --passes 1 --batch-size 4 --seed 1"]


def model_of(stage):
    return torch.load(stage / "model.pt", weights_only=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory, pictures):
    """A pool of 30 images in two folders, and one of copies of the preset's digits, which are
    labelled, for validation, for the test, or none of these: all but the last are left out.
    """
    root = tmp_path_factory.mktemp("crawl") / "crawl"
    for number, name in enumerate(("roof", "sea")):
        pictures(root / name, 15, seed=200 + number)
    (root / "copies").mkdir()
    for number, digit in enumerate(load_digits().images):
        assert cv2.imwrite(str(root / f"copies/{number}.png"), (digit * 255 / 16).round())
    return root


@pytest.fixture(scope="module")
def shards(crawl, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "crawl.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("roof", "sea"):
            tar.add(crawl / name, f"crawl/{name}")
    return path


def test_step_1_goes_on_with_what_the_folder_names_have_taught(
    shards, folder_flags, tmp_path, step
):
    tags = (*TAGS, "--dataset", f"tags:{shards}", "--data-dir", tmp_path / "data")
    assert step("teacher", tmp_path / "weak", *tags) == 0
    result, weak = read(tmp_path / "weak/teacher/result.json"), model_of(tmp_path / "weak/teacher")
    assert weak["classes"] == ["roof", "sea"]
    assert result["images_processed"] == 2 * 28  # of 30; one for validation, one for the test
    assert result["dataset"] == "tags of crawl"
    start = ("--weights", tmp_path / "weak/teacher", "--learning-rate 1e-30")
    assert step("teacher", tmp_path, *folder_flags, *start) == 0
    teacher = model_of(tmp_path / "teacher")
    assert tuple(teacher["classes"]) == CLASSES
    assert teacher["normalisation"] == weak["normalisation"]
    layers = [name for name, x in weak["state_dict"].items() if x.ndim == 4]
    assert all(torch.equal(weak["state_dict"][n], teacher["state_dict"][n]) for n in layers)


def test_tags_are_learnt_with_the_presets_recipe_of_step_3(shards, tmp_path, step):
    flags = ["--preset demo --input-size 8 --epochs 1 --data-dir"]
    flags += [tmp_path / "data", "--dataset", f"tags:{shards}"]
    assert step("teacher", tmp_path, *flags) == 0
    assert read(tmp_path / "teacher/config.json")["training"]["passes"] == 3


def test_images_that_repeat_the_presets_labelled_set_are_left_out(crawl, tmp_path, step):
    tags = (*TAGS, "--dataset", f"tags:{crawl}", "--data-dir", tmp_path / "data", "--epochs 1")
    assert step("teacher", tmp_path, *tags) == 0
    kept = read(tmp_path / "teacher/result.json")["images_processed"]
    assert kept < 0.9 * (30 + 1797 - 599 - 150)  # a third is the test; 15 labels of each class


@pytest.mark.parametrize("pool", ["heldout", "patches"])
def test_a_pool_without_folder_names_is_named(pool, tmp_path, refused):
    error = refused("teacher", tmp_path / "run", *TAGS, "--dataset", f"tags:{pool}")
    assert f"{pool} has no folder names" in error


def test_a_folder_without_folders_is_named(crawl, tmp_path, refused):
    error = refused("teacher", tmp_path / "run", *TAGS, "--dataset", f"tags:{crawl / 'sea'}")
    assert "the pool sea has 0 images in 0 folders" in error


def test_the_last_layer_alone_needs_a_network_to_start_from(folder_flags, tmp_path, refused):
    says = "--linear: needs a network to start from"
    assert says in refused("teacher", tmp_path / "run", *folder_flags, "--linear")


def test_linear_trains_the_last_layer_alone(folder_run, folder_flags, tmp_path, step):
    given = model_of(folder_run / "student")["state_dict"]
    flags = (*folder_flags, "--weights", folder_run / "student", "--linear True")
    assert step("teacher", tmp_path, *flags) == 0
    mine = model_of(tmp_path / "teacher")["state_dict"]
    changed = {name for name, x in given.items() if not torch.equal(x, mine[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert any(name.endswith(STATISTICS) for name in given)
    assert read(tmp_path / "teacher/config.json")["linear"] is True
