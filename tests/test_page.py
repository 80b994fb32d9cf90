"""The report page, read as a browser reads it: parsed, pictures decoded, numbers compared."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from data.labelled import load_labelled
from report.__main__ import main
from stages.folder import STAGES, read_record
from stages.whole_run import command_of, rival_of

VOID = {"meta", "link", "img", "input", "br"}
TRAININGS = ("teacher", "student", "finetuned")


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
    main([str(run), *map(str, others), "--device", "cpu"])


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
    assert len(pictures) >= 50 and len(charts) == 8
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
    marked = [a["data-label"] for a, _ in page.all("li") if a.get("class") in ("right", "wrong")]
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
    assert (marks.count("right"), marks.count("wrong")) == (right, wrong + none)


def test_the_test_images_are_predicted_as_at_the_end_of_the_stage(page, digits_run):
    for stage in ("teacher", "finetuned"):
        share = result_of(digits_run, stage)["test_top1"]
        assert f"{share:.1f}\N{NO-BREAK SPACE}% of 599 test images are right" in " ".join(
            page.texts
        )


def test_every_chart_has_its_table(page, digits_run):
    figures = page.all("figure")
    assert len(figures) == len(page.all("svg"))
    assert len(page.all("table")) >= len(figures)
    ((_, curves),) = page.all("figure", id="r0-curves")
    rows = re.findall(r"student, pre-trained\s+([\d,]+)\s+([\d.]+)", curves)
    (line,) = (digits_run / "student" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    images = result_of(digits_run, "student")["images_processed"]
    assert rows == [(f"{images:,}", f"{json.loads(line)['val_top1']:.2f}")]


def test_a_run_begun_shows_what_there_is(run_before, capsys):
    run = run_before("student")
    write(run)
    page = Page(run / "report.html")
    assert page.text.count("not run yet") == 2
    assert f"{result_of(run, 'teacher')['test_top1']:.2f} %" in page.text
    assert "The teacher is wrong" in page.text
    assert f"written to {run / 'report.html'}" in capsys.readouterr().out


def test_runs_side_by_side_show_what_differs(digits_run, folder_run, tmp_path):
    for run in (digits_run, folder_run):
        shutil.copytree(run / "teacher", tmp_path / run.parent.name / "teacher")
    write(*(tmp_path / run.parent.name for run in (digits_run, folder_run)))
    page = Page(tmp_path / "report.html")  # in the folder that they share
    assert len(page.all("article")) == 2 and len(page.all("select")) == 2
    rows = [text.split() for _, text in page.all("tr")]
    assert ["dataset", "digits", "folder"] in rows
    assert not [row for row in rows if row[:1] == ["seed"] and row[1:] == ["0", "0"]]
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


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
        words = command_of(folder_run, config).split()
        own = words[words.index("--run-dir") + 2 :]
        given = [str(word) for flag in stage_flags[stage] for word in str(flag).split()]
        pairs = set(zip(given[::2], given[1::2], strict=True)) - {("--preset", "demo")}
        if stage == "samples":
            assert own == ["--unlabeled", "heldout", "--k", "5"]  # P = 2 is the preset's
        else:
            assert set(zip(own[::2], own[1::2], strict=True)) <= pairs | {("--mixup", "0.2")}
            assert ("--epochs", "2") in set(zip(own[::2], own[1::2], strict=True))


def test_the_rival_of_a_run_processes_as_many_images_on_the_labels_alone(folder_run, folder_flags):
    words = rival_of(folder_run).split()
    assert words[:6] == f"python main.py --preset demo --run-dir {folder_run}-rival".split()
    results = [json.loads((folder_run / s / "result.json").read_text()) for s in STAGES]
    trained = [result["images_processed"] for result in results if "images_processed" in result]
    (scored,) = (result["scored"] for result in results if "scored" in result)
    own = dict(zip(words[6::2], words[7::2], strict=True))
    an_epoch = trained[0] / 2
    assert abs(int(own.pop("--epochs")) * an_epoch - sum(trained) - scored) <= an_epoch / 2
    given = [word for flag in folder_flags for word in flag.split()]
    assert own.items() <= set(zip(given[::2], given[1::2], strict=True))
