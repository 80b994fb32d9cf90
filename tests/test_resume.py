"""An interrupted stage goes on with --resume and ends with the same bits; the folder's states."""

import os
import shutil
import signal
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Fork, assert_same_training, metrics_of, result_of, words_of

import main
import make_sample_data
from presets import Training
from stages import checkpoint, lifetime, prepare, program, scoring, training
from stages.folder import read_record

STAGES = ("teacher", "samples", "student", "finetuned")
TRAINED = ("teacher", "student", "finetuned")

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def every_step(monkeypatch):
    """A stage looks at its training after every step."""
    monkeypatch.setattr(training, "LOOK_SECONDS", -1)


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): SIGTERM has come when a stage asks for the n-th time and later."""

    def arm(looks):
        asked = count(1)
        answer = lambda: signal.SIGTERM if next(asked) >= looks else None  # noqa: E731
        monkeypatch.setattr(program, "interruption", answer)

    return arm


def finish_in_pieces(step, stop_after, stage, run, flags, looks):
    """Stop at every `looks`-th look at the signal and resume, until it is done; -> the stops."""
    for stops in range(60):
        stop_after(looks)
        code = step(stage, run, *flags, *(("--resume",) if stops else ()))
        if code == 0:
            return stops
        assert code == 143
        assert (run / stage / "resume.pt").exists()
        assert not (run / stage / "result.json").exists()
    raise AssertionError("it makes no progress from one stop to the next")


# --- the same bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [2, 3, 5])
@pytest.mark.parametrize("stage", TRAINED)
def test_a_training_in_pieces_ends_with_the_same_bits(
    folder_run, run_before, stage_flags, step, every_step, stop_after, stage, looks
):
    run = run_before(stage)
    assert finish_in_pieces(step, stop_after, stage, run, stage_flags[stage], looks) >= 1
    assert_same_training(run / stage, folder_run / stage)
    assert not (run / stage / "resume.pt").exists()


@pytest.fixture(scope="module")
def whole_selection(folder_run, tmp_path_factory, step, stage_flags):
    """Step 2 in chunks of 8 images, not interrupted."""
    run = tmp_path_factory.mktemp("whole")
    shutil.copytree(folder_run / "teacher", run / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.flags.CHUNK", 8)
        assert step("samples", run, *stage_flags["samples"]) == 0
    return run / "samples"


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_selection_in_pieces_ends_with_the_same_bits(
    whole_selection, run_before, stage_flags, step, stop_after, monkeypatch, looks
):
    monkeypatch.setattr("stages.flags.CHUNK", 8)
    run = run_before("samples")
    flags = stage_flags["samples"]
    assert finish_in_pieces(step, stop_after, "samples", run, flags, looks) >= 1
    samples = run / "samples"
    for name in ("selection.csv", "skipped.csv"):
        assert (samples / name).read_bytes() == (whole_selection / name).read_bytes()
    with np.load(samples / "scores.npz") as one, np.load(whole_selection / "scores.npz") as other:
        assert one.files == other.files
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.files)
    assert result_of(samples) == result_of(whole_selection)


def killed_selection(words):
    """Step 2 kills itself when it has written the scores of two chunks that its state lacks."""
    scoring.SAVE_SECONDS, scoring._AHEAD = 0, 1
    add, calls = scoring.Selector.add, count(1)

    def counted(self, *chunk):
        call = next(calls)
        if call == 3:
            scoring.SAVE_SECONDS = 1e9
        if call == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return add(self, *chunk)

    scoring.Selector.add = counted
    make_sample_data.main(words)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_selection_killed_in_the_middle_is_finished_by_resume(
    run_before, stage_flags, step, monkeypatch
):
    monkeypatch.setattr("stages.flags.CHUNK", 4)
    flags, whole = stage_flags["samples"], run_before("samples")
    run = whole.with_name("killed")
    shutil.copytree(whole, run)
    assert step("samples", whole, *flags) == 0
    words = [*flags, "--run-dir", str(run), "--device", "cpu"]
    killed = Fork(killed_selection, words, log=run / "log")
    assert killed.wait() == -signal.SIGKILL, killed.errors.read_text()
    samples = run / "samples"
    assert 0 < torch.load(samples / "resume.pt")["position"] < 36
    assert (samples / "scores-0.bin").stat().st_size // 16 > torch.load(samples / "resume.pt")[
        "position"
    ]
    assert step("samples", run, *flags, "--resume") == 0
    for name in ("selection.csv", "skipped.csv", "scores.npz"):
        assert (samples / name).read_bytes() == (whole / "samples" / name).read_bytes()
    assert result_of(samples) == result_of(whole / "samples")
    assert not list(samples.glob("scores-*")) and not list(samples.glob("resume*"))


def killed_training(words):
    """Step 1 kills itself after its third epoch; the last save is of a step in the second."""
    training.SAVE_SECONDS = -1  # a save after every step
    epoch = lifetime.StageLog.epoch

    def logged(self, metrics, images):
        epoch(self, metrics, images)
        if metrics["epoch"] == 2:
            training.SAVE_SECONDS = 1e9
        if metrics["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    lifetime.StageLog.epoch = logged
    main.main(words)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_training_killed_between_two_saves_is_finished_by_resume(
    tmp_path, stage_flags, step, every_step
):
    flags = [*stage_flags["teacher"], "--epochs", "4", "--device", "cpu"]
    words = [*flags, "--run-dir", str(tmp_path / "killed")]
    process = Fork(killed_training, words, log=tmp_path / "log")
    assert process.wait() == -signal.SIGKILL, process.errors.read_text()
    killed = tmp_path / "killed" / "teacher"
    assert torch.load(killed / "resume.pt")["fit"]["epoch"] == 1
    assert [line["epoch"] for line in metrics_of(killed)] == [1, 2, 3]
    assert step("teacher", tmp_path / "killed", *flags, "--resume") == 0
    assert step("teacher", tmp_path / "whole", *flags) == 0
    assert_same_training(killed, tmp_path / "whole" / "teacher")


@pytest.fixture
def saves(monkeypatch):
    """The epoch of every state that was saved."""
    seen, save = [], checkpoint.save

    def noted(state, path):
        save(state, path)
        if path.name == "resume.pt":
            seen.append(state["fit"]["epoch"])

    monkeypatch.setattr(checkpoint, "save", noted)
    return seen


def test_a_training_is_saved_by_the_clock_and_at_its_end(
    tmp_path, stage_flags, step, saves, monkeypatch
):
    flags = [*stage_flags["teacher"], "--epochs", "5"]
    assert step("teacher", tmp_path, *flags) == 0
    assert saves == [5]  # its test set may still be read by a resumed one
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    assert step("teacher", tmp_path, *flags, "--overwrite") == 0
    assert saves[1:] == [1, 2, 3, 4, 5]


def test_epochs_without_an_evaluation_leave_the_training_as_it_is(
    folder_run, run_before, stage_flags, step, every_step, stop_after, monkeypatch
):
    """As on a GPU: and the last one is always evaluated."""
    monkeypatch.setattr(training, "epochs_between_evaluations", lambda *arguments: 10)
    run, flags = run_before("student"), stage_flags["student"]
    assert finish_in_pieces(step, stop_after, "student", run, flags, 3) >= 1
    first, last = metrics_of(run / "student")
    assert (first["val_top1"], first["val_top5"]) == (None, None)
    expected = metrics_of(folder_run / "student")
    val = {name: expected[0][name] for name in ("val_top1", "val_top5")}
    assert [first | val, last] == expected
    assert result_of(run / "student") == result_of(folder_run / "student")


def test_on_a_gpu_evaluations_take_a_small_share_and_on_a_cpu_every_epoch_has_one():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    epochs = training.epochs_between_evaluations
    for images, passes, val, expected in (
        (45_000, 1, 5000, 3),
        (100_000, 1, 5000, 1),
        (99_999, 1, 5000, 2),
        (2500, 10, 2000, 2),
        (50, 10, 1, 1),
    ):
        recipe = Training(passes=passes)
        assert epochs(cuda, recipe, images, val) == expected
        assert epochs(cpu, recipe, images, val) == 1


@pytest.mark.parametrize("strategy", ["unbalanced", "tags"])
def test_a_baseline_selection_in_pieces_ends_with_the_same_rows(
    run_before, step, stop_after, monkeypatch, folder_data, strategy
):
    monkeypatch.setattr("stages.flags.CHUNK", 8)
    run = run_before("samples")
    pool = folder_data / "train"
    flags = ("--unlabeled", pool, "--k 3 --p 2 --strategy", strategy)
    flags += ("--keep-duplicates",)
    assert finish_in_pieces(step, stop_after, "samples", run, flags, 3) >= 1
    pieces = (run / "samples" / "selection.csv").read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr("stages.flags.CHUNK", 8)
    assert step("samples", run, *flags, "--overwrite") == 0
    assert (run / "samples" / "selection.csv").read_bytes() == pieces


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_whenever_a_signal_comes_the_state_is_saved_before_the_stop(
    tmp_path, stage_flags, step, every_step, stop_after, looks
):
    stop_after(looks)
    assert step("teacher", tmp_path, *stage_flags["teacher"]) == 143
    assert (tmp_path / "teacher" / "resume.pt").exists()


def test_a_stage_that_died_before_its_first_save_can_be_resumed(
    folder_run, run_copy, stage_flags, step
):
    for stage in ("teacher", "samples"):
        for path in (run_copy / stage).iterdir():
            if path.is_file() and path.name != "config.json":
                path.unlink()
        assert step(stage, run_copy, *stage_flags[stage], "--resume") == 0
    assert_same_training(run_copy / "teacher", folder_run / "teacher")
    first, second = (x / "samples" / "selection.csv" for x in (folder_run, run_copy))
    assert first.read_bytes() == second.read_bytes()


def test_a_line_logged_after_the_last_save_is_not_logged_twice(
    folder_run, run_before, stage_flags, step, every_step, stop_after
):
    """Killed between an epoch's line and its save: the epoch is trained and logged again."""
    run = run_before("teacher")
    stop_after(4)
    assert step("teacher", run, *stage_flags["teacher"]) == 143
    with open(run / "teacher" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 1}\n')
    stop_after(10**9)
    assert step("teacher", run, *stage_flags["teacher"], "--resume") == 0
    assert_same_training(run / "teacher", folder_run / "teacher")


