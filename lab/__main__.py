"""The lab in a terminal: run an exercise with the answers of lab/mine.py, to the first open task.

    python -m lab 3

Reads    lab/mine.py, which the first call writes with all tasks open
Writes   runs/class/seed-N: the runs, pictures/, and lab.json, which says what has been right
"""

import json
import re
import runpy
import sys
from pathlib import Path

from lab import build
from stages import flags

PREDICT = re.compile(r"^\*\*Predict before you run\.\*\*(?:.+\n?)+", re.MULTILINE)
MINE = Path(__file__).parent / "mine.py"


def parse(argv):
    parser = flags.bare_parser(__doc__)
    parser.prog = "-m lab"
    parser.add_argument("exercise", type=flags.number(int, 0, 8), help="its number, 0 to 8")
    return parser.parse_args(argv)


def main(argv=None):
    number, source = parse(argv).exercise, build.read_source()
    if not MINE.exists():
        MINE.write_text(build.answers(source), encoding="utf-8")
        print(f"{MINE} is yours: your seat number and your answers go there")
    print("torch is imported, which takes some seconds", flush=True)
    mine = runpy.run_path(str(MINE))
    space, names = {}, {line: name for name, line in build.tasks(source).items()}
    for exercise, text, tag, content in build.cells(source):
        if exercise not in (-1, number) or tag in ("notebook", "answer", "sheet"):
            continue
        if text:
            if question := PREDICT.search(content):
                ask(question[0])
            continue
        if tag != "task":
            content = content.replace("SEED = 2 ", f"SEED = {int(mine['SEED'])} ")
            exec(compile(content, f"lab.md, exercise {exercise}", "exec"), space)
            continue
        space |= {name: value for name, value in mine.items() if not name.startswith("_")}
        check = build.open_task(content)[1]
        name = names[build.CHECK.search(check)[0]]
        try:
            exec(compile(check, f"lab.md, exercise {exercise}", "exec"), space)
        except space["checks"].Hint as hint:
            print(f"{name}, in lab/mine.py.  Not yet: {hint}")
            sys.exit(1)
        note(space["RUN"] / "lab.json", name, space["SEED"])


def ask(question):
    """Put a question to who sits there: a guess is worth something only before the result."""
    if sys.stdin.isatty():
        print("\n" + question.replace("**", "").strip())
        input("My guess (then Enter): ")


def note(file, name, seed):
    """Write down that a check was passed."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known = {"seed": seed, "right": sorted({*known.get("right", ()), name})}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
