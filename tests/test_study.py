"""The study: claims that can be judged, arms that become runs, runs that survive any stop."""

import csv
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Fork

import claims
import study
from claims import PIPELINE, before, labels_alone
from data.labelled import load_labelled
from presets import PRESETS
from trials import runs as runs_module
from trials import sizes as sizes_module
from trials import work as work_module
from trials.arms import Arm, Planner
from trials.claim import Claim
from trials.progress import Rates, Stop
from trials.rows import COLUMNS, chain, read_rows, row_of, write_rows
from trials.runs import Run
from trials.sizes import ALL, LABELLED, Compute, Images, Share, Times, multiply_adds
from trials.statistics import Difference, Table
from trials.work import Place, Work, take_lock

ROOT = Path(__file__).parents[1]
NAMES = tuple(PRESETS)
RIVAL = "labels alone, 1 x pipeline, rate x 2"


def planner(name="demo"):
    arms = {arm.name: arm for claim in claims.claims(name) for arm in claim.arms}
    return Planner(name, claims.base(name), arms)


def flags(run):
    return dict(run.flags)


# --- claims -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_of_the_study_is_one_that_its_step_takes(name):
    plan = planner(name)
    for arm in {arm.name for claim in claims.claims(name) for arm in claim.arms}:
        for run in plan.run(arm, 0).chain():
            folders = ["runs/x/teacher"] * len(run.parents)
            script, *words = run.words("runs/y", folders)
            parsed = importlib.import_module(script.removesuffix(".py")).parse(words)
            assert parsed.threads == 1 and str(parsed.run_dir) == "runs/y", words


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_can_be_run_judged_and_drawn(name):
    found = claims.claims(name)
    least = {"cifar10": 7, "cifar100-cpu": 1}.get(name, 10)
    assert len({claim.name for claim in found}) == len(found) >= least
    for claim in found:
        assert claim.words and claim.paper and claim.tests and claim.rows
        assert claim.beside in {"", *(other.name for other in found)}
        assert claim.bears.startswith(("yes: ", "only in kind: ", "no: ")), claim.name
        assert all(";" not in arm.name for arm in claim.arms)
        assert claim.seeds >= 3 or claim.name == "card"  # one chain, which is no verdict
        assert all(test.smallest > 0 for test in claim.tests)
    assert sum(claim.primary for claim in found) == 1


@pytest.mark.parametrize("name", NAMES)
def test_one_name_is_one_arm(name):
    arms = {}
    for claim in claims.claims(name):
        for arm in claim.arms:
            assert arms.setdefault(arm.name, arm) == arm


def test_the_headline_has_six_seeds_and_a_rival_with_more_settings_than_we_have():
    headline = claims.claims("lab")[0]
    (test,) = headline.tests
    assert headline.name == "pipeline" and headline.seeds == 6
    candidates, rivals = test.sides
    assert len(rivals) > len(candidates) > 1
    arms = planner("lab")
    ours = {arms.compute(arm) for arm in candidates}
    assert len(ours) == 1  # whichever is chosen, the rival's compute is its
    assert all(arms.compute(arm) <= 1.1 * max(ours) for arm in rivals)
    assert sum(arms.compute(arm) >= max(ours) for arm in rivals) >= 3


def test_what_a_claim_names_is_listed_once_and_what_it_says_is_its_docstring():
    claim = {claim.name: claim for claim in claims.claims("study")}["fine-tuning"]
    assert claim.words == "A student needs fine-tuning on true labels."
    assert claim.paper.startswith("Table 2: +2.7") and claim.paper.endswith("supervised one")
    assert [arm.name for arm in claim.arms] == ["pipeline", "pipeline before fine-tuning"]
    assert claim.tests[0].sides == (("pipeline",), ("pipeline before fine-tuning",))


def test_the_digest_is_of_arms_tests_and_seeds_in_whatever_order():
    claim = claims.claims("study")[0]
    assert replace(claim, words="Other words.", more=(), bears="").digest == claim.digest
    assert replace(claim, rows=dict(reversed(claim.rows.items()))).digest == claim.digest
    assert replace(claim, seeds=7).digest != claim.digest
    assert replace(claim, tests=claims.claims("study")[1].tests).digest != claim.digest
    longer = claims.PIPELINE.but("longer", student={"epochs": Images(2)})
    assert replace(claim, rows=claim.rows | {"longer": longer}).digest != claim.digest


