"""The report page, read as a browser reads it: parsed, pictures decoded, numbers compared."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SHORT, make_digits_run, run_step

from data.labelled import load_labelled
from report.__main__ import main
from report.mcnemar import paired_difference
from report.page.render import render
from stages.folder import STAGES as STAGES_AND_FILES
from stages.folder import read_record, sealed
from stages.lifetime import chain_settings
from stages.whole_run import command_of, read_run, rival_of

VOID = {"meta", "link", "img", "input", "br"}
TRAININGS = ("teacher", "student", "finetuned")
STAGES = list(STAGES_AND_FILES)


class Page(HTMLParser):
    """The elements of a page, [(name, attributes)], the text in each, the texts of the whole."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.texts, self.open = [], [], []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append([name, dict(attributes), ""])
        if name not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, name, attributes):
        self.elements.append([name, dict(attributes), ""])

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        if self.open and self.open[-1][0] not in ("script", "style"):
            self.texts.append(text)
        for element in self.open:
            element[2] += f" {text}"  # the cells of a row apart

    def all(self, name, **attributes):
        return [
            (found, text.strip())
            for one, found, text in self.elements
            if one == name and attributes.items() <= found.items()
        ]

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def write(run, *others):
    main([str(run), *map(str, others)])


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """page_of(run) -> the Page of a copy of it, made once."""
    made = {}

    def page(run):
        if run not in made:
            file = tmp_path_factory.mktemp("page") / "page.html"
            write(run, "--output", file)
            made[run] = Page(file)
        return made[run]

    return page


@pytest.fixture
def page(page_of, digits_run):
    return page_of(digits_run)


def result_of(run, stage):
    return read_record(run / stage / "result.json")


