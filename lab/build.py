"""Make the notebooks from lab.py: `python lab/build.py`.

lab.py is a notebook in the py:percent format: a line `# %%` begins a cell, `# %% [markdown]` one of
text.  solutions.ipynb has all of it.  In student.ipynb what lies between `# BEGIN SOLUTION x` and
`# END SOLUTION` is replaced by x, and a cell of text tagged "answer" by a place to write.
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
MARKER = re.compile(r"^# %%( \[markdown\])?(?: tags=\[\"(\w+)\"\])?$", re.MULTILINE)
SOLUTION = re.compile(r"# BEGIN SOLUTION (.*)\n(?:.*\n)*?\s*# END SOLUTION\n?")
PLACE = "*Write your answer here: double-click.*"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def cells(source):
    """Yields (is it text, tag or None, content) of each cell of a py:percent file."""
    _, *parts = MARKER.split(source)
    for text, tag, content in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if text:
            content = re.sub(r"^# ?", "", content, flags=re.MULTILINE)
        yield bool(text), tag, content.strip("\n")


def notebook(source, student):
    """-> the notebook, as the text of its file.

    student: False for the solutions
    """
    made = []
    for text, tag, content in cells(source):
        if student:
            content = PLACE if tag == "answer" else SOLUTION.sub(r"\1\n", content + "\n").strip()
        else:
            content = re.sub(r"^ *# (BEGIN|END) SOLUTION.*\n?", "", content, flags=re.MULTILINE)
        new_cell = new_markdown_cell if text else new_code_cell
        metadata = {"tags": [tag] if tag else []}
        made.append(new_cell(content, id=f"cell-{len(made)}", metadata=metadata))
    return nbformat.writes(new_notebook(cells=made, metadata={"kernelspec": KERNEL})) + "\n"


def main():
    source = (FOLDER / "lab.py").read_text(encoding="utf-8")
    for name, student in (("student", True), ("solutions", False)):
        (FOLDER / f"{name}.ipynb").write_text(notebook(source, student), encoding="utf-8")


if __name__ == "__main__":
    main()