def test_every_figure_of_the_paper_stands_beside_a_row_of_ours():
    with open(ROOT / "paper.csv", encoding="utf-8", newline="") as file:
        reported = {(line["claim"], line["row"]) for line in csv.DictReader(file)}
    presets = reversed(NAMES)  # the demo, which has fewer rows, first
    found = {claim.name: claim for name in presets for claim in claims.claims(name)}
    assert reported == {(name, row) for name in found for row in found[name].reported}
    assert all(found[name].reported.keys() <= found[name].rows.keys() for name in found)
    assert found["fine-tuning"].reported == {"fine-tuned": pytest.approx(3.2)}


def test_an_arm_but_for_some_changes_keeps_the_others():
    arm = Arm("a", {"epochs": 2}, student={"k": 1}).but("b", student={"p": 2}, further={}, ends="x")
    assert (arm.name, arm.teacher, arm.student) == ("a, b", {"epochs": 2}, {"k": 1, "p": 2})
    assert (arm.further, arm.ends) == ({}, "x")


def test_digits_are_toys_and_have_no_claim_about_all_labels():
    found = claims.claims("demo")
    assert all(claim.toy for claim in found)
    assert "pipeline-all-labels" not in {claim.name for claim in found}


# --- arms ---------------------------------------------------------------------------------------


def test_one_run_serves_all_arms_that_need_it():
    arms = planner()
    assert arms.run("pipeline", 0).identity == arms.run("resnet8 of resnet8", 0).identity
    one, other = arms.run("K x 4", 0).chain(), arms.run("P = 1", 0).chain()
    assert one[0].identity == other[0].identity and one[1].identity != other[1].identity
    assert arms.run("pipeline", 1).chain()[0].identity != one[0].identity


@pytest.mark.parametrize("name", NAMES)
def test_the_rival_gets_the_whole_compute(name):
    arms = planner(name)
    for arm in arms.arms.values():
        epochs = arm.teacher.get("epochs")
        if isinstance(epochs, Compute) and arm.further is arm.transferred is None:
            whole, own = epochs.factor * arms.compute(epochs.arm), arms.compute(arm.name)
            assert whole <= own <= 1.08 * whole, arm.name


def test_compute_counts_a_training_image_three_times():
    arms = planner("lab")
    cost = multiply_adds("resnet20", 32, 100)
    images = [run.images for run in arms.run("pipeline", 0).chain()]
    assert images == [300_000, 45_500, 360_000, 50_000]
    assert arms.compute("pipeline") == cost * (3 * (300_000 + 360_000 + 50_000) + 45_500)


