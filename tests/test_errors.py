"""What goes wrong is one line and an exit code: 2 with nothing touched, 1 with the work kept."""

import csv
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from itertools import product

import pytest
import torch
import torchvision

import main
from presets import Training
from stages import training
from stages.program import Interrupted

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def closed_port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# --- missing inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["cifar100", "cifar10"])
def test_a_data_set_that_cannot_be_downloaded_names_the_way_out(
    tmp_path, refused, monkeypatch, closed_port, dataset
):
    url = f"http://127.0.0.1:{closed_port}/archive.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", url)
    data, began = tmp_path / "data", time.monotonic()
    flags = f"--preset lab --dataset {dataset}".split()
    error = refused("teacher", tmp_path / "run", *flags, "--data-dir", data)
    assert time.monotonic() - began < 30
    assert dataset in error and str(data) in error and "--preset demo" in error
    assert not data.exists()


def test_a_pool_that_cannot_be_downloaded_names_the_way_out(
    run_before, refused, monkeypatch, closed_port
):
    monkeypatch.setattr(
        "data.sources.TINY_IMAGENET_URL", f"http://127.0.0.1:{closed_port}/tiny.zip"
    )
    error = refused("samples", run_before("samples"), "--unlabeled tiny-imagenet")
    assert "tiny-imagenet" in error and "heldout" in error


def test_a_folder_data_set_that_is_not_there_is_named(tmp_path, refused):
    data = tmp_path / "nothing"
    flags = ("--preset demo --dataset folder --data-dir", data)
    assert str(data) in refused("teacher", tmp_path / "run", *flags)
    assert not data.exists()


def test_a_pool_folder_without_images_is_named(run_before, refused, tmp_path):
    pool = tmp_path / "bare"
    pool.mkdir()
    (pool / "notes.txt").write_text("no image")
    assert str(pool) in refused("samples", run_before("samples"), "--unlabeled", pool)


def test_a_pool_folder_that_is_not_there_is_named(run_before, refused, tmp_path):
    pool = tmp_path / "gone"
    error = refused("samples", run_before("samples"), "--unlabeled heldout", pool)
    assert str(pool) in error and "heldout" in error


def test_tags_need_a_pool_with_folders_named_after_classes(run_before, refused, tmp_path, pictures):
    pictures(tmp_path / "pool" / "elsewhere", 3, seed=1)
    flags = ("--unlabeled", tmp_path / "pool", "--strategy tags")
    assert "ant" in refused("samples", run_before("samples"), *flags)


@pytest.mark.parametrize("bytes_left", [0, 10, 1000, 200_000])
def test_a_truncated_teacher_is_named(run_before, refused, bytes_left):
    run = run_before("samples")
    path = run / "teacher" / "model.pt"
    path.write_bytes(path.read_bytes()[:bytes_left])
    assert str(path) in refused("samples", run)


@pytest.mark.parametrize("content", [{"some": "dict"}, ["list"], {"arch": {}, "state_dict": {}}])
def test_a_file_that_is_no_model_is_named(run_before, refused, tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    assert str(path) in refused("samples", run_before("samples"), "--teacher", path)


@pytest.mark.parametrize("stage", ["samples", "student", "finetuned"])
def test_a_run_folder_that_is_not_there_is_named_and_not_made(tmp_path, refused, stage):
    assert str(tmp_path / "gone") in refused(stage, tmp_path / "gone")


@pytest.mark.parametrize(
    ("stage", "missing", "command"),
    [
        ("samples", "teacher", "python main.py"),
        ("student", "samples", "python make_sample_data.py"),
        ("finetuned", "student", "python student_train.py"),
    ],
)
def test_a_step_before_its_turn_names_the_command_to_run_first(
    run_before, refused, stage, missing, command
):
    run = run_before(missing)
    run.mkdir(exist_ok=True)
    error = refused(stage, run)
    assert str(run / missing) in error and command in error


@pytest.mark.parametrize(
    ("stage", "parent"),
    [("samples", "teacher"), ("student", "samples"), ("finetuned", "student")],
)
def test_an_unfinished_stage_is_no_input(run_before, refused, stage, parent):
    run = run_before(stage)
    (run / parent / "result.json").unlink()
    assert "result.json" in refused(stage, run)


# --- flags --------------------------------------------------------------------------------------


def test_an_unknown_model_gets_the_names_there_are(tmp_path, refused):
    error = refused("teacher", tmp_path / "run", "--preset demo --model resnet9000")
    assert "resnet9000" in error and "resnet50" in error and "resnet8" in error


def test_a_batch_of_one_is_refused_where_there_is_batch_norm(tmp_path, folder_flags, refused):
    error = refused("teacher", tmp_path / "run", *folder_flags, "--batch-size 1")
    assert "--batch-size" in error and "batch norm" in error


def test_a_batch_of_one_is_fine_without_batch_norm_or_where_it_is_not_trained():
    network, recipe = torch.nn.Linear(2, 2), Training(batch_size=1)
    training.check_batches(network, recipe, 5)
    norm = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="batch norm needs two"):
        training.check_batches(norm, recipe, 5)
    with pytest.raises(ValueError, match="batch norm needs two"):  # one image is all there is
        training.check_batches(norm, Training(batch_size=8), 1)
    norm.requires_grad_(False)  # --linear: it computes as in evaluation
    training.check_batches(norm, recipe, 5)


