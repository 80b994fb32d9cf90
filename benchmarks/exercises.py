"""Run the lab's solutions from top to bottom, once a seed: what they print, and how long they take.

    python benchmarks/exercises.py                     # seeds 0 to 4
    python benchmarks/exercises.py --seeds 2

Needs    nbclient (requirements-dev.txt)
Writes   RUNS/seed-<N> and RUNS/sweep, which all seeds share; docs/results/exercises/seed-<N>.txt

lab/teaching.md has the ranges.  What is finished in RUNS is not run again: for seconds give another
--runs.
Processor seconds say how long it takes on a core that does nothing else.
"""

import argparse
import os
import re
import resource
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "exercises"


def execute(source, folder, runs, quick=False):
    """Execute a notebook in a fresh kernel; -> the notebook with its outputs.

    source: the text of its file;  folder: where it runs;  runs: its run folder
    Raises nbclient.exceptions.CellExecutionError for a cell that fails.
    """
    notebook = nbformat.reads(source, 4)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LAB_RUN": str(runs)}
    environment["LAB_QUICK"] = "1" if quick else ""
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}})

    def note(cell, cell_index, execute_reply):
        cell.metadata["processor_seconds"] = processor_seconds(client.km.provisioner.pid)

    client.on_cell_executed = note
    client.execute(env=environment)
    return notebook


def processor_seconds(pid):
    """What a process has used so far; 0 where there is no /proc to say it."""
    file = Path(f"/proc/{pid}/stat")
    fields = file.read_text().rpartition(")")[2].split() if file.exists() else ["0"] * 13
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def by_exercise(notebook):
    """{number of an exercise: its processor seconds}; what comes before exercise 0 is -1."""
    number, before, found = -1, 0, {}
    for cell in notebook.cells:
        if heading := re.match(r"## Exercise (\d+)", cell.source):
            number = int(heading[1])
        if now := cell.metadata.get("processor_seconds"):
            found[number], before = found.get(number, 0) + now - before, now
    return found


def printed(notebook):
    """What the cells have printed: text, as a terminal shows it."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    text = "".join(one["text"] for one in outputs if one.get("name") == "stdout")
    return re.sub(r"[^\n]*\r", "", text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "exercises")
    args = parser.parse_args()
    source = (ROOT / "lab" / "solutions.ipynb").read_text(encoding="utf-8")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        notebook = execute(source.replace("SEED = 2 ", f"SEED = {seed} "), ROOT, args.runs)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        line = f"{cpu:.0f} processor seconds, {time.monotonic() - began:.0f} seconds\n"
        each = ", ".join(f"{n}: {seconds:.0f}" for n, seconds in by_exercise(notebook).items())
        line += f"processor seconds of each exercise (-1: the imports): {each}\n"
        text = f"seed {seed}: {line}{printed(notebook)}"
        (RESULTS / f"seed-{seed}.txt").write_text(text, encoding="utf-8")
        print(f"seed {seed}: {line}", end="")


if __name__ == "__main__":
    main()
