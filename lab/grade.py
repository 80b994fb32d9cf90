"""Points of a class: read the checks of all notebooks in a folder and write points.csv there.

    python -m lab.grade handed-in/

Reads    *.ipynb, saved with their outputs, and lab.json of those who worked in the terminal, in
         folders of any depth; nothing is run
Writes   FOLDER/points.csv: a row a file: seat number, points, each check (1 right, 0 not yet,
         empty: never run), how many answers have been written, and what to look at
"""

import csv
import json
import re
from collections import Counter
from pathlib import Path

from lab import build
from stages import flags


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.prog = "-m lab.grade"
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what was handed in")
    return parser.parse_args(argv)


def text_of(lines):
    return lines if isinstance(lines, str) else "".join(lines)


def read_notebook(path, checks):
    """-> {column: value}, see above.  checks: as build.tasks gives them

    Raises ValueError, KeyError or TypeError for a file that is no notebook.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    row, look = dict.fromkeys(checks, ""), []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    sources = [text_of(cell["source"]) for cell in code]
    seats = re.findall(r"^SEED = (\d+)", "\n".join(sources), re.MULTILINE)
    for name, line in checks.items():
        asked = [cell for cell, source in zip(code, sources, strict=True) if line in source]
        for cell in asked:
            said = "".join(text_of(out.get("text", "")) for out in cell["outputs"])
            row[name] = (
                int(bool(re.search(r"^right: ", said, re.MULTILINE))) if cell["outputs"] else ""
            )
            if re.search(r"right: |def checks|checks\.\w+ *=", text_of(cell["source"])):
                look.append(f"{name}: its cell says what only a check says")
        if not asked:
            look.append(f"{name}: its check has gone")
    texts = [text_of(c["source"]) for c in cells if "answer" in c["metadata"].get("tags", ())]
    written = sum(text.strip() not in ("", build.PLACE) for text in texts)
    return {"seat": seats[-1] if seats else "", **row, "answers": written, "look": "; ".join(look)}


def read_terminal(path, checks):
    """The same of lab.json, which holds no texts."""
    known = json.loads(path.read_text(encoding="utf-8"))
    row = {name: int(name in known["right"]) for name in checks}
    return {"seat": str(known["seed"]), **row, "answers": "", "look": ""}


def main(argv=None):
    folder, checks = parse(argv).folder, build.tasks(build.read_source())
    rows = []
    paths = [p for p in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    for path in [*paths, *sorted(folder.rglob("lab.json"))]:
        read = read_terminal if path.name == "lab.json" else read_notebook
        try:
            row = read(path, checks)
        except (ValueError, KeyError, TypeError, AttributeError):
            row = dict.fromkeys(("seat", *checks, "answers"), "") | {"look": "cannot be read"}
        rows.append({"file": path.relative_to(folder).as_posix(), **row})
    if not rows:
        raise SystemExit(
            f"{folder} holds no .ipynb and no lab.json; name the folder of what was handed in"
        )
    seats = Counter(row["seat"] for row in rows)
    for row in rows:
        if row["seat"] and seats[row["seat"]] > 1:
            row["look"] = f"{seats[row['seat']]} files have this seat; {row['look']}".strip("; ")
        row["points"] = sum(row[name] == 1 for name in checks)
    columns = ["file", "seat", "points", *checks, "answers", "look"]
    with open(folder / "points.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} files, {len(checks)} checks: {folder / 'points.csv'}")


if __name__ == "__main__":
    main()
