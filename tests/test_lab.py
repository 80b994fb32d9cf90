"""The lab: notebooks and sheet are what lab.md says, they run, the checks know right from wrong."""

import ast
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.exercises import by_exercise, execute, printed
from lab import __main__ as terminal
from lab import build, checks, grade, slides
from ranking import select
from report import figures

ROOT = Path(__file__).parents[1]
LAB = ROOT / "lab"
SOURCE = build.read_source()
TASKS = list(build.tasks(SOURCE))


def book(student):
    return nbformat.reads(build.notebook(SOURCE, student), 4)


def code(notebook, task):
    """The code cells that are tasks, or those that are not."""
    found = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in found if ("task" in cell.metadata.tags) == task]


# --- one source ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, student", [("student", True), ("solutions", False)])
def test_the_notebooks_are_what_the_builder_makes(name, student):
    made = build.notebook(SOURCE, student)
    nbformat.validate(nbformat.reads(made, 4))
    assert (LAB / f"{name}.ipynb").read_text(encoding="utf-8") == made, "run python lab/build.py"
    assert "SOLUTION" not in made


def test_the_sheet_is_what_the_builder_makes_and_asks_every_task():
    made = build.sheet(SOURCE)
    assert (LAB / "README.md").read_text(encoding="utf-8") == made, "run python lab/build.py"
    assert "SOLUTION" not in made
    for *_, tag, content in build.cells(SOURCE):
        if tag == "task":
            assert build.open_task(content)[0] in made
        assert tag != "answer" or content not in made
    assert re.findall(r"^python -m lab (\d)$", made, re.MULTILINE)[1:] == list("012345678")


def test_the_afternoon_has_eleven_checks_and_what_follows_two():
    assert len(TASKS) == 13
    assert sum(int(name[0]) < 6 for name in TASKS) == 11


def test_every_exercise_asks_for_a_prediction_and_an_explanation_and_says_what_to_expect():
    for number in range(9):
        text = "\n".join(c for n, is_text, _, c in build.cells(SOURCE) if n == number and is_text)
        assert terminal.PREDICT.search(text) and "**Explain.**" in text
        assert "**Expect**" in text, number


def test_the_student_notebook_differs_in_the_tasks_and_the_answers_alone():
    student, solutions = book(True), book(False)
    assert len(code(student, task=True)) == len(TASKS)
    for ours, theirs in zip(student.cells, solutions.cells, strict=True):
        assert ours.metadata == theirs.metadata
        tags = ours.metadata.tags
        assert (ours.source != theirs.source) == bool(tags), ours.source
        assert ("# your answer" in ours.source) == (tags == ["task"])
        assert (ours.source == build.PLACE) == (tags == ["answer"])
        assert "# your answer" not in theirs.source


def test_a_solution_is_replaced_where_it_stands():
    source = (
        "<!-- the source -->\n# Text\n\nmore\n\n```python task\ndef f(x):\n"
        "    # BEGIN SOLUTION ...  # yours\n    if x:\n        return 1\n    # END SOLUTION\n"
        "\n\nchecks.f(f)\n```\n\n<!-- answer -->\nBecause.\n\n<!-- sheet -->\nType.\n"
    )
    sources = [
        [cell.source for cell in nbformat.reads(build.notebook(source, student), 4).cells]
        for student in (True, False)
    ]
    assert sources == [
        ["# Text\n\nmore", "def f(x):\n    ...  # yours\n\n\nchecks.f(f)", build.PLACE],
        ["# Text\n\nmore", "def f(x):\n    if x:\n        return 1\n\n\nchecks.f(f)", "Because."],
    ]
    assert build.answers(source).endswith("def f(x):\n    ...  # yours\n")
    assert build.sheet(source).endswith("```\n\nType.\n")


def names(sources, context):
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)} | {
        n.name
        for source in sources
        for n in ast.parse(source).body
        if isinstance(n, ast.FunctionDef) and context is ast.Store
    }


