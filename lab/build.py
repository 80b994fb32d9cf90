"""Make the notebooks and the sheet from lab.md: `python lab/build.py`.

lab.md is the one source.  A block that begins with three backticks and `python` is a cell of code,
all else is text; a line `<!-- x -->` begins another cell of text.  The word after `python` or in
the comment says what is special:

task       has a solution, between `# BEGIN SOLUTION x` and `# END SOLUTION`, which only
           solutions.ipynb shows; the student finds x there.  Its last line checks the answer
answer     a text that only solutions.ipynb shows; the student finds a place to write
notebook   for the notebooks alone
sheet      for README.md alone, which the terminal's `python -m lab 3` belongs to
"""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
MARK = re.compile(
    r"^```python(?: (\w+))?\n(.*?)\n```$|^<!-- ([^\n]*) -->$", re.MULTILINE | re.DOTALL
)
SOLUTION = re.compile(r"# BEGIN SOLUTION (.*)\n(?:.*\n)*?\s*# END SOLUTION\n?")
CHECK = re.compile(r"^checks\.(\w+)\(.*\)$", re.MULTILINE)
PLACE = "*Write your answer here: double-click.*"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
MINE = '''"""My answers to the lab: replace the three dots, then `python -m lab 0`."""

import statistics

import numpy as np
from torch.nn import functional

SEED = 2  # my seat number
'''


def read_source():
    return (FOLDER / "lab.md").read_text(encoding="utf-8")


def cells(source):
    """Yields (exercise, is it text, tag or None, content); before the first one it is -1."""
    exercise, tag, place = -1, None, 0
    for mark in [*MARK.finditer(source), None]:
        text = source[place : mark.start() if mark else None].strip("\n")
        if heading := re.search(r"^## Exercise (\d+)", text, re.MULTILINE):
            exercise = int(heading[1])
        if text:
            yield exercise, True, tag, text
        if mark and mark[2]:
            yield exercise, False, mark[1], mark[2]
        tag = mark and mark[3]
        tag = tag if tag in ("answer", "notebook", "sheet") else None
        place = mark and mark.end()


def open_task(content):
    """A task's code as the student finds it, and the code that checks the answer."""
    before, end, after = SOLUTION.sub(r"\1\n# END", content + "\n").partition("# END")
    return before.strip("\n"), after.strip("\n") if end else ""


def tasks(source):
    """{the name of a check, such as "2 ranking": the line of code that asks it}"""
    checks = {}
    for exercise, _, tag, content in cells(source):
        if tag == "task":
            check = CHECK.search(content)
            name = f"{exercise} {check[1]}"
            checks[f"{name} again" if name in checks else name] = check[0]
    return checks


def notebook(source, student):
    """-> the notebook, as the text of its file.

    student: False for the solutions
    """
    import nbformat  # of requirements-dev.txt: the terminal's lab does without
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    made = []
    for _, text, tag, content in cells(source):
        if tag == "sheet":
            continue
        if student and tag == "answer":
            content = PLACE
        elif student:
            content = SOLUTION.sub(r"\1\n", content + "\n").strip()
        else:
            content = re.sub(r"^ *# (BEGIN|END) SOLUTION.*\n?", "", content, flags=re.MULTILINE)
        new_cell = new_markdown_cell if text else new_code_cell
        metadata = {"tags": [tag] if tag in ("task", "answer") else []}
        made.append(new_cell(content, id=f"cell-{len(made)}", metadata=metadata))
    return nbformat.writes(new_notebook(cells=made, metadata={"kernelspec": KERNEL})) + "\n"


def sheet(source):
    """-> README.md: the text, what belongs into mine.py, and a command an exercise."""
    parts, told = ["<!-- Made of lab.md by build.py. -->"], -1
    for exercise, text, tag, content in cells(source):
        if text and tag in (None, "sheet"):
            parts.append(content)
        if text or tag == "notebook":
            continue
        if tag == "task":
            parts.append(f"In `lab/mine.py`:\n\n```python\n{open_task(content)[0]}\n```")
        if exercise > told:
            parts.append(f"```\npython -m lab {exercise}\n```")
            told = exercise
        if pictures := re.findall(r'"([\w-]+\.png)"', content):
            parts.append("Look at " + " and ".join(f"`pictures/{name}`" for name in pictures) + ".")
    return "\n\n".join(parts) + "\n"


def answers(source):
    """-> mine.py with all tasks open"""
    open_ones = [
        f"# --- exercise {exercise} ---\n\n{open_task(content)[0]}"
        for exercise, _, tag, content in cells(source)
        if tag == "task"
    ]
    return "\n\n".join([MINE, *open_ones]) + "\n"


def main():
    source = read_source()
    for name, student in (("student", True), ("solutions", False)):
        (FOLDER / f"{name}.ipynb").write_text(notebook(source, student), encoding="utf-8")
    (FOLDER / "README.md").write_text(sheet(source), encoding="utf-8")


if __name__ == "__main__":
    main()
