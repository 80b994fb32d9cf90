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
    client.execute(env=environment)
    return notebook


def printed(notebook):
    """What the cells have printed: text."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(one["text"] for one in outputs if one.get("name") == "stdout")


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
        text = f"seed {seed}: {line}{printed(notebook)}"
        (RESULTS / f"seed-{seed}.txt").write_text(text, encoding="utf-8")
        print(f"seed {seed}: {line}", end="")


if __name__ == "__main__":
    main()