def test_no_cell_needs_the_answer_to_a_task():
    solutions = book(False)
    tasks, others = code(solutions, task=True), code(solutions, task=False)
    answers = names(tasks, ast.Store) - names(others, ast.Store)
    assert {"to_network", "mistake", "with_p_1", "verdict", "batch"} <= answers
    assert not answers & names(others, ast.Load)


def test_an_exercise_needs_no_other_one():
    """So that the terminal can run each by itself, and a student can begin anywhere."""
    first = {}
    for number, is_text, _, content in build.cells(SOURCE):
        if not is_text:
            tree = content.replace("# BEGIN SOLUTION", "pass  #")
            first.setdefault(number, []).append(tree)
    given = names(first[-1], ast.Store) | {"checks"}
    given |= {alias.asname or alias.name for s in first[-1] for node in ast.walk(ast.parse(s))
              if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}  # fmt: skip
    for number in range(9):
        local = names(first[number], ast.Store) | set(dir(__builtins__)) | set(__builtins__)
        local |= {
            a.arg for s in first[number] for a in ast.walk(ast.parse(s)) if isinstance(a, ast.arg)
        }
        assert not names(first[number], ast.Load) - local - given, number


def test_the_code_of_the_cells_has_no_lint():
    text = "\n\n\n".join(code(book(False), task=False) + code(book(False), task=True)) + "\n"
    command = [sys.executable, "-m", "ruff", "check", "--ignore", "E402,F811,I001,E305,E303", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


# --- running ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_solutions_run_and_the_student_notebook_stops_at_open_tasks_only(tmp_path):
    """In one kernel: of each task first the student's cell, then the solution's."""
    both, student = book(False), book(True)
    both.cells = []
    for theirs, ours in zip(student.cells, book(False).cells, strict=True):
        if ours.metadata.tags == ["task"]:
            theirs.metadata.tags.append("raises-exception")  # the run goes on after it
            theirs.id += "-open"
            both.cells.append(theirs)
        both.cells.append(ours)
    done = execute(nbformat.writes(both), LAB, tmp_path / "runs", quick=True)
    stopped = [
        (cell.id.endswith("-open"), output.ename, "Not yet" in output.traceback[0])
        for cell in done.cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    assert stopped == [(True, "Hint", True)] * 13
    text = printed(done)
    assert len(re.findall(r"^right: ", text, re.MULTILINE)) == 13
    assert "step 4: the student is fine-tuned" in text
    assert len(re.findall(r"^done: ", text, re.MULTILINE)) == 4 and "run 1 of" not in text
    assert by_exercise(done).keys() == set(range(-1, 9))
    run = tmp_path / "runs" / "seed-2"
    assert (run / "pictures" / "5-photos.png").stat().st_size > 10_000

    slides.main([str(run)])
    pdf = (run / "slides.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 10

    handed_in = tmp_path / "handed-in"
    handed_in.mkdir()
    (handed_in / "solved.ipynb").write_text(nbformat.writes(done), encoding="utf-8")
    (handed_in / "open.ipynb").write_text(build.notebook(SOURCE, True), encoding="utf-8")
    grade.main([str(handed_in)])
    rows = {row["file"]: row for row in points(handed_in)}
    assert rows["solved.ipynb"]["points"] == "13" and rows["open.ipynb"]["points"] == "0"


def test_the_terminal_stops_at_the_first_open_task_and_goes_on_after_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "MINE", tmp_path / "mine.py")
    monkeypatch.setattr(checks.kit, "QUICK", True)
    with pytest.raises(SystemExit) as stopped:
        terminal.main(["0"])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert (
        "mine.py is yours" in said and "0 axes, in lab/mine.py.  Not yet: the task is open" in said
    )

    mine = (tmp_path / "mine.py").read_text(encoding="utf-8")
    solved = mine.replace("SEED = 2", "SEED = 5").replace(
        "...  # your answer", "return np.moveaxis(image, 2, 0)", 1
    )
    (tmp_path / "mine.py").write_text(solved, encoding="utf-8")
    terminal.main(["0"])
    said = capsys.readouterr().out
    assert "right: every pixel" in said and "$ python main.py --run-dir" in said
    run = tmp_path / "runs" / "class" / "seed-5"
    assert f"picture: {Path('runs', 'class', 'seed-5', 'pictures', '0-both-ways.png')}" in said
    assert json.loads((run / "lab.json").read_text()) == {"seed": 5, "right": ["0 axes"]}


def test_the_terminal_asks_for_a_guess_where_somebody_sits(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    terminal.ask("**Predict before you run.** How many?")
    assert asked and capsys.readouterr().out == "\nPredict before you run. How many?\n"


def test_the_first_cell_fetches_the_project_where_there_is_none(tmp_path):
    """With a small project in a repository of its own in place of the address."""
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "lab").mkdir(parents=True)
    here.mkdir()
    (there / "lab" / "checks.py").write_text("found = 'the project'\n", encoding="utf-8")
    (there / "requirements.txt").write_text("", encoding="utf-8")
    git = ["git", "-C", str(there), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *words], check=True)
    cell = code(book(True), task=False)[0]
    cell = re.sub(r"^ADDRESS = .*$", f"ADDRESS = {there.as_uri()!r}", cell, flags=re.MULTILINE)
    look = f"{cell}\nfrom lab import checks\nprint(checks.found)\n"
    for _ in range(2):  # a second time it is there
        done = subprocess.run(
            [sys.executable, "-P", "-c", look], cwd=here, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (0, "the project\n"), done.stderr
        look = look.replace(repr(there.as_uri()), "'nowhere'")
        here = here / "project"


# --- a class ------------------------------------------------------------------------------------


def points(folder):
    with open(folder / "points.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def handed_in(outputs, seed=2, answer="Because.", edit=None):
    """A student's notebook with outputs of its checks.  outputs: {name of a check: text}"""
    notebook = book(True)
    lines = build.tasks(SOURCE)
    for cell in notebook.cells:
        cell.source = cell.source.replace("SEED = 2 ", f"SEED = {seed} ")
        for name, text in outputs.items():
            if lines[name] in cell.source:
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        if edit:
            cell.source = edit(cell.source)
    next(c for c in notebook.cells if "answer" in c.metadata.tags).source = answer
    return nbformat.writes(notebook)


def test_the_points_of_sixty_notebooks_are_one_table(tmp_path):
    for seat in range(60):
        folder = tmp_path / f"student {seat}"
        folder.mkdir()
        right = {"0 axes": "right: every pixel", "1 mistake": "Not yet: right: no"}
        (folder / "lab.ipynb").write_text(handed_in(right, seat), encoding="utf-8")
    grade.main([str(tmp_path)])
    rows = points(tmp_path)
    assert len(rows) == 60 and {row["seat"] for row in rows} == set(map(str, range(60)))
    for row in rows:
        assert (row["points"], row["0 axes"], row["1 mistake"]) == ("1", "1", "0")
        assert (row["2 ranking"], row["answers"], row["look"]) == ("", "1", "")


def test_what_is_odd_about_a_notebook_is_said(tmp_path):
    (tmp_path / "a.ipynb").write_text(handed_in({}), encoding="utf-8")
    forged = handed_in(
        {}, edit=lambda s: s.replace("checks.axes(", "print('right: ')\nchecks.axes(")
    )
    (tmp_path / "b.ipynb").write_text(forged, encoding="utf-8")
    gone = handed_in({}, 7, edit=lambda s: s.replace("checks.trapped(trap, trapped)", ""))
    (tmp_path / "c.ipynb").write_text(gone, encoding="utf-8")
    (tmp_path / "d.ipynb").write_text("[]", encoding="utf-8")
    (tmp_path / "lab.json").write_text('{"seed": 9, "right": ["0 axes"]}', encoding="utf-8")
    grade.main([str(tmp_path)])
    assert [(row["file"], row["points"], row["look"]) for row in points(tmp_path)] == [
        ("a.ipynb", "0", "2 files have this seat"),
        ("b.ipynb", "0", "2 files have this seat; 0 axes: its cell says what only a check says"),
        ("c.ipynb", "0", "3 trapped: its check has gone"),
        ("d.ipynb", "0", "cannot be read"),
        ("lab.json", "1", ""),
    ]


def test_a_folder_without_answers_is_said_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no \.ipynb"):
        grade.main([str(tmp_path)])


def test_slides_name_the_pictures_that_are_missing(tmp_path):
    with pytest.raises(SystemExit, match=r"lacks 0-both-ways\.png, 1-labelled\.png"):
        slides.main([str(tmp_path)])


def test_the_lab_has_ten_slides_and_their_pictures_are_made_by_it():
    made = set(re.findall(r'"([\w-]+\.png)"', SOURCE))
    wanted = {picture for picture, _, _ in slides.PAGES if picture.endswith(".png")}
    assert len(slides.PAGES) == 10 and wanted <= made


# --- the checks ---------------------------------------------------------------------------------


def refused(hint, check, *answer):
    with pytest.raises(checks.Hint, match=hint):
        check(*answer)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda x: None, "the task is open"),
        (lambda x: x, "becomes"),
        (lambda x: x.reshape(3, 4, 5), "moves no axis"),
        (lambda x: x.transpose(2, 1, 0), "on its side"),
        (lambda x: x[..., ::-1].transpose(2, 0, 1), "red and blue"),
        (lambda x: x[::-1].transpose(2, 0, 1), "not where they were"),
    ],
)
def test_axes(wrong, hint):
    checks.axes(lambda x: np.moveaxis(x, 2, 0))
    refused(hint, checks.axes, wrong)