def test_nothing_is_fetched_from_elsewhere(page):
    assert "://" not in page.source
    for name, attributes, _ in page.elements:
        assert name not in ("iframe", "object", "base")
        for key in ("src", "href", "action", "poster"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (name, attributes)
        assert "srcset" not in attributes
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", page.source))
    assert not [attributes for attributes, _ in page.all("script") if attributes]


def test_every_picture_has_a_size_and_a_text(page):
    pictures, charts = page.all("img"), page.all("svg")
    assert len(pictures) >= 50 and len(charts) == 6
    for attributes, _ in pictures:
        assert int(attributes["width"]) and int(attributes["height"]) and attributes["alt"]
        kind, _, content = attributes["src"].partition(",")
        assert kind == "data:image/webp;base64"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 1)
        assert decoded.shape == (8, 8, 3)  # --input-size 8
    for attributes, _ in charts:
        assert int(attributes["width"]) and int(attributes["height"])
        assert (attributes["role"], bool(attributes["aria-label"])) == ("img", True)


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for attributes, _ in page.all("a")]
    targets += [attributes["href"] for attributes, _ in page.all("use")]
    targets += re.findall(r"url\((#[^)]*)\)", page.source)
    assert targets and {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_filter_has_the_classes_and_each_has_its_pictures(page, digits_run):
    options = [text for _, text in page.all("option")]
    assert options == ["all classes", *map(str, range(10))]
    counts = result_of(digits_run, "samples")["per_class_counts"]
    kinds = ("right", "wrong", "none")
    marked = [a["data-label"] for a, _ in page.all("li") if a.get("class") in kinds]
    assert [marked.count(str(label)) for label in range(10)] == counts


def test_every_class_has_its_share_right_after_each_training(page, digits_run, tmp_path):
    number = r"([\d.]+)"
    row = re.compile(rf"(\d) {number} {number} {number} ([+-][\d.]+)")
    texts = (" ".join(text.split()) for _, text in page.all("tr"))
    classes = [list(map(float, found.groups())) for found in map(row.fullmatch, texts) if found]
    assert [line[0] for line in classes] == list(range(10))
    images = np.bincount(load_labelled("digits", tmp_path, 8).test.labels)
    for column, stage in enumerate(TRAININGS, start=1):
        right = [line[column] for line in classes]
        top1 = result_of(digits_run, stage)["test_top1"]
        assert np.average(right, weights=images) == pytest.approx(top1, abs=0.06)
    assert all(line[4] == pytest.approx(line[3] - line[1], abs=0.11) for line in classes)


def test_the_numbers_are_those_of_result_json(page, digits_run):
    for stage in TRAININGS:
        result = result_of(digits_run, stage)
        for name in ("test_top1", "val_top1", "test_top5"):
            assert f"{result[name]:.2f} %" in page.text
        assert f"{result['images_processed']:,}" in page.text
    selected = result_of(digits_run, "samples")
    right, wrong, none, unknown = selected["labels"].values()
    assert unknown == 0 and right + wrong + none == selected["selected"]
    assert f"{right} right, {wrong} wrong" in page.text
    marks = [a.get("class") for a, _ in page.all("li")]
    assert [marks.count(kind) for kind in ("right", "wrong", "none")] == [right, wrong, none]
    of_class = f" ({100 * right / (right + wrong):.2f} % without these)" if none else ""
    assert f"{100 * right / selected['selected']:.2f} % of {selected['selected']} rows" in page.text
    assert of_class in page.text


def test_the_page_begins_with_what_the_run_says(page, digits_run):
    (_, sentence), teacher, student = page.all("h1")[0], *shares(digits_run, "teacher", "finetuned")
    assert f"The student is right for {student:.1f}\N{NO-BREAK SPACE}% of the 599" in sentence
    assert f"its teacher for {teacher:.1f}\N{NO-BREAK SPACE}%; one seed." in sentence
    answers = [answers_of(digits_run, stage) for stage in ("finetuned", "teacher")]
    gap, low, high, _ = paired_difference(*answers)
    assert gap == pytest.approx((student - teacher) / 100, abs=1e-4)
    interval = f"{100 * gap:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}], 599 test images"
    assert f"Student minus teacher: {interval}" in page.text
    starts = [
        page.source.index(text) for text in ("<h1>", 'id="accuracy"', "<nav", "The four steps")
    ]
    assert starts == sorted(starts)


def shares(run, *stages):
    return [result_of(run, stage)["test_top1"] for stage in stages]


def answers_of(run, stage):
    with np.load(run / stage / "predictions.npz", allow_pickle=False) as columns:
        return columns["test_top1"] == columns["test_label"]


def test_confusions_are_counts_beside_percent_under_upright_names(page, digits_run):
    for number, stage in enumerate(TRAININGS):
        _, text = page.all("table", **{"class": "matrix"})[number]
        assert text.split()[:11] == ["true", *map(str, range(10))]
        counts = [int(count) for count, _ in re.findall(r"(\d+)\s+(\d+) %", text)]
        assert sum(counts) == 599  # each count, then its percent
        right = answers_of(digits_run, stage).sum()
        assert f"{right} of 599 test images are right" in page.text
    shares = [
        float(a["style"].split(":")[1].rstrip("%")) for a, _ in page.all("td") if "style" in a
    ]
    assert min(shares) >= 0 and max(shares) <= 100


def test_every_chart_has_its_table(page, digits_run):
    figures = page.all("figure")
    assert len(figures) == len(page.all("svg")) + len(page.all("table", **{"class": "matrix"}))
    assert len(page.all("table")) >= len(figures)


def test_the_learning_curves_follow_each_other(page, digits_run):
    ((_, curves),) = page.all("figure", id="r0-curves")
    rows = re.findall(r"student, pre-trained\s+([\d,]+)\s+([\d.]+)", curves)
    (line,) = (digits_run / "student" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    teacher, samples, student = (result_of(digits_run, stage) for stage in STAGES[:3])
    images = teacher["images_processed"] + samples["scored"] + student["images_processed"]
    assert rows == [(f"{images:,}", f"{json.loads(line)['val_top1']:.2f}")]


def test_a_run_begun_shows_what_there_is(run_before, capsys):
    run = run_before("student")
    write(run)
    page = Page(run / "report.html")
    assert page.text.count("not run yet") == 2
    assert f"{result_of(run, 'teacher')['test_top1']:.2f} %" in page.text
    assert "The teacher is right for" in page.text and "teacher wrong" in page.text
    assert f"written to {run / 'report.html'}" in capsys.readouterr().out


def test_runs_side_by_side_show_what_differs(digits_run, folder_run, tmp_path):
    for run in (digits_run, folder_run):
        shutil.copytree(run / "teacher", tmp_path / run.parent.name / "teacher")
    write(*(tmp_path / run.parent.name for run in (digits_run, folder_run)))
    page = Page(tmp_path / "report.html")  # in the folder that they share
    assert not page.all("article")  # each run has its own page, which is linked
    links = [attributes["href"] for attributes, _ in page.all("a")]
    assert links == ["digits0/report.html", "folder0/report.html"]
    assert all((tmp_path / link).exists() for link in links)
    rows = [text.split() for _, text in page.all("tr")]
    assert ["dataset", "digits", "folder"] in rows
    assert "cannot be told" not in page.text  # other test images: nothing is paired


@pytest.fixture(scope="module")
def side_by_side(digits_run, tmp_path_factory):
    """A run, its rival, a run of the same teacher with K = 2, and the same run with seed 1."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(digits_run, runs / "run")
    words = rival_of(runs / "run")
    own = (*words[2:4], *words[words.index("--run-dir") + 2 :])
    assert run_step("teacher", runs / "run-rival", *own) == 0
    teacher = ("--teacher", runs / "run" / "teacher")
    assert run_step("samples", runs / "k2", *teacher, "--k 2") == 0
    assert run_step("student", runs / "k2", SHORT) == 0
    assert run_step("finetuned", runs / "k2", f"{SHORT} --learning-rate 0.005") == 0
    make_digits_run(runs, "seed-1", seed=1)
    return runs


def test_a_rival_is_a_rival(side_by_side):
    write(side_by_side / "run", side_by_side / "run-rival")
    page = Page(side_by_side / "report.html")
    run, other = side_by_side / "run", side_by_side / "run-rival"
    (student,), (rival,) = shares(run, "finetuned"), shares(other, "teacher")
    pair = answers_of(run, "finetuned"), answers_of(other, "teacher")
    gap, low, high, _ = paired_difference(*pair)
    assert 100 * gap == pytest.approx(student - rival, abs=0.01)
    row = f"{100 * gap:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    rows = [" ".join(text.split()) for _, text in page.all("tr")]
    (found,) = (text for text in rows if text.startswith("Student minus labels alone"))
    assert row in found and found.endswith("599 test images, one seed")
    assert f"the labels alone with equal compute for {rival:.1f}" in page.text
    assert not [text for text in rows if re.search(r" -( |$)", text)]
    # Its own page has the rival, too.
    own = Page(side_by_side / "run" / "report.html")
    assert "labels alone, equal compute" in own.text


def test_runs_of_one_teacher_show_it_once_and_what_differs_first(side_by_side):
    write(side_by_side / "run", side_by_side / "k2")
    page = Page(side_by_side / "report.html")
    (teacher,) = shares(side_by_side / "run", "teacher")
    assert f"All start from one teacher: {teacher:.2f}" in page.text
    rows = [text.split() for _, text in page.all("tr")]
    assert ["k", "5", "2"] in rows and ["p", "2"] in rows  # what differs, and what is folded
    assert not [row for row in rows if row[0] == "teacher"]
    assert page.text.index("What differs") < page.text.index("Settings that are the same")
    assert "k2 minus run" in page.text


def test_seeds_have_a_mean_a_spread_and_a_paired_interval(side_by_side):
    write(side_by_side / "run", side_by_side / "seed-1")
    page = Page(side_by_side / "report.html")
    ours = [
        *shares(side_by_side / "run", "finetuned"),
        *shares(side_by_side / "seed-1", "finetuned"),
    ]
    assert f"{np.mean(ours):.2f} ± {np.std(ours, ddof=1):.2f}" in page.text
    (found,) = (text for _, text in page.all("tr") if "Student minus teacher" in text)
    assert found.endswith("2 seeds") and "means of 2 seeds" in page.text


def test_make_rival_starts_what_it_says_and_ends_with_the_command_of_the_page(
    side_by_side, tmp_path
):
    run = tmp_path / "my run; touch HERE $(touch HERE)"
    shutil.copytree(side_by_side / "run", run)
    shutil.copytree(side_by_side / "run-rival", f"{run}-rival")  # finished: --resume has no work
    root = Path(__file__).parents[1]
    words = ["make", "-s", "-f", root / "Makefile", "-C", root, "-o", ".venv/installed", "rival"]
    done = subprocess.run(
        [*words, f"RUN={run}", f"BIN={Path(sys.executable).parent}"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert shlex.split(first)[:4] == ["python", "main.py", "--preset", "demo"]
    assert shlex.split(last) == ["python", "-m", "report", str(run), f"{run}-rival"]
    assert not list(root.glob("HERE")) and not list(tmp_path.glob("HERE"))


# --- damaged files, and text of strangers --------------------------------------------------------


FILES = ("teacher/metrics.jsonl", "teacher/predictions.npz", "samples/scores.npz")
FILES += ("samples/skipped.csv", "samples/selection.csv", "finetuned/config.json")


def reseal(run, file):
    """Make a changed file the one that its stage wrote."""
    path = run / file
    result = json.loads((path.parent / "result.json").read_text())
    del result["sha256"]
    result["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "result.json").write_text(json.dumps(sealed(result)))


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_its_stage_did_not_write_is_named(file, run_copy, capsys):
    content = (run_copy / file).read_bytes()
    (run_copy / file).write_bytes(content.replace(b"1", b"2", 1) + b" ")
    assert_refused(run_copy, file, capsys)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("teacher/metrics.jsonl", b"[" * 100_000),
        ("teacher/metrics.jsonl", b""),
        ("teacher/metrics.jsonl", b"{}\n"),
        ("student/metrics.jsonl", b"\xff"),
        ("teacher/predictions.npz", b"PK\x03\x04 no zip"),
        ("teacher/predictions.npz", b"\x80\x04pickle"),
        ("samples/scores.npz", b""),
        ("samples/skipped.csv", b"image,reason\n" + b"x" * 200_000 + b",y\n"),
        ("samples/skipped.csv", b"image,reason\nalone\n"),
        ("samples/skipped.csv", b"image,reason\nnowhere,at all\n"),
        ("samples/selection.csv", b"image,label,score,rank\nnowhere,0,0.5,1\n"),
    ],
)
def test_no_content_of_a_file_is_a_traceback(file, content, run_copy, capsys):
    (run_copy / file).write_bytes(content)
    reseal(run_copy, file)
    if file == "samples/selection.csv":
        shutil.rmtree(run_copy / "student")  # it would be the first to tell
    assert_refused(run_copy, file, capsys)


def test_answers_to_other_images_are_refused(run_copy, capsys):
    path = run_copy / "teacher" / "predictions.npz"
    with np.load(path, allow_pickle=False) as columns:
        columns = {name: column[::-1] for name, column in columns.items()}
    np.savez(path, **columns)
    reseal(run_copy, "teacher/predictions.npz")
    assert_refused(run_copy, "teacher/predictions.npz", capsys)


def assert_refused(run, file, capsys):
    with pytest.raises(SystemExit) as stop:
        write(run)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and file in error, error


def test_a_run_from_before_answers_were_kept_says_what_is_missing(run_copy):
    for stage in TRAININGS:
        (run_copy / stage / "predictions.npz").unlink()
    write(run_copy)
    page = Page(run_copy / "report.html")
    assert "no predictions.npz" in page.text and "The four steps" in page.text


def test_names_are_text_whatever_they_say(folder_run, tmp_path):
    hostile = "$<script>alert(1)</script>\"'&{{ 1 }}"
    classes = (hostile, "bee", "crab", "dove")
    run = replace(read_run(folder_run), classes=classes, folder=tmp_path / hostile)
    (tmp_path / "page.html").write_text(render(run, None, command_of))
    page = Page(tmp_path / "page.html")
    assert len(page.all("script")) == 1
    assert hostile in [text for _, text in page.all("option")]
    (_, commands) = page.all("pre")[0]
    assert shlex.split(commands)  # quoted for a shell


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_a_run_is_refused_in_one_line(there, tmp_path, capsys):
    run = tmp_path / "run"
    if there:
        run.mkdir()
    with pytest.raises(SystemExit) as stop:
        write(run)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert str(run) in error and "python main.py" in error
    assert not (run / "report.html").exists()


def test_the_commands_make_the_run_again(folder_run, stage_flags):
    for stage in STAGES:
        config = read_record(folder_run / stage / "config.json")
        words = command_of(folder_run, config)
        own = words[words.index("--run-dir") + 2 :]
        given = [str(word) for flag in stage_flags[stage] for word in str(flag).split()]
        pairs = set(zip(given[::2], given[1::2], strict=True)) - {("--preset", "demo")}
        if stage == "samples":
            assert own == ["--unlabeled", "heldout", "--k", "5"]  # P = 2 is the preset's
        else:
            assert set(zip(own[::2], own[1::2], strict=True)) <= pairs | {("--mixup", "0.2")}
            assert ("--epochs", "2") in set(zip(own[::2], own[1::2], strict=True))


def test_the_rival_of_a_run_processes_as_many_images_on_the_labels_alone(folder_run, folder_flags):
    words = rival_of(folder_run)
    assert words[:6] == f"python main.py --preset demo --run-dir {folder_run}-rival".split()
    results = [json.loads((folder_run / s / "result.json").read_text()) for s in STAGES]
    trained = [result["images_processed"] for result in results if "images_processed" in result]
    (scored,) = (result["scored"] for result in results if "scored" in result)
    own = dict(zip(words[6::2], words[7::2], strict=True))
    an_epoch = trained[0] / 2
    assert abs(int(own.pop("--epochs")) * an_epoch - sum(trained) - scored) <= an_epoch / 2
    given = [word for flag in folder_flags for word in flag.split()]
    assert own.items() <= set(zip(given[::2], given[1::2], strict=True))


def test_a_value_that_begins_with_a_dash_is_no_flag(folder_run):
    config = read_record(folder_run / "teacher" / "config.json") | {"data_dir": "--overwrite"}
    words = command_of(Path("-run"), config)
    assert "--data-dir=--overwrite" in words and "--run-dir=-run" in words


def test_a_teacher_of_another_folder_is_named_in_the_command(side_by_side):
    config = read_record(side_by_side / "k2" / "samples" / "config.json")
    words = command_of(side_by_side / "k2", config)
    teacher = Path(words[words.index("--teacher") + 1])
    assert teacher == side_by_side.resolve() / "run" / "teacher" / "model.pt"


def test_the_table_of_runs_has_the_settings_of_the_whole_chain(folder_run):
    config = read_record(folder_run / "finetuned" / "config.json")
    found = chain_settings(folder_run / "finetuned", config)
    assert (found["stage"], found["k"], found["p"], found["strategy"]) == (
        "finetuned", 5, 2, "ranked"
    )  # fmt: skip
    rates = [found[f"{stage} learning_rate"] for stage in TRAININGS]
    assert rates == [0.05, 0.05, 0.005]