def test_more_labels_than_there_are_is_an_error(tmp_path, refused, folder_flags):
    flags = (*folder_flags, "--labels-per-class 13")
    assert "--labels-per-class" in refused("teacher", tmp_path / "run", *flags)


@pytest.mark.parametrize("words", ["--p 0", "--k 0", "--p 5", "--k x"])
def test_p_and_k_out_of_range_are_named(run_before, refused, words):
    error = refused("samples", run_before("samples"), words)
    assert all(word in error for word in words.split())


def test_k_above_what_exists_is_no_error(run_before, step):
    flags = ("--unlabeled heldout --k 1000000",)
    assert step("samples", run_before("samples"), *flags) == 0


def test_step_2_cannot_do_without_a_teacher(run_before, refused):
    error = refused("samples", run_before("samples"), "--load-pretrained False")
    assert "--load-pretrained" in error and "teacher" in error


def test_load_pretrained_true_is_what_happens_anyway(run_before, step):
    flags = ("--unlabeled heldout --load-pretrained True",)
    assert step("samples", run_before("samples"), *flags) == 0


def test_a_folder_to_export_to_must_be_empty(run_before, refused, tmp_path, snapshot):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("keep me")
    assert str(out) in refused("samples", run_before("samples"), "--export", out)
    assert snapshot(out) == {"precious": b"keep me"}


def test_the_fine_tuned_network_has_the_students_architecture(run_before, refused):
    error = refused("finetuned", run_before("finetuned"), "--model resnet14")
    assert "resnet14" in error and "resnet8" in error


def test_starting_weights_must_fit_the_model(tmp_path, refused, folder_run, folder_flags):
    weights = folder_run / "teacher" / "model.pt"
    flags = (*folder_flags, "--model resnet14 --weights", weights)
    error = refused("teacher", tmp_path / "run", *flags)
    assert str(weights) in error and "--model" in error