def test_mistake():
    matrix = np.array([[9, 0, 1], [2, 7, 0], [0, 1, 8]])
    for right in ((1, 0), [1.0, 0.0], np.array([1, 0]), torch.tensor([1.0, 0.0]).numpy()):
        checks.mistake(matrix, right)
    for answer, hint in [
        (..., "open"),
        (5, "a pair"),
        ((1, ...), "open"),
        ((3, 0), "from 0 to 2, not 3"),
        ((-1, 0), "from 0 to 2, not -1"),
        ((1.5, 0), "from 0 to 2, not 1.5"),
        ((float("nan"), 0), "from 0 to 2, not nan"),
        (("1", "0"), "from 0 to 2, not '1'"),
        ((1, 1), "diagonal"),
        ((0, 1), "other way round"),
        ((0, 2), "happens 1 times"),
    ]:
        refused(hint, checks.mistake, matrix, answer)


SCORES = [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.7, 0.1, 0.2], [0.3, 0.4, 0.3]]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (..., "open"),
        ({0: [...], 1: [...], 2: [...]}, "open"),
        ({0: ..., 1: ..., 2: ...}, "open"),
        ({0: 2, 1: [3], 2: []}, "list of images"),
        ({0: [2, 0]}, "keys"),
        ({0: [2, 4], 1: [3], 2: []}, "an image is a whole number from 0 to 3, not 4"),
        ({0: [2], 1: [3], 2: [2]}, "P and K are exchanged"),
        ({0: [2, 0], 1: [3, 0], 2: []}, "class 1: image 0 is no candidate"),
        ({0: [2, 2], 1: [3], 2: []}, "twice"),
        ({0: [2, 0, 1], 1: [3], 2: []}, "K is 2"),
        ({0: [2], 1: [3], 2: []}, "keep more"),
        ({0: [2, 1], 1: [3], 2: []}, "left out"),
        ({0: [0, 2], 1: [3], 2: []}, "the best comes first"),
    ],
)
def test_by_hand(answer, hint):
    for right in ({0: [2, 0], 1: [3], 2: []}, {0: np.array([2.0, 0]), 1: (3,), 2: np.array([])}):
        checks.by_hand(SCORES, 1, 2, right)
    refused(hint, checks.by_hand, SCORES, 1, 2, answer)