# --- only its own state --------------------------------------------------------------------------


@pytest.fixture
def stopped(run_before, step, stage_flags, stop_after, every_step, tmp_path):
    """stopped(stage, name, *flags) -> a run whose stage is stopped and saved."""

    def begin(stage, name, *flags):
        run = shutil.copytree(tmp_path / "run", tmp_path / name, dirs_exist_ok=True)
        stop_after(1 if stage == "samples" else 3)
        assert step(stage, run, *stage_flags[stage], *flags) == 143
        stop_after(10**9)
        return run

    return begin


@pytest.mark.parametrize("stage", ["teacher", "samples", "finetuned"])
def test_the_state_of_another_stage_is_refused(run_before, stopped, refused, stage_flags, stage):
    run_before(stage)
    another = {"teacher": "--seed 1", "samples": "--k 4", "finetuned": "--learning-rate 0.01"}
    run, other = stopped(stage, "one"), stopped(stage, "other", another[stage])
    shutil.copyfile(other / stage / "resume.pt", run / stage / "resume.pt")
    error = refused(stage, run, *stage_flags[stage], "--resume")
    assert f"{run / stage / 'resume.pt'} is not the state that this stage has saved" in error


WRONG = [
    {"epoch": "one"}, {"epoch": -1}, {"epoch": 10**9}, {"batch": 10**6}, {"step": 0},
    {"images": None}, {"sums": 3}, {"optimizer": {}}, {"model": {}}, {"rate": []},
]  # fmt: skip