@pytest.mark.parametrize("content", [["list"], torch.zeros(2), {"fc.weight": 3}])
def test_starting_weights_must_be_weights(tmp_path, refused, folder_flags, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    error = refused("teacher", tmp_path / "run", *folder_flags, "--weights", path)
    assert str(path) in error


# --- inheritance --------------------------------------------------------------------------------


CONTRADICTIONS = ("--seed 1", "--dataset digits", "--input-size 16", "--preset lab")
CONTRADICTIONS += ("--labels-per-class 4", "--val-per-class 3")
OWN = ("student", "--input-size 16")  # the student may have another one


@pytest.mark.parametrize(
    "stage, words",
    sorted(set(product(("samples", "student", "finetuned"), CONTRADICTIONS)) - {OWN}),
)
def test_a_flag_that_contradicts_the_stage_before_is_refused(run_before, refused, stage, words):
    error = refused(stage, run_before(stage), words)
    assert all(word in error for word in words.split())


def test_a_flag_that_repeats_the_stage_before_is_accepted(run_before, step):
    flags = ("--seed 0 --dataset-mode FOLDER --input-size 8 --preset demo",)
    assert step("samples", run_before("samples"), *flags, "--unlabeled heldout") == 0


def test_a_lone_teachers_input_size_cannot_be_contradicted(
    folder_run, tmp_path, refused, data_flags
):
    lone = tmp_path / "lone.pt"
    shutil.copyfile(folder_run / "teacher" / "model.pt", lone)
    flags = ("--teacher", lone, *data_flags, "--unlabeled heldout --input-size 16")
    error = refused("samples", tmp_path / "run", *flags)
    assert "--input-size" in error


def test_a_selection_of_a_teacher_that_was_trained_again_is_refused(
    run_before, refused, step, folder_flags
):
    run = run_before("student")
    again = (*folder_flags, "--learning-rate 0.01 --overwrite")
    assert step("teacher", run, *again) == 0
    error = refused("student", run)
    assert "teacher" in error and "python make_sample_data.py" in error


def test_a_student_of_a_selection_that_was_made_again_is_refused(run_before, refused, step):
    run = run_before("finetuned")
    assert step("samples", run, "--unlabeled heldout --k 2 --overwrite") == 0
    assert "python student_train.py" in refused("finetuned", run)


def test_pictures_that_changed_after_the_teacher_was_trained_are_refused(
    run_before, refused, folder_data, tmp_path
):
    data = shutil.copytree(folder_data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    shutil.copyfile(data / "test" / "ant" / "0.png", data / "train" / "bee" / "0.png")
    error = refused("samples", run_before("samples"), "--data-dir", data)
    assert "changed" in error and "--data-dir" in error


def test_a_pool_that_changed_after_it_was_scored_is_refused(
    run_before, refused, step, tmp_path, pictures
):
    pool, run = tmp_path / "pool", run_before("samples")
    pictures(pool, 6, seed=3)
    assert step("samples", run, "--unlabeled", pool) == 0
    (pool / "5.png").unlink()
    error = refused("student", run)
    assert "pool" in error and "python make_sample_data.py" in error


@pytest.mark.parametrize("stage", ["samples", "student", "finetuned"])
def test_data_of_other_classes_are_refused(run_before, refused, folder_data, tmp_path, stage):
    data = shutil.copytree(folder_data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    for part in ("train", "test"):
        shutil.rmtree(data / part / "bee")
    error = refused(stage, run_before(stage), "--data-dir", data)
    assert "--data-dir" in error


def test_resume_refuses_data_that_changed_after_the_stage_began(
    run_before, refused, step, folder_data, tmp_path, folder_flags, monkeypatch
):
    data, run = tmp_path / "data", run_before("teacher")
    shutil.copytree(folder_data, data, ignore=shutil.ignore_patterns("cache"))
    own = (*folder_flags, "--data-dir", data)
    with monkeypatch.context() as patch:
        patch.setattr("stages.program.interruption", lambda: 15)
        assert step("teacher", run, *own) == 143
    (data / "train" / "ant" / "3.png").unlink()
    error = refused("teacher", run, *own, "--resume")
    assert "changed" in error and "--data-dir" in error


# --- booleans -----------------------------------------------------------------------------------

SPELLINGS = {
    "--student-network": True,
    "--student-network True": True,
    "--student-network=true": True,
    "--student-network=1": True,
    "--student-network False": False,
    "--student-network=false": False,
    "--student-network=FALSE": False,
    "--student-network 0": False,
    "--no-student-network": False,
    "--student-network --no-student-network": False,
    "": False,
}


@pytest.mark.parametrize(("flags", "expected"), SPELLINGS.items())
def test_a_boolean_can_be_spelled_in_every_usual_way(flags, expected):
    assert main.parse(flags.split()).student_network is expected


@pytest.mark.parametrize("spelling", ["False", "=false"])
def test_student_network_false_is_step_1(tmp_path, step, folder_flags, spelling):
    flag = ["--student-network" + spelling] if "=" in spelling else ["--student-network", spelling]
    assert step("teacher", tmp_path, *folder_flags, "--epochs 1", *flag) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    "flags", ["--student-network maybe", "--resume=perhaps", "--no-overwrite True"]
)
def test_any_other_boolean_is_an_error_that_names_the_choices(tmp_path, refused, flags):
    error = refused("teacher", tmp_path / "run", "--preset demo", *flags.split())
    assert flags.split("=")[0].split()[0] in error
    assert "--no-" in flags or ("True" in error and "False" in error)


# --- failures while running ---------------------------------------------------------------------


def failed(step, capsys, stage, run, *flags):
    """Run a step that fails; -> the one line of its error."""
    capsys.readouterr()
    code = step(stage, run, *flags)
    error = capsys.readouterr().err
    assert code == 1, error
    assert error.count("\n") == 1, error
    return error


@pytest.fixture
def broken_pool(tmp_path, pictures):
    pool = tmp_path / "broken"
    pictures(pool, 8, seed=9)
    for number in (2, 5):
        (pool / f"{number}.png").write_bytes(b"\x89PNG and no more")
    return pool


def test_too_many_unreadable_files_stop_the_step_and_are_listed(
    run_before, step, capsys, broken_pool
):
    run = run_before("samples")
    error = failed(step, capsys, "samples", run, "--unlabeled", broken_pool)
    listed = run / "samples" / "skipped.csv"
    assert "--max-bad-fraction" in error and str(listed) in error
    with open(listed, newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["image", "broken/2.png", "broken/5.png"]
    assert not (run / "samples" / "result.json").exists()


def test_after_too_many_unreadable_files_the_step_can_simply_be_run_again(
    run_before, step, capsys, broken_pool
):
    run = run_before("samples")
    failed(step, capsys, "samples", run, "--unlabeled", broken_pool)
    assert step("samples", run, "--unlabeled", broken_pool, "--max-bad-fraction 0.5") == 0


def test_too_many_unreadable_files_leave_a_finished_selection_whole(
    run_copy, step, capsys, snapshot, broken_pool
):
    """--overwrite with a bad pool: the old selection keeps its own skipped.csv, or is gone."""
    before = snapshot(run_copy / "samples")
    failed(step, capsys, "samples", run_copy, "--unlabeled", broken_pool, "--overwrite")
    after = snapshot(run_copy / "samples")
    assert "result.json" not in after or after == before


def test_a_loss_that_is_not_finite_stops_the_training_with_a_way_out(
    tmp_path, step, capsys, folder_flags
):
    error = failed(step, capsys, "teacher", tmp_path, *folder_flags, "--learning-rate 1e9")
    assert "--learning-rate (now 1e+09)" in error and "in step" in error and "--warmup" in error
    assert not (tmp_path / "teacher" / "result.json").exists()
    assert not (tmp_path / "teacher" / "model.pt").exists()


def test_a_selection_without_images_says_so(run_before, step, capsys):
    error = failed(step, capsys, "samples", run_before("samples"), "--min-score 1")
    assert "--min-score" in error


@contextmanager
def files_of_at_most(size):
    """As on a full disk or above a quota: a file that grows above `size` bytes is an error."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The first file above each size: config.json; TensorBoard's events; resume.pt, at a byte inside.
@pytest.mark.parametrize(
    ("stage", "size"), [("teacher", 2500), ("samples", 0), ("samples", 2500), ("student", 100_000)]
)
def test_a_full_disk_is_a_failure_that_keeps_the_finished_work(
    run_before, step, capsys, snapshot, stage_flags, stage, size
):
    run = run_before(stage)
    before, own = snapshot(run), stage_flags[stage]
    with files_of_at_most(size):
        code = step(stage, run, *own)
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (1, 1), error
    assert str(run / stage) in error
    assert "File too large" in error or "cannot write" in error
    after = snapshot(run)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if "partial" in name]
    assert f"{stage}/result.json" not in after
    assert step(stage, run, *own, "--resume") == 0


def test_a_full_tmpfs_is_one_too_and_with_more_space_it_goes_on(
    step, capsys, snapshot, tmp_path, folder_flags
):
    run, small = tmp_path / "run", ["mount", "-t", "tmpfs", "-o", "size=200k", "none"]
    run.mkdir()
    if not shutil.which("mount") or subprocess.run([*small, run], capture_output=True).returncode:
        pytest.skip("to mount a tmpfs takes Linux and root")
    try:
        code = step("teacher", run, *folder_flags)
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (1, 1) and str(run / "teacher") in error, error
        names = snapshot(run)
        assert not [name for name in names if "partial" in name or "result" in name]
        subprocess.run(["mount", "-o", "remount,size=20m", run], check=True)
        assert step("teacher", run, *folder_flags, "--resume") == 0
    finally:
        subprocess.run(["umount", "--lazy", run], check=True)


def test_a_decode_cache_on_a_full_disk_is_no_wrong_flag(
    step, capfd, tmp_path, folder_data, folder_flags
):
    data = shutil.copytree(folder_data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    with files_of_at_most(1000):
        places = ("--data-dir", data, "--cache-dir", data / "cache")
        code = step("teacher", tmp_path / "run", *folder_flags, *places)
    error = capfd.readouterr().err
    assert (code, error.count("\n")) == (1, 1) and "cache" in error
    assert not list((data / "cache").iterdir()) and not (tmp_path / "run").exists()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(step, capfd, tmp_path, folder_flags):
    tmp_path.chmod(0o555)
    code = step("teacher", tmp_path / "run", *folder_flags)
    tmp_path.chmod(0o755)
    error = capfd.readouterr().err
    assert (code, error.count("\n")) == (1, 1) and str(tmp_path) in error


@pytest.mark.parametrize("stage", ["teacher", "samples"])
def test_a_run_folder_that_is_a_file_is_named(tmp_path, refused, folder_flags, stage):
    file = tmp_path / "file"
    file.write_text("here I am")
    flags = folder_flags if stage == "teacher" else ()
    assert str(file) in refused(stage, file, *flags)
    assert file.read_text() == "here I am"


# --- signals outside of the work ----------------------------------------------------------------


def test_ctrl_c_before_the_work_begins_stops_at_once_and_changes_nothing(
    tmp_path, step, capsys, folder_flags, monkeypatch
):
    def interrupted(*arguments):
        raise Interrupted(2)

    monkeypatch.setattr("stages.prepare.load_labelled", interrupted)
    assert step("teacher", tmp_path / "run", *folder_flags) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