def changed(rows, change):
    return [change(*row) for row in rows]


def later_wins(scores, p, k):
    """The last image instead of the first wins a tie."""
    last = len(scores) - 1
    return changed(select(scores[::-1], p, k), lambda i, c, x, rank: (last - i, c, x, rank))


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda s, p, k: None, "open"),
        (lambda s, p, k: [row[:2] for row in select(s, p, k)], "tuples"),
        (lambda s, p, k: 5, "list of"),
        (lambda s, p, k: select(s, k, p), "P and K are exchanged"),
        (lambda s, p, k: select(s, 3, k), "P is not used"),
        (lambda s, p, k: select(s, p, 99), "K is not used"),
        (lambda s, p, k: select(s, p, k)[:k], "for every class"),
        (lambda s, p, k: changed(select(s, p, k), lambda i, c, x, r: (i, c, x, r - 1)), "with 1"),
        (lambda s, p, k: changed(select(s, p, k), lambda i, c, x, r: (c, i, x, r)), "exchanged"),
        (lambda s, p, k: sorted(select(s, p, k)), "order is not"),
        (lambda s, p, k: changed(select(s, p, k), lambda i, c, x, r: (i, c, 1.0, r)), "scores"),
        (lambda s, p, k: select(s, p, k)[:-1], "class 2 is to keep more"),
        (later_wins, "ties between images"),
    ],
)
def test_ranking(wrong, hint):
    refused(hint, checks.ranking, wrong)