def test_multiply_adds_are_those_of_the_model_zoo():
    assert multiply_adds("resnet50", 224, 1000) == pytest.approx(4.1e9, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_leaves_the_images_processed_alone(name):
    arms = planner(name)
    usual = arms.run("pipeline", 0).parent.images
    for arm in arms.arms:
        if arm.startswith(("K x", "pool x", "P =", "selection")):
            student = arms.run(arm, 0).parent
            assert student.step == "student" and student.images == pytest.approx(usual, rel=0.15)


def test_flags_are_what_differs_from_the_preset():
    lab = planner("lab")
    assert all(run.flags == () for run in lab.run("pipeline", 0).chain())
    assert flags(lab.run("K x 2", 0).chain()[1]) == {"--k": "400"}
    assert flags(lab.run("K x 2", 0).chain()[2]) == {"--passes": "1"}  # twice the images an epoch
    assert flags(lab.run("P = 1", 0).chain()[1]) == {"--p": "1"}
    assert flags(lab.run("pipeline, fine-tuning rate x 1/3", 0)) == {
        "--learning-rate": "0.00333333"
    }


def test_values_that_hang_on_the_preset():
    arm = Arm(
        "all",
        teacher={"labels_per_class": ALL, "epochs": Images(2), "learning_rate": Times(0.5)},
        samples={"unlabeled": ("tiny-imagenet", "cifar10"), "k": Share(0.2)},
    )
    arms = Planner("lab", PRESETS["lab"], {"all": arm})
    teacher, samples, *_ = arms.run("all", 0).chain()
    assert flags(teacher)["--labels-per-class"] == "480"  # 500 less 20 for validation
    assert flags(teacher)["--learning-rate"] == "0.05"
    assert teacher.images == pytest.approx(600_000, rel=0.05) and teacher.images % 48_000 == 0
    assert flags(samples) == {"--k": "300", "--unlabeled": "tiny-imagenet cifar10"}
    assert samples.images == 150_000


def test_the_sizes_of_the_digits_are_what_they_are(tmp_path):
    digits = load_labelled("digits", tmp_path, 8)
    labels = getattr(digits, "train_labels", None)
    labels = np.asarray(digits.train.labels if labels is None else labels)
    assert LABELLED["digits"] == (10, len(labels), np.bincount(labels).min())


def test_commands_are_those_of_the_four_steps(capsys):
    study.main(["--preset", "demo", "--commands", "K x 4"])
    scripts = [line.split("python ")[1] for line in capsys.readouterr().out.splitlines()]
    assert [script.split()[0] for script in scripts] == [
        "main.py", "make_sample_data.py", "student_train.py", "main.py"
    ]  # fmt: skip
    assert all("--run-dir runs/again" in script for script in scripts)
    assert scripts[0].startswith("main.py --run-dir runs/again --threads 1 --preset demo")


def test_a_transfer_starts_from_the_end_of_an_arm(capsys):
    arms = planner("study")
    few = {"--dataset": "cifar10", "--val-per-class": "200"}
    for arm, script in (("pipeline", "finetuned"), (RIVAL, "teacher")):
        last = arms.run(f"{arm}, to CIFAR-10, linear", 0)
        assert last.parent.identity == arms.run(arm, 0).identity
        assert flags(last).items() >= (few | {"--linear": "True"}).items()
        assert last.multiply_adds * 3 == arms.run(f"{arm}, to CIFAR-10, full", 0).multiply_adds
        study.main(["--commands", f"{arm}, to CIFAR-10, full"])
        command = capsys.readouterr().out.splitlines()[-1]
        assert "python main.py --run-dir runs/again/transferred" in command
        assert f"--weights runs/again/{script}/model.pt" in command and "--linear" not in command


@pytest.mark.parametrize("name", NAMES)
def test_no_image_that_a_network_is_transferred_to_is_in_its_pool(name):
    to = [a for claim in claims.claims(name) for a in claim.arms if a.transferred is not None]
    for arm in to:
        pool = arm.samples.get("unlabeled", claims.base(name).unlabeled)
        assert arm.transferred["dataset"] not in pool
    assert bool(to) == (name in ("study", "lab"))


def test_a_joint_training_has_the_images_of_both_and_one_step_less():
    arms = planner("study")
    joint, both = (arms.run(name, 0).chain()[2:] for name in ("joint training", "pipeline"))
    assert [run.step for run in joint] == ["student"] and "--joint" in flags(joint[0])
    images = [sum(run.images for run in runs) for runs in (joint, both)]
    assert images[0] == pytest.approx(images[1], rel=0.04)


def test_tags_are_part_of_the_compute():
    arms = planner("study")
    tags, weak = arms.run("weak", 0).chain()
    (teacher,) = arms.run("teacher", 0).chain()
    assert flags(tags) == {"--dataset": "tags:tiny-imagenet", "--passes": "1"}  # and 4 epochs
    assert (tags.images, weak.images, weak.flags) == (4 * 90_000, teacher.images, ())
    assert arms.compute("weak") == tags.multiply_adds + teacher.multiply_adds
    assert arms.run("semi-weak", 0).chain()[1].identity == weak.identity != teacher.identity


def test_a_teacher_after_tags_is_found_where_it_was_one_run_with_them(capsys):
    study.main(["--commands", "weak"])
    tags, weak = capsys.readouterr().out.splitlines()
    assert "main.py --run-dir runs/again/tags " in tags and "--dataset tags:tiny-imagenet" in tags
    assert "main.py --run-dir runs/again " in weak
    assert "--weights runs/again/tags/teacher/model.pt" in weak and "weak" not in weak
    whole = [row for row in read_rows(ROOT / "results/runs.csv") if row["arms"] == "weak"]
    runs = [planner("study").run("weak", int(row["seed"])) for row in whole]
    assert [row["key"] for row in whole] == [run.key for run in runs]
    assert [row["identity"] for row in whole] == [run.identity[:16] for run in runs]


def test_a_second_round_starts_from_the_first(capsys):
    arms = planner()
    chain = arms.run("second round", 0).chain()
    assert chain[3].identity == arms.run("pipeline", 0).identity
    assert [run.step for run in chain[4:]] == ["samples again", "student again", "finetuned again"]
    assert [run.flags for run in chain[4:]] == [run.flags for run in chain[1:4]]
    first, second = arms.compute("pipeline"), arms.compute("second round")
    assert second - first == first - chain[0].multiply_adds
    study.main(["--preset", "demo", "--commands", "second round"])
    assert "second-round --threads 1 --teacher runs/again/finetuned" in capsys.readouterr().out


# --- identities ---------------------------------------------------------------------------------

CONFIG = {"precision": "float32", "device_name": "a CPU", "versions": {"torch": "2.14"}}
RUN = Run("teacher", "demo", 0, (("--epochs", "3"),), {"teacher": {"epochs": 30}})


@pytest.mark.parametrize(
    "change",
    [
        {"step": "further"},
        {"preset": "lab"},
        {"seed": 1},
        {"flags": (("--epochs", "4"),)},
        {"values": {"teacher": {"epochs": 31}}},
        {"parent": RUN},
    ],
)
def test_settings_make_a_run(change):
    assert replace(RUN, **change).identity != RUN.identity
    assert replace(RUN, **change).key != RUN.key


def test_numbers_make_another_run_of_the_same_setting(monkeypatch):
    def child():
        return replace(RUN, step="samples", parent=replace(RUN))

    before = child()
    identity = before.identity  # kept
    monkeypatch.setattr(runs_module, "NUMBERS", runs_module.NUMBERS + 1)
    assert child().key == before.key and child().identity != identity


def test_a_young_field_at_its_default_changes_no_key():
    older = replace(RUN, values={"teacher": {"epochs": 30, "resize": ""}})
    newer = replace(RUN, values={"teacher": {"epochs": 30, "resize": "32:0.5"}})
    assert older.key == RUN.key != newer.key


def test_an_ensemble_has_several_parents():
    run = planner("study").run("student of four ResNet-8", 0)
    (samples,) = (one for one in run.chain() if one.step == "samples")
    members = [dict(parent.flags).get("--member") for parent in samples.parents]
    assert members == [None, "1", "2", "3"]
    words = samples.words("here", ["a", "b", "c", "d"])
    assert words[words.index("--teacher") + 1 :][:4] == ["a", "b", "c", "d"]
    assert samples.multiply_adds == 4 * samples.images * multiply_adds("resnet8", 16, 100)


def test_teacher_and_student_each_have_their_own_input_size():
    chain = planner("study").run("student of Lite0 at 96 px", 0).chain()
    sizes = {run.step: dict(run.flags).get("--input-size") for run in chain}
    assert sizes == {"teacher": "96", "samples": None, "student": "16", "finetuned": None}
    scored, trained = chain[1], chain[2]
    assert scored.multiply_adds / scored.images == 70_641_632
    assert trained.multiply_adds / trained.images == 3 * multiply_adds("resnet8", 16, 100)


def test_multiply_adds_known_beforehand_are_those_counted(monkeypatch):
    known = dict(sizes_module.KNOWN)
    monkeypatch.setattr(sizes_module, "KNOWN", {})
    for (model, pixels, classes), count in known.items():
        assert multiply_adds.__wrapped__(model, pixels, classes) == count


# --- locks --------------------------------------------------------------------------------------

HOLD = """
import pathlib, subprocess, sys, time
sys.path.insert(0, {root!r})
from trials.work import take_lock
lock = take_lock(pathlib.Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock,))
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(work_module.fcntl is None, reason="no locks on this system")
def test_a_lock_lives_as_long_as_somebody_has_it(tmp_path):
    path = tmp_path / "run/lock"
    command = [sys.executable, "-c", HOLD.format(root=str(ROOT)), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        assert take_lock(path) is None
        holder.kill()
    assert take_lock(path) is None  # the step goes on without its study.py
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (lock := take_lock(path)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock is not None
    os.close(lock)


# --- several at a time, with steps that only pretend ---------------------------------------------

PRETEND = """
import hashlib, json, pathlib, signal, sys, time
words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
stage = {"make_sample_data.py": "samples", "student_train.py": "student"}.get(
    pathlib.Path(sys.argv[0]).name, "finetuned" if "--student" in sys.argv else "teacher")
folder = pathlib.Path(words["--run-dir"], stage)
folder.mkdir(parents=True, exist_ok=True)
def stop(*_):
    print("state saved", flush=True)
    raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
with open(folder / "started", "a") as file:
    file.write(f"{time.monotonic()}\\n")
parents = [words[name] for name in ("--teacher", "--selection", "--student") if name in words]
assert all(pathlib.Path(parent, "result.json").exists() for parent in parents)
if "--k" in words and words["--k"] == "13":
    print("no luck with thirteen", file=sys.stderr)
    raise SystemExit(1)
time.sleep(float((pathlib.Path(__file__).parent / "seconds").read_text()))
identity = pathlib.Path(words["--run-dir"]).name
number = int(hashlib.sha256(identity.encode()).hexdigest(), 16)
result = {"seconds": 1.0, "val_top1": number % 97, "test_top1": number % 89,
          "images_processed": 100}
if stage == "samples":
    result = {"seconds": 1.0, "pool_size": 100, "selected": 50, "pseudo_label_accuracy": 90.0}
config = {"stage": stage, "precision": "float32", "device_name": "a CPU",
          "versions": {"project": "abc", "torch": "2.14"}}
result |= {"stage": stage, "dataset": "digits", "model": "resnet8", "seed": 0}
(folder / "config.json").write_text(json.dumps(config))
(folder / "partial").write_text(json.dumps(result))
(folder / "partial").rename(folder / "result.json")
"""


@pytest.fixture
def place(tmp_path):
    """A Place with two jobs whose steps are done in `seconds`."""
    root = tmp_path / "root"
    root.mkdir()
    for script in {program[0] for program in runs_module.PROGRAMS.values()}:
        (root / script).write_text(PRETEND)
    (root / "seconds").write_text("0.05")
    return Place(root, tmp_path / "runs", Path("/nowhere"), [None, None])


def chains(*ks, step="finetuned"):
    teacher = Run("teacher", "demo", 0, (), {})
    found = [teacher]
    for k in ks:
        samples = Run("samples", "demo", 0, (("--k", str(k)),), {}, teacher)
        student = Run("student", "demo", 0, (), {}, samples)
        found += [samples, student, Run("finetuned", "demo", 0, (), {}, student)]
    return found


def never():
    return False


def started(run, place):
    lines = (run.folder(place.runs) / "started").read_text().split()
    return [float(line) for line in lines]


def test_every_run_is_run_once_after_its_parent(place):
    wanted = chains(1, 2, 3)
    finished = [run for run in Work(wanted, place).go_on(never) if run]
    assert sorted(run.identity for run in finished) == sorted(run.identity for run in wanted)
    assert all(len(started(run, place)) == 1 for run in wanted)
    again = Work(wanted, place)
    assert again.waiting == [] and list(again.go_on(never)) == []


def test_two_run_at_a_time(place):
    (place.root / "seconds").write_text("0.5")
    wanted, began = chains(1, 2), time.monotonic()
    most = 0
    work = Work(wanted, place)
    for _ in work.go_on(never):
        most = max(most, len(work.at_work))
    assert most == 2
    assert time.monotonic() - began < 7 * 0.5 + 2  # one after the other: 7 starts more


def test_a_failure_stops_its_descendants_only(place):
    wanted = chains(13, 2)
    work = Work(wanted, place)
    finished = [run for run in work.go_on(never) if run]
    assert len(finished) == 4 and len(work.waiting) == 2
    ((run, reason),) = work.failed.values()
    assert run == wanted[1] and reason == "no luck with thirteen"


def test_a_stop_lets_the_children_save_their_state(place):
    (place.root / "seconds").write_text("30")
    work = Work(chains(1), place)
    began = time.monotonic()
    for _ in work.go_on(lambda: (work.waiting[0].run_dir(place.runs).parent.exists()
                                 and bool(list(place.runs.glob("*/*/started"))))):  # fmt: skip
        pass
    assert time.monotonic() - began < 20
    assert (chains(1)[0].run_dir(place.runs) / "log.txt").read_text() == "state saved\n"
    assert all(child.returncode == 143 for _, child in work.at_work.values())


@pytest.mark.skipif(work_module.fcntl is None, reason="no locks on this system")
def test_a_run_that_another_study_is_at_is_waited_for(place):
    teacher, *_ = chains()
    lock = take_lock(teacher.run_dir(place.runs) / "lock")
    work = Work([teacher], place)
    for tick, _ in enumerate(work.go_on(never)):
        assert not work.at_work or lock is None
        if tick == 2:
            os.close(lock)
            lock = None
    assert len(started(teacher, place)) == 1


@pytest.mark.slow
def test_a_cluster_runs_the_same(place):
    """On submitit's own pretended cluster: processes of this machine."""
    pytest.importorskip("submitit")
    from trials.cluster import ClusterPlace

    cluster = ClusterPlace(place.root, place.runs, place.data, [None] * 4, cluster="local")
    wanted = chains(13, 2)
    work = Work(wanted, cluster)
    assert len([run for run in work.go_on(never) if run]) == 4
    assert [reason for _, reason in work.failed.values()] == ["no luck with thirteen"]
    assert all(len(started(run, place)) == 1 for run in wanted[:2] + wanted[4:])


@pytest.mark.parametrize("there", [None, "4,6"])
def test_each_run_has_a_gpu_of_its_own(place, monkeypatch, there):
    monkeypatch.setattr(work_module, "_gpus", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if there:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", there)
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    (place.root / "main.py").write_text(show)
    place.cores, environment = work_module.cores(8)
    wanted = [replace(RUN, seed=seed) for seed in range(8)]
    assert environment == {} and not [run for run in Work(wanted, place).go_on(never) if run]
    shown = [(run.run_dir(place.runs) / "log.txt").read_text().strip() for run in wanted]
    assert sorted(shown) == sorted((there or "0,1,2,3,4,5,6,7").split(",") * (4 if there else 1))


def test_slurm_gets_what_the_flags_say_and_a_requeued_job_goes_on(place, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    from trials.cluster import ClusterPlace

    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", ""), ("sbatch", "echo Submitted batch job 7"), ("scancel", "")):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    words = "--cluster slurm --slurm partition=gpu gpus=1 account=lab time=240 cpus-per-task=6"
    args = study.parse(words.split())
    options = dict(word.split("=", 1) for word in args.slurm)
    cluster = ClusterPlace(place.root, place.runs, place.data, [None], options=options)
    (run,) = chains()
    run.run_dir(place.runs).mkdir(parents=True)
    cluster.start(run, None, None)
    jobs = place.runs / "jobs"
    script = min(jobs.glob("*submission*.sh"))
    lines = script.read_text().splitlines()
    for option in ("partition=gpu", "gpus=1", "account=lab", "time=240", "cpus-per-task=6"):
        assert lines.count(f"#SBATCH --{option}") == 1
    (pickled,) = jobs.glob("*.pkl")
    command = submitit.core.utils.DelayedSubmission.load(pickled).function
    assert "--resume" in command.command
    assert command.checkpoint().function.command == command.command


def test_the_budget_is_a_reason_to_stop():
    assert not Stop()() and not Stop(60)()
    stop = Stop(1e-6)
    time.sleep(0.001)
    assert stop() and stop.spent


def test_the_time_left_follows_the_measured_rate():
    run = replace(RUN, images=100, multiply_adds=100 * 7)
    rates = Rates([{"images": "10", "multiply_adds": "70", "seconds": "35.0"}], 1e9)
    assert rates.seconds(run) == pytest.approx(6 + 350)
    other = replace(RUN, images=100, multiply_adds=100 * 14)  # another network: the mean rate
    assert rates.seconds(other) == pytest.approx(6 + 700)


# --- runs.csv -----------------------------------------------------------------------------------


def test_rows_are_written_whole_and_in_one_order(tmp_path):
    rows = [
        dict.fromkeys(COLUMNS, "") | {"preset": "demo", "seed": seed, "step": step, "key": key}
        for seed in ("10", "9") for step in ("student", "teacher") for key in "ba"
    ]  # fmt: skip
    write_rows(tmp_path / "one.csv", rows)
    random.Random(0).shuffle(rows)
    write_rows(tmp_path / "other.csv", rows)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()
    assert [row["seed"] for row in read_rows(tmp_path / "one.csv")] == ["9"] * 4 + ["10"] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "other.csv"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        read_rows(tmp_path / "other.csv")


# --- study.py as a whole ------------------------------------------------------------------------


def two_claims(preset):
    rivals = [labels_alone(PIPELINE, 0.5), labels_alone(PIPELINE, 0.25)]
    tests = {
        "fine-tuning": Difference(0.5, PIPELINE, before(PIPELINE)),
        "pipeline": Difference(0.5, PIPELINE, rivals),
    }
    about = {"seeds": 4, "words": "It helps.", "toy": "toy"}
    return [Claim({"x": PIPELINE}, [test], name=name, **about) for name, test in tests.items()]


def tiny(preset):
    demo = PRESETS["demo"]
    short = {"epochs": 1, "passes": 1}
    trainings = {
        name: replace(getattr(demo, name), **short) for name in ("teacher", "student", "finetune")
    }
    return replace(demo, input_size=8, labels_per_class=3, val_per_class=2, k=5, **trainings)


def run_study(words, pretend):
    study.claims, study.base, study.TUNING = two_claims, tiny, 2
    if pretend:
        study.ROOT = pretend
    study.main(words)


WITHOUT_TIMES = [name for name in COLUMNS if name not in ("seconds", "commit")]


@pytest.fixture
def driver(tmp_path):
    """driver(name, *flags, pretend=folder of pretended steps) starts study.py; -> Fork"""

    def start(name, *more, pretend=None):
        words = ["--preset", "demo", "--data-dir", tmp_path / "data", "--jobs", 2, *more]
        words += ["--runs-dir", tmp_path / name, "--results", tmp_path / name / "results"]
        return Fork(run_study, [*map(str, words)], pretend, log=tmp_path / f"{name}.log")

    return start


def numbers(folder):
    with open(folder / "results/runs.csv", encoding="utf-8") as file:
        return [[row[name] for name in WITHOUT_TIMES] for row in csv.DictReader(file)]


def killed_at_random(start, kills, seed):
    """Start a study, kill it at a random moment `kills` times, and let it come to its end."""
    rng = random.Random(seed)
    for kill in range(kills):
        process = start()
        process.wait_for_output()  # its runs are under way
        time.sleep(rng.uniform(0, 2))
        process.kill(signal.SIGKILL if kill % 2 else signal.SIGTERM)
    assert start().wait() == 0


def test_a_row_of_another_machine_is_not_replaced_one_of_other_numbers_is(tmp_path, monkeypatch):
    words = ["--preset", "demo", "--runs-dir", str(tmp_path), "--results", str(tmp_path)]
    now = study.Study(study.parse(words))
    student = now.planner.run("pipeline before fine-tuning", 0)
    result = {"seconds": 1.0, "pool_size": 9, "images_processed": 9}
    here, there = (
        [row_of(run, result, CONFIG | {"device_name": cpu}) for run in student.chain()]
        for cpu in ("here", "there")
    )
    write_rows(tmp_path / "runs.csv", there)
    now.done = {run.identity: row for run, row in zip(student.chain(), here, strict=True)}
    assert {row["cpu"] for row in now.rows()} == {"there"}
    now.done[student.identity] = here[-1] | {"precision": "bfloat16"}
    assert len(now.rows()) == 4  # each precision has its own

    write_rows(tmp_path / "runs.csv", [row | {"identity": "other numbers"} for row in there])
    now.done = {student.chain()[0].identity: here[0]}
    found = now.rows()
    assert [row["cpu"] for row in found if row["step"] == "teacher"] == ["here"]
    (last,) = (row for row in found if row["step"] == "student")
    assert len(chain(found, last)) == 3  # its teacher's images still count


def test_an_arm_whose_row_there_is_is_not_run_again(tmp_path):
    words = ["--preset", "demo", "--runs-dir", str(tmp_path), "--results", str(tmp_path)]
    now = study.Study(study.parse([*words, "--claims", "fine-tuning", "--seeds", "1"]))
    result = {"seconds": 1.0, "pool_size": 9, "images_processed": 9}
    result |= {"val_top1": 50.0, "test_top1": 50.0}
    last = now.planner.run("pipeline", 0)
    assert last.identity in now.plan()
    row = row_of(last, result, CONFIG | {"precision": now.precision})
    write_rows(tmp_path / "runs.csv", [row])
    assert last.identity not in now.plan() and now.plan()  # the arm before fine-tuning is left
    write_rows(tmp_path / "runs.csv", [row | {"precision": "another"}])
    assert last.identity in now.plan()


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_rows(tmp_path, driver, place):
    (place.root / "seconds").write_text("0.2")
    assert driver("whole", pretend=place.root).wait() == 0
    killed_at_random(lambda: driver("killed", pretend=place.root), 2, seed=1)
    rows = numbers(tmp_path / "killed")
    assert rows == numbers(tmp_path / "whole")
    # Four seeds of the pipeline's four steps, two of the loser among the rivals, four of the other.
    assert len(rows) == 16 + 2 + 4
    verdicts = (tmp_path / "killed/results/verdicts.md").read_text()
    assert verdicts == (tmp_path / "whole/results/verdicts.md").read_text()
    assert "unfinished" not in verdicts and "| Difference" not in verdicts
    started = [len(path.read_text().split()) for path in tmp_path.glob("whole/*/*/started")]
    assert started == [1] * 22


@pytest.mark.slow
def test_the_real_steps_end_with_rows_that_hold_their_results(tmp_path, driver):
    """The four real steps, a second each on digits."""
    assert driver("real", "--claims", "fine-tuning", "--seeds", 1).wait() == 0
    rows = read_rows(tmp_path / "real/results/runs.csv")
    assert [row["step"] for row in rows] == ["teacher", "samples", "student", "finetuned"]
    table = Table(study.accuracies(rows, "demo"))
    (result,) = (tmp_path / "real").glob("*/finetuned/result.json")
    result = json.loads(result.read_text())
    assert table.accuracies["pipeline"][0] == (result["val_top1"], result["test_top1"])
    assert (tmp_path / "real/results/figures/fine-tuning.svg").exists()
    assert "unfinished" in (tmp_path / "real/results/verdicts.md").read_text()


@pytest.mark.slow
def test_a_spent_budget_and_a_report_from_the_rows_alone(tmp_path, driver, place):
    (place.root / "seconds").write_text("2")
    spent = driver("some", "--budget-minutes", "0.05", pretend=place.root)
    assert spent.wait() == 0 and "the same command goes on" in spent.log.read_text()
    rows = numbers(tmp_path / "some")
    assert len(rows) < 22
    (tmp_path / "some/results").rename(tmp_path / "kept")
    (tmp_path / "some").rename(tmp_path / "gone")
    (tmp_path / "some").mkdir()
    (tmp_path / "kept").rename(tmp_path / "some/results")
    page = tmp_path / "some/results/verdicts.md"
    before = page.read_text()
    page.unlink()
    assert driver("some", "--report", pretend=place.root).wait() == 0
    assert page.read_text() == before


@pytest.mark.parametrize(
    "words, says",
    [
        ("--preset nothing", "there is no preset 'nothing'; choose from"),
        ("--preset demo --claims k nothing", "--claims nothing: choose from pipeline"),
        ("--preset demo --commands nothing", "--commands nothing: choose from"),
        ("--preset demo --seeds 0", "--seeds: must be 1 or more"),
    ],
)
def test_errors_are_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(words.split())
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_a_report_prints_the_claims_that_are_asked_for(tmp_path, capsys):
    words = ["--preset", "demo", "--claims", "k", "p", "--report"]
    study.main([*words, "--runs-dir", str(tmp_path), "--results", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["k", "p"] and "unfinished" in lines[0]
    assert "## pipeline" in (tmp_path / "verdicts.md").read_text(encoding="utf-8")


def test_a_dry_run_lists_the_runs_and_runs_nothing(tmp_path, capsys):
    study.main(["--preset", "demo", "--dry-run", "--claims", "k", "--runs-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "0 of 12" in printed and "K x 0.125" in printed and "30 runs" in printed
    assert list(tmp_path.iterdir()) == []
