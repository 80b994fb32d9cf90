"""The lab: its notebooks are what lab.py says, they run, and the checks know right from wrong."""

import ast
from pathlib import Path

import nbformat
import numpy as np
import pytest

from benchmarks.exercises import execute, printed
from lab import build, checks
from ranking import select

LAB = Path(__file__).parents[1] / "lab"
SOURCE = (LAB / "lab.py").read_text(encoding="utf-8")


def book(student):
    return nbformat.reads(build.notebook(SOURCE, student), 4)


def code(notebook, task):
    """The code cells that are tasks, or those that are not."""
    found = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in found if ("task" in cell.metadata.tags) == task]


# --- the notebooks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name, student", [("student", True), ("solutions", False)])
def test_the_notebooks_are_what_the_builder_makes(name, student):
    made = build.notebook(SOURCE, student)
    nbformat.validate(nbformat.reads(made, 4))
    assert (LAB / f"{name}.ipynb").read_text(encoding="utf-8") == made, "run python lab/build.py"
    assert "SOLUTION" not in made


def test_the_student_notebook_differs_in_the_tasks_and_the_answers_alone():
    student, solutions = book(True), book(False)
    assert len(code(student, task=True)) == 11
    for ours, theirs in zip(student.cells, solutions.cells, strict=True):
        assert ours.metadata == theirs.metadata
        tags = ours.metadata.tags
        assert (ours.source != theirs.source) == bool(tags), ours.source
        assert ("# your answer" in ours.source) == (tags == ["task"])
        assert (ours.source == build.PLACE) == (tags == ["answer"])
        assert "# your answer" not in theirs.source


def test_a_solution_is_replaced_where_it_stands():
    source = (
        '# %% [markdown]\n# Text\n#\n# more\n# %% tags=["task"]\ndef f(x):\n'
        "    # BEGIN SOLUTION ...  # yours\n    if x:\n        return 1\n    # END SOLUTION\n"
        "\n\nf(1)\n"
        '# %% [markdown] tags=["answer"]\n# Because.\n'
    )
    sources = [
        [cell.source for cell in nbformat.reads(build.notebook(source, student), 4).cells]
        for student in (True, False)
    ]
    assert sources == [
        ["Text\n\nmore", "def f(x):\n    ...  # yours\n\n\nf(1)", build.PLACE],
        ["Text\n\nmore", "def f(x):\n    if x:\n        return 1\n\n\nf(1)", "Because."],
    ]


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
    assert {"to_network", "mistake", "with_p_1", "verdict"} <= answers
    assert not answers & names(others, ast.Load)


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
    done = execute(nbformat.writes(both), tmp_path, tmp_path / "runs", quick=True)
    stopped = [
        (cell.id.endswith("-open"), output.ename, "Not yet" in output.traceback[0])
        for cell in done.cells
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    assert stopped == [(True, "Hint", True)] * 11
    text = printed(done)
    assert text.count("right: ") == 11
    assert "step 4: the student is fine-tuned" in text
    assert (tmp_path / "runs" / "seed-2" / "photos.png").stat().st_size > 10_000


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
    checks.mistake(matrix, (1, 0))
    for answer, hint in [
        (..., "open"),
        (5, "2 numbers"),
        ((3, 0), "from 0 to 2"),
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
        ({0: [2, 0], 1: [3, 0], 2: []}, "class 1: image 0 is no candidate"),
        ({0: [2, 2], 1: [3], 2: []}, "twice"),
        ({0: [2, 0, 1], 1: [3], 2: []}, "K is 2"),
        ({0: [2], 1: [3], 2: []}, "keep more"),
        ({0: [2, 1], 1: [3], 2: []}, "left out"),
        ({0: [0, 2], 1: [3], 2: []}, "the best comes first"),
    ],
)
def test_by_hand(answer, hint):
    checks.by_hand(SCORES, 1, 2, {0: [2, 0], 1: [3], 2: []})
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
    checks.ranking(select)
    refused(hint, checks.ranking, wrong)


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
    checks.gains(top1, [-5, 9])
    for answer, hint in [
        (..., "open"),
        ([5, 9], "step 3: the sign"),
        ([-5, 4], "not with the teacher"),
        ([85, 94], "subtract"),
    ]:
        refused(hint, checks.gains, top1, answer)


def test_trapped():
    recall = {"teacher": np.array([99.0, 41, 80]), "student": np.array([95.0, 40, 60])}
    checks.trapped(recall, 2)
    for answer, hint in [(..., "open"), (3, "from 0 to 2"), (1, "compare both"), (0, "4.0 points")]:
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
    refused(hint, checks.mean_and_sd, wrong)


def test_verdict():
    ours, rival = [90.0, 92.0, 93.0], [89.0, 88.0, 91.0]
    checks.verdict(ours, rival, [1.0, 4.0, 2.0], "open")
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
