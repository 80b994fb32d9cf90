"""Every file of a stage is the one that was written, or it is refused by name."""

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import words_of

import export
import main
import predict
from data import cache
from data.labelled import load_labelled
from files import sha256_of_file, write_json
from stages import folder as folders
from stages import program, training

STAGES = ("teacher", "samples", "student", "finetuned")
CHILD = {"teacher": "samples", "samples": "student", "student": "finetuned"}
PRODUCTS = {  # stage -> its files that later stages or --resume read
    "teacher": ("model.pt", "config.json", "metrics.jsonl"),
    "samples": ("selection.csv", "scores.npz", "skipped.csv", "config.json"),
    "student": ("model.pt", "config.json"),
    "finetuned": ("model.pt", "config.json"),
}
RECORDS = ("config.json", "result.json")
FILES = [(stage, name) for stage, names in PRODUCTS.items() for name in names]

pytestmark = pytest.mark.usefixtures("quick")


def flip(path, share=0.5):
    """Change one bit of a file, so far from its beginning."""
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def cut(path):
    """Cut a file in its middle, a text at the end of a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def older(stage, said=True):
    """A stage as it was written before there were hashes; `said`: the reader was told already."""
    for name in RECORDS:
        content = folders.read_record(stage / name)
        content.pop("files", None)
        write_json(stage / name, content)
    if said:
        folders.check_file(stage / "config.json")


@pytest.fixture
def refuses(capsys):
    """refuses(program, *arguments) -> the one line of its error, exit code 2."""

    def ask(program, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            program([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1), error
        return error

    return ask


# --- files that are not what was written --------------------------------------------------------


def test_the_result_has_the_hash_of_every_file_and_both_records_their_own(folder_run):
    for stage, name in FILES:
        files = folders.read_record(folder_run / stage / "result.json")["files"]
        assert files[name] == sha256_of_file(folder_run / stage / name)
        content = json.loads((folder_run / stage / "config.json").read_text())
        assert list(content)[-1] == "sha256"


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize(("stage", "name"), FILES)
def test_resume_of_a_finished_stage_looks_at_every_file(
    run_copy, refused, stage_flags, stage, name, harm
):
    harm(run_copy / stage / name)
    error = refused(stage, run_copy, *stage_flags[stage], "--resume")
    assert str(run_copy / stage / name) in error
    assert f"step {STAGES.index(stage) + 1}" in error and "--overwrite" in error


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize(
    ("stage", "name"),
    [(stage, name) for stage in CHILD for name in ("model.pt", "selection.csv", "config.json")
     if (stage, name) in FILES],
)  # fmt: skip
def test_the_next_step_refuses_a_damaged_file(run_before, refused, stage, name, harm):
    run = run_before(CHILD[stage])
    harm(run / stage / name)
    error = refused(CHILD[stage], run)
    assert str(run / stage / name) in error and f"step {STAGES.index(stage) + 1}" in error


@pytest.mark.parametrize("number", range(6))
def test_a_flipped_bit_of_a_network_is_seen_wherever_it_is_read(
    run_copy, refuses, folder_data, stage_flags, tmp_path, number
):
    model = run_copy / "finetuned" / "model.pt"
    flip(model, 0.02 + 0.19 * number)
    image = folder_data / "test" / "ant" / "0.png"
    for path in (model, model.parent):
        error = refuses(predict.main, image, "--checkpoint", path)
        assert f"{model} is not what step 4 wrote" in error
    assert str(model) in refuses(export.main, model.parent, tmp_path / "out")
    own = words_of(stage_flags["teacher"])
    error = refuses(main.main, "--run-dir", tmp_path / "new", "--weights", model, *own)
    assert f"{model} is not what step 4 wrote" in error


@pytest.mark.parametrize("name", ["conv1.weight", "fc.weight", "fc.bias"])
def test_a_lone_or_exported_network_is_checked_too(
    folder_run, refuses, folder_data, tmp_path, name
):
    lone = tmp_path / "lone.pt"
    shutil.copyfile(folder_run / "teacher" / "model.pt", lone)
    tensor = bytes(torch.load(lone, weights_only=True)["state_dict"][name].untyped_storage())
    content = lone.read_bytes()
    flip(lone, (content.index(tensor) + len(tensor) // 2) / (len(content) - 1))  # the zip's CRC
    image = folder_data / "test" / "ant" / "0.png"
    assert str(lone) in refuses(predict.main, image, "--checkpoint", lone)
    with pytest.raises(ValueError, match=r"lone\.pt is damaged"):
        torch.hub.load(str(Path(__file__).parents[1]), "resnet8", source="local",
                       weights=str(lone))  # fmt: skip


def test_an_exported_file_of_other_bytes_is_refused_by_its_name(
    folder_run, refuses, folder_data, tmp_path
):
    export.main([str(folder_run / "teacher"), str(tmp_path / "one")])
    export.main([str(folder_run / "student"), str(tmp_path / "two")])
    (first,), (second,) = (tmp_path.glob(f"{name}/*.pth") for name in ("one", "two"))
    shutil.copyfile(second, first)  # whole, and another network
    image = folder_data / "test" / "ant" / "0.png"
    assert "not as its name says" in refuses(predict.main, image, "--checkpoint", first)
    with pytest.raises(ValueError, match="not as its name says"):
        torch.hub.load(str(Path(__file__).parents[1]), "resnet8", source="local",
                       weights=str(first))  # fmt: skip


def test_a_stage_from_before_there_were_hashes_is_read_with_a_word(run_before, step, capsys):
    run = run_before("samples")
    older(run / "teacher", said=False)
    capsys.readouterr()
    assert step("samples", run, "--unlabeled heldout") == 0
    error = capsys.readouterr().err
    assert f"{run / 'teacher'} is from before" in error and error.count("unchecked") == 1


@pytest.mark.parametrize("where", ["in a name", "in a number", "at the end of a line"])
def test_a_damaged_selection_without_a_hash_names_file_and_line(run_before, refused, where):
    run = run_before("student")
    older(run / "samples")
    path = run / "samples" / "selection.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    if where == "in a name":
        lines[2] = b"\xff" + lines[2][1:]
    elif where == "in a number":
        lines[2] = lines[2].replace(b",0,", b",99999999999999999999,", 1)
    else:
        lines.pop()
    path.write_bytes(b"".join(lines))
    error = refused("student", run)
    assert str(path) in error and ("line 3" in error or "rows" in error)


def test_weights_that_are_not_finite_do_not_blame_the_learning_rate(
    run_before, refused, tmp_path, folder_flags
):
    content = torch.load(run_before("samples") / "teacher" / "model.pt", weights_only=True)
    content["state_dict"]["conv1.weight"][0] = math.nan
    path = tmp_path / "nan.pt"
    torch.save(content, path)
    error = refused("teacher", tmp_path / "new", *folder_flags, "--weights", path)
    assert f"{path}: conv1.weight" in error and "--learning-rate" not in error


# --- unfinished stages --------------------------------------------------------------------------


@pytest.fixture
def unfinished(run_before, step, stage_flags, monkeypatch):
    """unfinished(stage) -> the run, its stage stopped and saved before it was done."""

    def begin(stage):
        run = run_before(stage)
        monkeypatch.setattr(training, "LOOK_SECONDS", -1)
        asked = iter([None] * 4 + [15] if stage != "samples" else [15])
        with monkeypatch.context() as patch:
            patch.setattr(program, "interruption", lambda: next(asked))
            assert step(stage, run, *stage_flags[stage]) == 143
        return run

    return begin


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("teacher", "resume.pt"),
        ("teacher", "config.json"),
        ("samples", "resume.pt"),
        ("samples", "scores-0.bin"),
    ],
)
def test_resume_refuses_a_damaged_state(unfinished, refused, stage_flags, stage, name, harm):
    run = unfinished(stage)
    path = run / stage / name
    if name == "scores-0.bin" and harm is cut:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        harm(path)
    error = refused(stage, run, *stage_flags[stage], "--resume")
    assert str(path) in error and "--overwrite" in error


@pytest.mark.parametrize("content", [{}, [], {"fit": {}}, {"position": 3}])
@pytest.mark.parametrize("stage", ["teacher", "samples"])
def test_a_state_of_another_kind_is_named(unfinished, refused, stage_flags, stage, content):
    path = unfinished(stage) / stage / "resume.pt"
    torch.save(content, path)
    assert str(path) in refused(stage, path.parents[1], *stage_flags[stage], "--resume")


def test_damaged_lines_of_metrics_are_written_anew_by_resume(
    unfinished, step, stage_flags, folder_run
):
    run = unfinished("teacher")
    path = run / "teacher" / "metrics.jsonl"
    flip(path)
    assert step("teacher", run, *stage_flags["teacher"], "--resume") == 0
    lines, expected = (
        [json.loads(line)["train_loss"] for line in (x / "teacher/metrics.jsonl").open()]
        for x in (run, folder_run)
    )
    assert lines == expected


# --- records of another kind --------------------------------------------------------------------

OTHERS = ["null", "[]", "{}", "1", '"x"', "NaN", "", "[" * 100_000, "\xff", '{"stage": "teacher"}']


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_record_of_another_kind_is_named_by_every_reader(
    run_copy, refused, refuses, stage_flags, stage, name, tmp_path
):
    path = run_copy / stage / name
    for content in OTHERS:
        path.write_text(content, encoding="latin-1")
        assert str(path) in refused(stage, run_copy, *stage_flags[stage], "--resume")
        if stage in CHILD:
            assert str(path) in refused(CHILD[stage], run_copy, "--overwrite")
        if stage != "samples":
            assert str(path) in refuses(export.main, path.parent, tmp_path / "out")


@pytest.mark.parametrize("name", RECORDS)
def test_a_field_that_is_missing_is_named_where_it_is_used(folder_run, tmp_path, name):
    content = folders.read_record(folder_run / "teacher" / name)
    for field in content:
        path = tmp_path / name
        path.write_text(json.dumps({n: x for n, x in content.items() if n not in (field, "files")}))
        with pytest.raises(ValueError, match=f"{name} is damaged .it lacks {field}"):
            folders.read_record(path)[field]


@pytest.mark.parametrize("content", [*OTHERS, '{"stage": "teacher", "test_top1": 99.99}'])
def test_whoever_reads_a_result_gets_what_was_written_or_an_error_that_names_it(
    folder_run, tmp_path, content
):
    """As study.py does: whatever stands in the file."""
    stage = Path(shutil.copytree(folder_run / "teacher", tmp_path / "teacher"))
    written = json.loads((stage / "result.json").read_text())
    assert folders.read_records(stage)[1] == {n: x for n, x in written.items() if n != "sha256"}
    edited = json.dumps(written | {"test_top1": 99.99})
    unsealed = json.dumps({n: x for n, x in written.items() if n != "sha256"})
    for text in (content, edited, unsealed):
        (stage / "result.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"result\.json is damaged"):
            folders.read_records(stage)[1]["seed"]


# --- nothing runs that a file says --------------------------------------------------------------


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def hostile(kind, path, trace):
    """A file at `path` that writes the file `trace` when it is unpickled."""
    if kind == "torch":
        torch.save({"fit": Payload(trace), "state_dict": Payload(trace)}, path)
    elif kind == "legacy":
        torch.save([Payload(trace)], path, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    elif kind == "npy":
        with open(path, "wb") as file:
            np.save(file, np.array([Payload(trace)], object), allow_pickle=True)
    else:
        with open(path, "wb") as file:
            np.savez(file, image=np.array([Payload(trace)], object))


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle", "npy", "npz"])
def test_a_payload_leaves_no_trace_wherever_a_file_is_read(
    run_copy, step, refuses, folder_data, stage_flags, tmp_path, kind
):
    trace, image = tmp_path / "trace", folder_data / "test" / "ant" / "0.png"
    for stage in STAGES:
        older(run_copy / stage)  # no hash stands before the reader
    data = shutil.copytree(folder_data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    load_labelled("folder", data, 8)  # fills the cache, whose names depend on the place
    cached = list(data.rglob("images.npy"))
    for path in data.rglob("*.npy"):
        size = path.stat().st_size
        hostile(kind, path, trace)
        os.truncate(path, max(size, path.stat().st_size))
        meta = json.loads((path.parent / "meta.json").read_text())
        del meta["crc32"]  # neither size nor hash is a protection
        meta["bytes"][path.name] = path.stat().st_size
        write_json(path.parent / "meta.json", meta | {"crc32": cache._crc32(meta)})
    payloads = [path.read_bytes() for path in cached]
    for name in ("model.pt", "scores.npz"):
        for path in run_copy.rglob(name):
            hostile(kind, path, trace)
    refuses(predict.main, image, "--checkpoint", run_copy / "finetuned")
    refuses(export.main, run_copy / "teacher", tmp_path / "out")
    for stage in ("samples", "finetuned"):
        assert step(stage, run_copy, "--overwrite") == 2
    assert step("samples", run_copy, *stage_flags["samples"], "--resume") == 0
    (run_copy / "teacher" / "result.json").unlink()
    hostile(kind, run_copy / "teacher" / "resume.pt", trace)
    own = (*stage_flags["teacher"], "--data-dir", data, "--cache-dir", data / "cache")
    assert step("teacher", run_copy, *own, "--resume") == 2
    assert cached and payloads != [path.read_bytes() for path in cached]  # read, and built again
    assert not trace.exists()


def test_a_payload_does_what_it_is_for(tmp_path):
    """The test above could not fail otherwise."""
    for kind, load in (("torch", torch.load), ("pickle", None)):
        hostile(kind, tmp_path / kind, tmp_path / f"{kind}-trace")
        if load:
            load(tmp_path / kind, weights_only=False)
        else:
            pickle.loads((tmp_path / kind).read_bytes())
        assert (tmp_path / f"{kind}-trace").exists()