@pytest.mark.parametrize("field", [*WRONG, "seconds", "log", "metrics", "fit", "stage"], ids=str)
def test_a_state_with_wrong_fields_is_named(run_before, stopped, refused, stage_flags, field):
    run_before("teacher")
    run = stopped("teacher", "one")
    path = run / "teacher/resume.pt"
    state = torch.load(path, weights_only=True)
    if isinstance(field, dict):
        state["fit"] |= field
    else:
        state[field] = ["wrong"]
    torch.save(state, path)
    error = refused("teacher", run, *stage_flags["teacher"], "--resume")
    assert f"{path} is not the state" in error and "--overwrite" in error


@pytest.mark.parametrize("stage", ["teacher", "samples"])
def test_what_has_changed_around_a_resumed_stage_is_said_and_recorded(
    run_before, stopped, step, stage_flags, stage, monkeypatch, capsys
):
    run_before(stage)
    now = prepare.versions()
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "versions", lambda: now | {"torch": "2.0", "project": "an older"})
        patch.setattr(prepare, "device_name", lambda device: "another CPU, AVX2")
        run = stopped(stage, "one")
    capsys.readouterr()
    assert step(stage, run, *stage_flags[stage], "--resume") == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"torch is {now['torch']}, was 2.0" in error
    assert "project is" in error and "was another CPU, AVX2" in error
    config, result = (read_record(run / stage / name) for name in ("config.json", "result.json"))
    assert config["versions"]["torch"] == "2.0"
    assert config["resumed"] == result["resumed"]
    (part,) = config["resumed"]
    assert part["versions"] == now and part["device_name"] != config["device_name"]