def test_a_ranking_may_be_an_array_of_floats():
    checks.ranking(select)
    checks.ranking(lambda s, p, k: np.array(select(s, p, k), np.float32))
    checks.ranking(lambda s, p, k: [list(row) for row in select(s, p, k)])


def test_the_last_line_of_rankings_hint_says_what_is_wrong_and_its_first_is_words():
    with pytest.raises(checks.Hint) as raised:
        checks.ranking(lambda s, p, k: select(s, p, 99))
    first, *table, last = str(raised.value).splitlines()
    assert first == "P = 1 and K = 1, with P = 1, K = 1 and these scores"
    assert last == "K is not used"
    assert len(table) == 4 and table[0] == "  image 0: [0.6, 0.3, 0.1]"


def test_no_case_has_more_scores_than_one_can_read():
    for _, scores, p, k in checks.ranking_cases():
        assert len(scores) <= 4 and {len(row) for row in scores} == {3} and p <= 3 and k <= 4


def test_patches():
    label = np.arange(10).repeat(3)
    is_patch = np.arange(30) < 5
    right = [3, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    checks.patches(label, is_patch, right)
    refused("open", checks.patches, label, is_patch, ...)
    refused("10 numbers", checks.patches, label, is_patch, [5])
    refused("all rows", checks.patches, label, is_patch, [3] * 10)
    refused("6 patches in all", checks.patches, label, is_patch, [3, 3, *right[2:]])
    refused("the sum is right", checks.patches, label, is_patch, [2, 3, *right[2:]])


def test_gains():
    top1 = {"teacher": 90.0, "student": 85.0, "finetuned": 94.0}
    for right in ([-5, 9], np.array([-5.0, 9.0]), (-4.99, 9)):
        checks.gains(top1, right)
    for answer, hint in [
        (..., "open"),
        ([5, 9], "step 3: the sign"),
        ([-5, 4], "not with the teacher"),
        ([85, 94], "subtract"),
        ([-5.5, 9], "step 3: subtract"),
        (["a", "b"], "list of 2 numbers"),
        ([float("nan"), 9], "nan and infinity"),
    ]:
        refused(hint, checks.gains, top1, answer)


@pytest.mark.parametrize(
    "answer, near",
    [
        (1.67, True),
        (1.7, True),
        (1.6, True),
        (1.671, False),
        (2, False),
        (1.5, False),
        (1.65, False),
    ],
)
def test_a_rounded_number_is_right_to_the_digits_that_it_shows(answer, near):
    """At least one, and the last one may be that of a difference of rounded numbers."""
    assert checks._near(answer, 1.6694) is near
    assert checks._near(float(np.float32(1.6694)), 1.6694)


def test_trapped():
    recall = {"teacher": np.array([99.0, 41, 80]), "student": np.array([95.0, 40, 60])}
    for right in (2, 2.0, np.int64(2)):
        checks.trapped(recall, right)
    for answer, hint in [
        (..., "open"),
        (3, "from 0 to 2"),
        (1.5, "from 0"),
        (1, "compare both"),
        (0, "4.0 points"),
    ]:
        refused(hint, checks.trapped, recall, answer)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda x: None, "open"),
        (lambda x: (0, np.std(x, ddof=1)), "mean"),
        (lambda x: (np.mean(x), np.std(x)), "n - 1"),
        (lambda x: (np.mean(x), np.var(x, ddof=1)), "root"),
        (lambda x: (np.mean(x), 1), "is wrong"),
    ],
)
def test_mean_and_sd(wrong, hint):
    checks.mean_and_sd(lambda x: (np.mean(x), np.std(x, ddof=1)))
    checks.mean_and_sd(lambda x: np.round([np.mean(x), np.std(x, ddof=1)], 2))
    refused(hint, checks.mean_and_sd, wrong)


