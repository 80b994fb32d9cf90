"""The four steps on tiny data: what each leaves on the disk, and what its flags promise."""

import csv
import hashlib
import json
import shutil
import socket
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import student_train
from data import selection
from data.images import Images
from presets import PRESETS

TRAINED = ("teacher", "student", "finetuned")
STAGES = ("teacher", "samples", "student", "finetuned")
PRODUCT = {"teacher": "model.pt", "samples": "selection.csv", "student": "model.pt"}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def model_of(stage):
    return torch.load(stage / "model.pt", weights_only=True)


def selection_of(samples):
    """-> images (list), label, score, rank (arrays)."""
    with open(samples / "selection.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label", "score", "rank"]
    images = [row[0] for row in rows]
    label, rank = (np.array([int(row[i]) for row in rows], int) for i in (1, 3))
    return images, label, np.array([row[2] for row in rows], np.float32), rank


def skipped_of(samples):
    with open(samples / "skipped.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "reason"]
    return dict(rows)


def scores_of(samples):
    with np.load(samples / "scores.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def same_tensors(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# --- artefacts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_config_holds_every_setting_the_versions_and_the_inputs(digits_run, stage):
    config = read(digits_run / stage / "config.json")
    shared = {"preset": "demo", "dataset": "digits", "seed": 0, "input_size": 8}
    shared |= {"labels_per_class": 3, "val_per_class": 2, "stage": stage, "device": "cpu"}
    assert config | shared == config
    assert {"project", "torch", "torchvision", "opencv-python"} <= config["versions"].keys()
    assert config["versions"]["torch"] == torch.__version__
    assert config["inputs"]["labelled"]["digest"]
    if stage == "samples":
        assert (config["p"], config["k"], config["strategy"]) == (2, 5, "ranked")
        assert list(config["pools"]) == ["heldout", "patches"]
        assert all(pool["path"] and pool["digest"] for pool in config["pools"].values())
    else:
        assert config["training"]["epochs"] == 1 and config["training"]["model"] == "resnet8"


@pytest.mark.parametrize(
    "flags, batch, rate",
    [
        ("--batch-size 64", 64, 0.1),  # the preset's 0.05 goes with 32
        ("--batch-size 64 --learning-rate 0.02", 64, 0.02),
        ("--batch-size 4096", 100, 0.05 * 100 / 32),  # 50 images in two passes
        ("--batch-size 4096 --learning-rate 0.02", 100, 0.02),
        ("--labels-per-class 1 --passes 2", 20, 0.05 * 20 / 32),  # fewer than the preset's batch
        ("", 32, 0.05),
    ],
)
def test_the_learning_rate_follows_the_batch_that_there_is(
    tmp_path, step, quick, digits_run, flags, batch, rate
):
    data = read(digits_run / "teacher/config.json")["data_dir"]
    short = ("--preset demo --input-size 8 --epochs 1 --passes 2 --data-dir", data)
    assert step("teacher", tmp_path, *short, flags) == 0
    recipe = read(tmp_path / "teacher/config.json")["training"]
    assert (recipe["batch_size"], recipe["learning_rate"]) == (batch, rate)


@pytest.mark.parametrize("stage", ["student", "finetuned"])
def test_the_learning_rate_follows_few_rows_and_few_labels_too(run_before, step, quick, stage):
    """Also where --resume names the batch that was asked for once more."""
    run, flags = run_before(stage), ("--epochs 1 --passes 1", "--batch-size 1000")
    preset = PRESETS["demo"]
    usual = preset.student if stage == "student" else preset.finetune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.program.interruption", lambda: 15)
        assert step(stage, run, *flags) == 143
    assert step(stage, run, *flags, "--resume") == 0
    rows = read(run / "samples/result.json")["selected"] if stage == "student" else 12
    recipe = read(run / stage / "config.json")["training"]
    assert recipe["batch_size"] == rows
    assert recipe["learning_rate"] == usual.learning_rate * rows / usual.batch_size


@pytest.mark.parametrize("child", STAGES[1:])
def test_every_stage_records_the_fingerprint_of_what_it_was_made_from(digits_run, child):
    parent = STAGES[STAGES.index(child) - 1]
    content = (digits_run / parent / PRODUCT[parent]).read_bytes()
    expected = {"stage": parent, "sha256": hashlib.sha256(content).hexdigest()}
    entry = read(digits_run / child / "config.json")["parent"]
    assert entry | expected == entry
    if child != "samples":
        assert model_of(digits_run / child)["parent"] == expected


@pytest.mark.parametrize("stage", TRAINED)
def test_metrics_have_one_line_an_epoch(folder_run, stage):
    lines = (folder_run / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    names = ["epoch", "lr", "train_loss", "train_top1", "val_top1", "val_top5"]
    names += ["seconds", "images_per_second"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert all(sorted(epoch) == sorted(names) for epoch in epochs)
    assert all(np.isfinite(list(epoch.values())).all() for epoch in epochs)
    assert all(0 <= epoch["val_top1"] <= epoch["val_top5"] <= 100 for epoch in epochs)


@pytest.mark.parametrize("stage", TRAINED)
def test_a_model_file_loads_as_plain_data_and_says_how_to_use_it(digits_run, stage):
    model = model_of(digits_run / stage)
    names = ["format", "arch", "classes", "normalisation", "input_size", "state_dict"]
    assert sorted(model) == sorted([*names, "library", "metrics", "parent"])
    assert model["classes"] == [str(digit) for digit in range(10)]
    assert model["input_size"] == 8
    assert model["arch"] == {"name": "resnet8", "num_classes": 10}
    assert all(len(model["normalisation"][name]) == 3 for name in ("mean", "std"))
    result = read(digits_run / stage / "result.json")
    assert model["metrics"] and all(result[name] == x for name, x in model["metrics"].items())
    assert not {"seconds", "images_per_second"} & model["metrics"].keys()


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_stage_has_its_result_and_nothing_half_done(digits_run, stage):
    names = {path.name for path in (digits_run / stage).iterdir()}
    assert "result.json" in names and "resume.pt" not in names
    assert not [name for name in names if "partial" in name]
    own = {"selection.csv", "scores.npz", "skipped.csv"} if stage == "samples" else {"model.pt"}
    assert own | {"config.json"} <= names


@pytest.mark.parametrize("stage", TRAINED)
def test_the_result_of_a_training_has_its_numbers(digits_run, stage):
    result = read(digits_run / stage / "result.json")
    expected = {"stage": stage, "dataset": "digits", "model": "resnet8", "seed": 0}
    assert result | expected == result
    weights = model_of(digits_run / stage)["state_dict"]
    trained = (x for name, x in weights.items() if not name.endswith(("mean", "var", "tracked")))
    assert result["num_parameters"] == sum(x.numel() for x in trained)
    assert result["seconds"] > 0 and result["images_per_second"] > 0
    assert 0 <= result["test_top1"] <= result["test_top5"] <= 100
    last = (digits_run / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert result["val_top1"] == pytest.approx(json.loads(last)["val_top1"], abs=1e-3)


def test_the_result_of_the_selection_agrees_with_its_files(digits_run):
    samples = digits_run / "samples"
    result = read(samples / "result.json")
    images, label, _, _ = selection_of(samples)
    pools = read(samples / "config.json")["pools"]
    assert result["stage"] == "samples" and result["dataset"] == "digits"
    assert (result["p"], result["k"]) == (2, 5)
    assert result["pool_size"] == sum(pool["entries"] for pool in pools.values())
    assert result["scored"] == len(scores_of(samples)["image"])
    assert result["skipped"] == len(skipped_of(samples))
    assert result["scored"] + result["skipped"] == result["pool_size"]
    assert result["selected"] == len(images)
    assert result["unique_images"] == len(set(images))
    assert result["per_class_counts"] == np.bincount(label, minlength=10).tolist()
    assert result["seconds"] > 0 and result["images_per_second"] > 0


def test_pseudo_label_accuracy_is_the_share_of_right_rows(folder_run):
    samples = folder_run / "samples"
    images, label, _, _ = selection_of(samples)
    classes = model_of(folder_run / "teacher")["classes"]
    right = [name.split("/")[1] == classes[c] for name, c in zip(images, label, strict=True)]
    found = read(samples / "result.json")["pseudo_label_accuracy"]
    assert found == pytest.approx(100 * np.mean(right), abs=1e-3)


def test_scores_are_plain_arrays_over_what_was_scored(digits_run):
    scores = scores_of(digits_run / "samples")
    count = len(scores["image"])
    assert sorted(scores) == ["image", "label", "score"]
    assert scores["image"].dtype.kind == "U"
    assert scores["score"].dtype == np.float32 and scores["label"].dtype == np.int32
    assert scores["score"].shape == scores["label"].shape == (count, 2)
    assert (np.diff(scores["score"], axis=1) <= 0).all()
    assert len(set(scores["image"])) == count
    assert not set(scores["image"]) & skipped_of(digits_run / "samples").keys()


def test_the_selection_is_the_k_best_of_every_class_by_the_scores(digits_run):
    """The whole rule again, in a few lines of NumPy: the P best classes, then the K best images."""
    scores = scores_of(digits_run / "samples")
    expected = []
    for label in range(10):
        position, column = np.nonzero(scores["label"] == label)
        score = scores["score"][position, column]
        best = np.lexsort((position, -score))[:5]
        expected += [
            (scores["image"][position[i]], label, score[i], rank) for rank, i in enumerate(best, 1)
        ]
    images, label, score, rank = selection_of(digits_run / "samples")
    assert list(zip(images, label, score, rank, strict=True)) == expected


def test_tensorboard_shows_curves_pictures_and_settings_of_every_training(digits_run):
    for stage in TRAINED:
        events = EventAccumulator(str(digits_run / stage), size_guidance={"images": 0}).Reload()
        scalars = events.Tags()["scalars"]
        assert {"2 loss/training", "3 learning rate/learning rate"} <= set(scalars)
        line = read(digits_run / stage / "metrics.jsonl")
        shown = events.Scalars("1 accuracy/validation top-1")
        images = read(digits_run / stage / "result.json")["images_processed"]
        assert [(e.step, e.value) for e in shown] == [(images, pytest.approx(line["val_top1"]))]
        assert {"training/augmented inputs", "test/1 confusion matrix"} <= set(
            events.Tags()["images"]
        )
        assert "hparams" in events.summary_metadata["_hparams_/experiment"].plugin_data.plugin_name
        assert any(name.startswith("test precision-recall/") for name in events.Tags()["tensors"])


def test_tensorboard_shows_the_selection(digits_run):
    events = EventAccumulator(str(digits_run / "samples"), size_guidance={"images": 0}).Reload()
    assert len(events.Images("selection/best images of each class")) >= 1
    assert "_hparams_/experiment" in events.summary_metadata


# --- the chain ----------------------------------------------------------------------------------


def test_step_4_changes_no_other_stage_and_repeats_with_the_same_seed(
    digits_run, tmp_path, step, snapshot, quick
):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    shutil.rmtree(run / "finetuned")
    before = snapshot(run)
    assert step("finetuned", run, "--epochs 1 --passes 1 --learning-rate 0.005") == 0
    after = snapshot(run)
    assert {name: after[name] for name in before} == before
    again, first = model_of(run / "finetuned"), model_of(digits_run / "finetuned")
    assert same_tensors(again["state_dict"], first["state_dict"])
    assert again["metrics"] == first["metrics"]


def test_the_same_seed_gives_the_same_network_and_selection(
    folder_run, stage_flags, tmp_path, step, quick
):
    for stage in ("teacher", "samples"):
        assert step(stage, tmp_path, *stage_flags[stage]) == 0
    once, again = model_of(folder_run / "teacher"), model_of(tmp_path / "teacher")
    assert same_tensors(once["state_dict"], again["state_dict"])
    first, second = (x / "samples" / "selection.csv" for x in (folder_run, tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_gives_another_split_and_network(
    folder_run, stage_flags, tmp_path, step, quick
):
    for stage in ("teacher", "samples"):
        seed = ["--seed 1"] if stage == "teacher" else []
        assert step(stage, tmp_path, *stage_flags[stage], *seed) == 0
    once, other = model_of(folder_run / "teacher"), model_of(tmp_path / "teacher")
    assert not same_tensors(once["state_dict"], other["state_dict"])
    pools = [set(scores_of(run / "samples")["image"]) for run in (folder_run, tmp_path)]
    assert pools[0] != pools[1]
    assert read(tmp_path / "samples" / "config.json")["seed"] == 1


def test_step_3_starts_from_random_weights_and_step_4_from_the_student(run_before, step, quick):
    run = run_before("finetuned")
    shutil.rmtree(run / "student")
    still = ("--learning-rate 1e-30 --epochs 1 --passes 1",)
    for stage in ("student", "finetuned"):
        assert step(stage, run, *still) == 0
    teacher, student, tuned = (model_of(run / stage)["state_dict"] for stage in TRAINED)
    layers = [name for name, x in student.items() if x.ndim > 1]  # biases leave zero at any rate
    assert all(torch.equal(tuned[name], student[name]) for name in layers)
    assert layers and not any(torch.equal(teacher[name], student[name]) for name in layers)


def test_step_1_starts_from_given_weights_and_replaces_a_head_of_other_classes(
    digits_run, stage_flags, tmp_path, step, quick
):
    source = digits_run / "teacher" / "model.pt"
    flags = (*stage_flags["teacher"], "--weights", source, "--learning-rate 1e-30")
    assert step("teacher", tmp_path, *flags) == 0
    given, mine = model_of(digits_run / "teacher"), model_of(tmp_path / "teacher")
    layers = [name for name, x in given["state_dict"].items() if x.ndim == 4]
    assert all(torch.equal(given["state_dict"][n], mine["state_dict"][n]) for n in layers)
    assert given["state_dict"]["fc.weight"].shape[0] == 10
    assert mine["state_dict"]["fc.weight"].shape[0] == len(mine["classes"]) == 4
    assert mine["normalisation"] == given["normalisation"]


def test_class_folders_of_pictures_go_through_all_four_steps(folder_run, folder_data):
    for stage in STAGES:
        result = read(folder_run / stage / "result.json")
        assert (result["stage"], result["dataset"]) == (stage, folder_data.name)
    assert model_of(folder_run / "finetuned")["classes"] == ["ant", "bee", "crab", "dove"]
    names = scores_of(folder_run / "samples")["image"]
    assert len(names) + len(skipped_of(folder_run / "samples")) == 4 * (14 - 3 - 2)
    for name in names:  # <pool>/<path inside it>
        pool, _, path = name.partition("/")
        assert pool == "heldout" and (folder_data / "train" / path).is_file()


def test_a_lone_model_file_serves_as_teacher(
    folder_run, data_flags, stage_flags, tmp_path, step, quick
):
    lone = tmp_path / "lone.pt"
    shutil.copyfile(folder_run / "teacher" / "model.pt", lone)
    run = tmp_path / "run"
    flags = ("--teacher", lone, *data_flags, *stage_flags["samples"])  # no config.json says it
    assert step("samples", run, *flags) == 0
    first, second = (x / "samples" / "selection.csv" for x in (folder_run, run))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("stage", "flag", "parent"),
    [
        ("samples", "--teacher", "teacher"),
        ("student", "--selection", "samples"),
        ("finetuned", "--student", "student"),
    ],
)
@pytest.mark.parametrize("by_file", [False, True], ids=["folder", "file"])
def test_a_stage_elsewhere_is_named_by_its_folder_or_its_file(
    folder_run, tmp_path, stage_flags, step, quick, stage, flag, parent, by_file
):
    source = folder_run / parent / (PRODUCT[parent] if by_file else "")
    assert step(stage, tmp_path, *stage_flags[stage], flag, source) == 0
    path = tmp_path / stage / read(tmp_path / stage / "config.json")["parent"]["path"]
    assert path.resolve() == (folder_run / parent / PRODUCT[parent]).resolve()


def test_a_fine_tuned_student_is_the_teacher_of_a_second_round(
    folder_run, stage_flags, tmp_path, step, quick
):
    flags = ("--teacher", folder_run / "finetuned", *stage_flags["samples"])
    assert step("samples", tmp_path, *flags) == 0
    config = read(tmp_path / "samples" / "config.json")
    assert config["parent"]["stage"] == "finetuned"
    first, second = (scores_of(x / "samples")["score"] for x in (folder_run, tmp_path))
    assert first.shape == second.shape and not np.array_equal(first, second)
    assert step("student", tmp_path, *stage_flags["student"]) == 0


def test_soft_labels_are_the_scores_of_the_best_classes(folder_run):
    images, label, _, _ = selection_of(folder_run / "samples")
    soft = selection.read_soft_labels(folder_run / "samples" / "scores.npz", images, 4)
    scores = scores_of(folder_run / "samples")
    at = {name: row for row, name in enumerate(scores["image"])}
    for name, kept, row in zip(images, label, soft, strict=True):
        best = scores["label"][at[name]]
        assert set(np.flatnonzero(row)) == set(best) and kept in best
        score = scores["score"][at[name]]
        np.testing.assert_allclose(row[best], score / score.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="no scores of 'elsewhere'"):
        selection.read_soft_labels(folder_run / "samples" / "scores.npz", ["elsewhere"], 4)


def test_a_student_learns_soft_labels(folder_run, run_before, stage_flags, step, quick, capsys):
    run = run_before("student")
    assert step("student", run, *stage_flags["student"], "--soft-labels") == 0
    assert read(run / "student" / "config.json")["soft_labels"] is True
    hard, soft = (model_of(x / "student")["state_dict"] for x in (folder_run, run))
    assert any(not torch.equal(hard[name], soft[name]) for name in hard)
    (run / "samples" / "scores.npz").unlink()
    flags = (*stage_flags["student"], "--soft-labels", "--overwrite")
    assert step("student", run, *flags) == 2
    assert "--save-scores" in capsys.readouterr().err


def test_a_joint_student_learns_the_true_labels_too(run_before, stage_flags, step, quick, capsys):
    run = run_before("student")
    assert step("student", run, *stage_flags["student"], "--joint") == 0
    rows = read(run / "samples" / "result.json")["selected"]
    assert f"{rows} rows of" in (printed := capsys.readouterr().out)
    assert "12 true labels" in printed  # three of each of the four classes
    assert read(run / "student" / "config.json")["joint"] is True
    images = read(run / "student" / "result.json")["images_processed"]
    assert images == 2 * ((rows + 12) // 4 * 4)


def test_true_labels_follow_those_of_the_selection():
    pixels = [np.full((n, 8, 8, 3), value, np.uint8) for n, value in ((3, 7), (2, 9))]
    selected, labelled = map(Images.of, pixels)
    labelled = SimpleNamespace(images=labelled, labels=torch.tensor([2, 0]))
    hard, soft = torch.tensor([1, 1, 0]), torch.tensor([[0.5, 0.5, 0.0]] * 3)
    images, labels = student_train.with_true_labels(selected, hard, labelled)
    assert images[slice(None)][:, 0, 0, 0].tolist() == [7, 7, 7, 9, 9]
    assert labels.tolist() == [1, 1, 0, 2, 0]
    _, labels = student_train.with_true_labels(selected, soft, labelled)
    assert labels[3:].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_stage_that_is_not_there_names_the_runs_that_have_one(folder_run, tmp_path, step, capsys):
    shutil.copytree(folder_run, tmp_path / "demo")
    assert step("samples", tmp_path / "cifar100") == 2
    assert f"--run-dir {tmp_path / 'demo'}" in capsys.readouterr().err


def test_without_a_terminal_every_epoch_prints_a_line(folder_flags, tmp_path, step, quick, capsys):
    assert step("teacher", tmp_path, *folder_flags, "--epochs 3") == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch ")]
    metrics = (tmp_path / "teacher" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(metrics) == 3
    for number, (line, row) in enumerate(zip(lines, map(json.loads, metrics), strict=True), 1):
        said = f"loss {row['train_loss']:.3f}, validation {row['val_top1']:.2f} %"
        assert line.startswith(f"epoch {number} of 3: {said}, ")


# --- step 2's flags -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagged_pool(tmp_path_factory, pictures):
    """A folder pool of 7 ants, 3 bees and 6 of no class, in folders of those names."""
    pool = tmp_path_factory.mktemp("pool") / "found"
    for seed, (name, count) in enumerate({"Ant": 7, "bee": 3, "elsewhere": 6}.items(), 500):
        pictures(pool / name, count, seed)
    return pool


@pytest.fixture
def select(run_before, step, quick):
    """select(*flags) -> the samples folder of a new selection."""

    def run_step_2(*flags):
        run = run_before("samples")
        assert step("samples", run, *flags) == 0
        return run / "samples"

    return run_step_2


def best_class_counts(samples):
    return np.bincount(scores_of(samples)["label"][:, 0], minlength=4)


@pytest.mark.parametrize("k", [2, 1000])
def test_ranked_keeps_k_of_every_class_or_all_there_are(select, tagged_pool, k):
    samples = select("--unlabeled", tagged_pool, "--k", k, "--p", 2)
    there = np.bincount(scores_of(samples)["label"].ravel(), minlength=4)
    result = read(samples / "result.json")
    assert result["per_class_counts"] == np.minimum(there, k).tolist()
    assert result["selected"] == np.minimum(there, k).sum()


def test_unbalanced_keeps_the_surest_images_of_the_pool_once_each(select, tagged_pool):
    samples = select("--unlabeled", tagged_pool, "--k", 2, "--p", 2, "--strategy unbalanced")
    images, label, score, _ = selection_of(samples)
    scores = scores_of(samples)
    ranked = np.minimum(np.bincount(scores["label"].ravel(), minlength=4), 2).sum()
    assert len(images) == len(set(images)) == ranked
    assert sorted(score) == sorted(np.sort(scores["score"][:, 0])[-len(images) :])
    best = dict(zip(scores["image"], scores["label"][:, 0], strict=True))
    assert [best[name] for name in images] == label.tolist()


def test_random_keeps_as_many_images_as_ranked_once_each(select, tagged_pool):
    samples = select("--unlabeled", tagged_pool, "--k", 2, "--p", 2, "--strategy random")
    images, label, _, _ = selection_of(samples)
    scores = scores_of(samples)
    ranked = np.minimum(np.bincount(scores["label"].ravel(), minlength=4), 2).sum()
    assert len(images) == len(set(images)) == ranked
    best = dict(zip(scores["image"], scores["label"][:, 0], strict=True))
    assert [best[name] for name in images] == label.tolist()


def test_random_in_class_keeps_k_of_those_whose_best_class_it_is(select, tagged_pool):
    flags = ("--unlabeled", tagged_pool, "--k", 2, "--p", 2, "--strategy random-in-class")
    samples = select(*flags)
    images, label, _, _ = selection_of(samples)
    assert (
        np.bincount(label, minlength=4).tolist()
        == np.minimum(best_class_counts(samples), 2).tolist()
    )
    scores = scores_of(samples)
    best = dict(zip(scores["image"], scores["label"][:, 0], strict=True))
    assert [best[name] for name in images] == label.tolist()


def test_tags_keep_k_images_of_the_folder_that_is_named_after_a_class(select, tagged_pool):
    samples = select("--unlabeled", tagged_pool, "--k", 5, "--strategy tags")
    images, label, _, rank = selection_of(samples)
    assert read(samples / "result.json")["per_class_counts"] == [5, 3, 0, 0]
    folders = [name.split("/")[1].lower() for name in images]
    assert folders == ["ant"] * 5 + ["bee"] * 3
    assert label.tolist() == [0] * 5 + [1] * 3
    assert rank.tolist() == [1, 2, 3, 4, 5, 1, 2, 3]


def test_min_score_leaves_out_what_lies_below_it(select, tagged_pool):
    bar = 0.3
    samples = select("--unlabeled", tagged_pool, "--k", 1000, "--p", 4, "--min-score", bar)
    scores, (_, _, score, _) = scores_of(samples)["score"], selection_of(samples)
    assert 0 < len(score) == (scores >= np.float32(bar)).sum() < scores.size


def test_the_export_has_the_selection_as_class_folders(select, tagged_pool, tmp_path, step):
    out = tmp_path / "out"
    samples = select("--unlabeled", tagged_pool, "heldout", "--k", 3, "--p", 4, "--export", out)
    images, label, _, rank = selection_of(samples)
    classes = ("ant", "bee", "crab", "dove")
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert len(files) == len(images) and {path.parent.name for path in files.values()} <= {*classes}
    assert {name.split("/")[0] for name in images} == {"found", "heldout"}
    for name, c, r in zip(images, label, rank, strict=True):
        (path,) = (p for p in files.values() if p.match(f"{classes[c]}/{r:05d}*"))
        assert cv2.imread(str(path)).shape == (8, 8, 3)
        if name.startswith("found/"):  # a file of its own: copied as it is
            assert path.read_bytes() == (tagged_pool / name.removeprefix("found/")).read_bytes()
    again = tmp_path / "again"  # of the finished stage
    assert step("samples", samples.parent, "--resume --export", again) == 0
    assert {path.relative_to(again).as_posix() for path in again.rglob("*.*")} == files.keys()


@pytest.fixture
def pool_with_copies(folder_data, tmp_path, pictures):
    """Five new pictures, one of the test set, and one that cannot be read."""
    pool = tmp_path / "mixed"
    pictures(pool, 5, seed=700)
    shutil.copyfile(folder_data / "test" / "bee" / "0.png", pool / "copy.png")
    (pool / "broken.png").write_bytes(b"no picture")
    (pool / "notes.txt").write_text("no entry")
    return pool


def test_copies_of_labelled_images_and_broken_files_are_left_out_and_listed(
    select, pool_with_copies
):
    samples = select("--unlabeled", pool_with_copies, "--max-bad-fraction", 0.5, "--k", 9)
    skipped = skipped_of(samples)
    assert skipped.keys() == {"mixed/copy.png", "mixed/broken.png"}
    assert "duplicate" in skipped["mixed/copy.png"]
    assert scores_of(samples)["image"].tolist() == [f"mixed/{i}.png" for i in range(5)]
    result = read(samples / "result.json")
    assert (result["pool_size"], result["scored"], result["skipped"]) == (7, 5, 2)


def test_keep_duplicates_scores_copies_too(select, pool_with_copies):
    flags = ("--unlabeled", pool_with_copies, "--max-bad-fraction", 0.5, "--keep-duplicates")
    samples = select(*flags)
    assert skipped_of(samples).keys() == {"mixed/broken.png"}
    assert "mixed/copy.png" in scores_of(samples)["image"]


def test_two_pools_of_one_name_get_names_of_their_own_and_reach_the_student(
    run_before, step, tmp_path, pictures, quick
):
    pools = [tmp_path / parent / "photos" for parent in ("a", "b")]
    for seed, pool in enumerate(pools, 800):
        pictures(pool, 4, seed)
    run = run_before("samples")
    assert step("samples", run, "--unlabeled", *pools, "--k", 9) == 0
    config = read(run / "samples" / "config.json")
    assert len(config["pools"]) == 2
    assert [pool["path"] for pool in config["pools"].values()] == [str(pool) for pool in pools]
    named = {name.split("/")[0] for name in scores_of(run / "samples")["image"]}
    assert named == config["pools"].keys()
    assert step("student", run, "--epochs 1 --passes 1") == 0


def test_no_step_of_the_demo_asks_the_network(tmp_path, step, monkeypatch, quick):
    def forbidden(*arguments, **options):
        raise AssertionError("a socket is used")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    own = "--preset demo --input-size 8 --labels-per-class 3 --epochs 1 --passes 1 --data-dir"
    assert step("teacher", tmp_path / "run", own, tmp_path / "data") == 0
    assert step("samples", tmp_path / "run", "--k 5") == 0


@pytest.mark.usefixtures("quick")
def test_a_student_has_an_input_size_of_its_own_and_step_4_takes_it(run_before, stage_flags, step):
    """Its pool is heldout: the images lie in the labelled set, which then has that size as well."""
    run = run_before("student")
    assert step("student", run, *stage_flags["student"], "--input-size 16") == 0
    assert step("finetuned", run, *stage_flags["finetuned"]) == 0
    sizes = [
        json.loads((run / stage / "config.json").read_text())["input_size"] for stage in STAGES
    ]
    assert sizes == [8, 8, 16, 16]