# --- real signals -------------------------------------------------------------------------------


def test_a_resumed_stage_takes_up_its_number_of_threads(run_before, stage_flags, step, stop_after):
    run, flags, before = run_before("student"), stage_flags["student"], torch.get_num_threads()
    stop_after(1)
    assert step("student", run, *flags) == 143
    try:
        torch.set_num_threads(before + 1)
        step("student", run, *flags, "--resume")
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def slowly(program, words):
    """A step that waits after every batch of a prediction."""
    predict = training.predict

    def slow(*arguments, **options):
        for chunk in predict(*arguments, **options):
            print("predicting")
            time.sleep(0.3)
            yield chunk

    training.predict = scoring.predict = slow
    program.main(words)


def interrupt(signum, program, log, *flags):
    """Run a step until it predicts, send it a signal; -> exit code, its errors."""
    process = Fork(slowly, program, ["--device", "cpu", *words_of(flags)], log=log)
    while "predicting" not in log.read_text():
        time.sleep(0.02)
    return process.kill(signum), process.errors.read_text()


@pytest.mark.slow
def test_sigterm_saves_a_training_that_resume_finishes(folder_run, tmp_path, stage_flags, step):
    run, flags = tmp_path / "run", (*stage_flags["teacher"], "--epochs 12")
    code, error = interrupt(signal.SIGTERM, main, tmp_path / "log", "--run-dir", run, *flags)
    assert code == 143, error
    assert error.count("\n") == 1 and "SIGTERM" in error
    assert (run / "teacher" / "resume.pt").exists()
    assert step("teacher", run, *flags, "--resume") == 0
    assert step("teacher", tmp_path / "whole", *flags) == 0
    assert_same_training(run / "teacher", tmp_path / "whole" / "teacher")


@pytest.mark.slow
def test_ctrl_c_saves_a_selection_that_resume_finishes(run_before, stage_flags, step, folder_run):
    run, flags = run_before("samples"), stage_flags["samples"]
    code, error = interrupt(signal.SIGINT, make_sample_data, run / "log", "--run-dir", run, *flags)
    assert code == 130, error
    assert error.count("\n") == 1 and "SIGINT" in error
    assert (run / "samples" / "resume.pt").exists()
    assert step("samples", run, *flags, "--resume") == 0
    first, second = (x / "samples" / "selection.csv" for x in (folder_run, run))
    assert first.read_bytes() == second.read_bytes()


# --- the states of a stage folder ---------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_an_unfinished_stage_asks_for_resume_or_overwrite(run_copy, refused, stage_flags, stage):
    (run_copy / stage / "result.json").unlink()
    error = refused(stage, run_copy, *stage_flags[stage])
    assert "--resume" in error and "--overwrite" in error and stage in error


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_stage_is_not_made_again_unasked(run_copy, refused, stage_flags, stage):
    error = refused(stage, run_copy, *stage_flags[stage])
    assert "--resume" in error and "--overwrite" in error and stage in error


@pytest.mark.parametrize("stage", STAGES)
def test_resume_of_a_finished_stage_says_so_and_keeps_it(
    run_copy, step, snapshot, stage_flags, stage, capsys
):
    before = snapshot(run_copy)
    assert step(stage, run_copy, *stage_flags[stage], "--resume") == 0
    assert "finished" in capsys.readouterr().out
    assert snapshot(run_copy) == before