def test_verdict():
    ours, rival = [90.0, 92.0, 93.0], [89.0, 88.0, 91.0]
    checks.verdict(ours, rival, [1.0, 4.0, 2.0], "open")
    checks.verdict(ours, rival, np.array([1.0, 4.1, 2.0]), "open")
    checks.verdict(ours, [80.0, 82.0, 83.1], [10.0, 10.0, 9.9], "better")
    checks.verdict([80.0, 82.0, 83.1], ours, [-10.0, -10.0, -9.9], "worse")
    for differences, answer, hint in [
        (..., ..., "open"),
        ([-1, -4, -2], "open", "not the student from the rival"),
        ([1, 2, 4], "open", "same seed"),
        ([1, 4, 2], "yes", '"better"'),
        ([1, 4, 2], "better", "contain 0"),
    ]:
        refused(hint, checks.verdict, ours, rival, differences, answer)


def test_photos(tmp_path, pictures):
    refused("open", checks.photos, tmp_path)
    pictures(tmp_path / "some", 2, seed=0)
    folder = tmp_path / "some"
    refused("at least three", checks.photos, folder)
    (folder / "no-sheep.png").write_bytes((folder / "0.png").read_bytes())
    checks.photos(folder)
    (folder / "cat.png").write_bytes((folder / "0.png").read_bytes())
    refused("a name begins", checks.photos, folder)
    (folder / "cat.png").write_bytes(b"no image")
    refused("cat.png is no image", checks.photos, folder)


def step(*, train=True, rate=True, augmented=True, forget=True, move=True, targets=True):
    """A step of exercise 8 that lacks what is False."""

    def batch(model, optimizer, augment, images, labels, given):
        model.train(train)
        if rate:
            optimizer.param_groups[0]["lr"] = given
        inputs, mixed = (
            augment(images, labels) if augmented else (images.permute(0, 3, 1, 2), labels)
        )
        loss = functional.cross_entropy(model(inputs.float()), mixed if targets else labels)
        if forget:
            optimizer.zero_grad()
        loss.backward()
        if move:
            optimizer.step()

    return batch


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (lambda *everything: None, "the task is open"),
        (step(train=False), "batch norm"),
        (step(rate=False), "rate is"),
        (step(augmented=False), "once a step"),
        (step(forget=False), "step 2 is the first with other bits"),
        (step(move=False), "no weight has moved"),
        (step(targets=False), "the first step ends with other bits"),
    ],
)
def test_a_step_of_ones_own_has_the_bits_of_the_engines(wrong, hint):
    refused(hint, checks.batch, wrong)


def test_the_engines_own_step_is_right_and_is_no_change(monkeypatch, capsys):
    monkeypatch.setattr(checks.kit, "own_student", lambda *words: 90.0)
    checks.batch(step())
    refused("change a line", checks.changed, step(), None, None)
    refused("open", checks.changed, lambda *everything: None, None, None)
    checks.changed(step(targets=False), None, None)
    assert "its student: 90.00 %" in capsys.readouterr().out


def test_a_figure_of_classes_shows_a_class_that_is_lost():
    recall = {"teacher": np.full(10, 90.0), "student": np.r_[0.0, np.full(9, 92)]}
    figure = checks.kit.by_class(recall | {"finetuned": np.full(10, 93.0)}, np.arange(10), "Lost")
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert drawn["student"][0] == 0 and len(drawn) == 3
    assert isinstance(figure, type(figures.blank(1, 1)))