@pytest.mark.parametrize("stage", STAGES)
def test_resume_of_a_finished_stage_removes_what_a_kill_at_its_very_end_has_left(
    run_copy, step, snapshot, stage_flags, stage
):
    before, folder = snapshot(run_copy), run_copy / stage
    for name in ("resume.pt", "resume-1.pt", "scores-0.bin", "model.pt.partial-rose-1", "lock"):
        (folder / name).write_bytes(b"left")
    (folder / "pictures.partial-rose-1").mkdir()  # an export's, which another program may write
    assert step(stage, run_copy, *stage_flags[stage], "--resume") == 0
    (folder / "pictures.partial-rose-1").rmdir()
    assert snapshot(run_copy) == before


def test_the_same_command_with_export_can_be_resumed_when_it_is_finished(
    run_before, step, stage_flags, tmp_path
):
    run, flags = run_before("samples"), (*stage_flags["samples"], "--export", tmp_path / "out")
    assert step("samples", run, *flags) == 0
    assert step("samples", run, *flags, "--resume") == 0


def test_resume_on_an_empty_folder_starts(folder_run, tmp_path, step, stage_flags):
    assert step("teacher", tmp_path, *stage_flags["teacher"], "--resume") == 0
    assert_same_training(tmp_path / "teacher", folder_run / "teacher")


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_starts_anew(run_copy, step, stage_flags, finished):
    teacher = run_copy / "teacher"
    if not finished:
        (teacher / "result.json").unlink()
        (teacher / "resume.pt").write_bytes(b"of the old run")
    old = {path.name for path in teacher.glob("events.out.tfevents.*")}
    flags = (*stage_flags["teacher"], "--epochs 1 --seed 1")
    assert step("teacher", run_copy, *flags, "--overwrite") == 0
    assert len(metrics_of(teacher)) == 1
    assert result_of(teacher)["seed"] == 1
    assert not old & {path.name for path in teacher.glob("events.out.tfevents.*")}
    assert not (teacher / "resume.pt").exists()


def test_an_overwrite_cut_short_leaves_nothing_that_looks_finished(
    run_copy, step, stage_flags, monkeypatch
):
    unlink = Path.unlink

    def last_breath(path, *arguments, **options):
        unlink(path, *arguments, **options)
        raise program.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(Path, "unlink", last_breath)
    assert step("teacher", run_copy, *stage_flags["teacher"], "--overwrite") == 143
    assert not (run_copy / "teacher" / "result.json").exists()


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("teacher", ("--epochs 3",)),
        ("teacher", ("--learning-rate 0.5",)),
        ("teacher", ("--batch-size 5",)),
        ("teacher", ("--seed 1",)),
        ("teacher", ("--labels-per-class 4",)),
        ("samples", ("--k 6",)),
        ("samples", ("--p 1",)),
        ("samples", ("--strategy random",)),
        ("samples", ("--keep-duplicates",)),
        ("samples", ("--min-score 0.5",)),
        ("student", ("--epochs 3",)),
        ("student", ("--model resnet14",)),
        ("finetuned", ("--augment none",)),
    ],
)
def test_resume_with_a_changed_flag_is_refused(run_copy, refused, stage_flags, stage, flags):
    (run_copy / stage / "result.json").unlink()
    error = refused(stage, run_copy, *stage_flags[stage], *flags, "--resume")
    setting = flags[0].split()[0].removeprefix("--")
    assert setting in error or setting.replace("-", "_") in error


def test_resume_takes_the_settings_of_a_training_from_its_folder(
    folder_run, run_before, stage_flags, step, stop_after
):
    run = run_before("student")
    stop_after(1)
    assert step("student", run, *stage_flags["student"]) == 143
    stop_after(10**9)
    assert step("student", run, "--resume") == 0
    assert_same_training(run / "student", folder_run / "student")


def test_resume_is_refused_when_the_parent_has_changed(run_copy, refused, stage_flags):
    (run_copy / "student" / "result.json").unlink()
    with open(run_copy / "samples" / "selection.csv", "a", encoding="utf-8") as file:
        file.write("heldout/ant/0.png,0,0.1,6\n")
    refused("student", run_copy, *stage_flags["student"], "--resume")
