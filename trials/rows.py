"""results/runs.csv: a row a run, from which every table and figure of the study is made.

identity, key, parent   16 hexadecimal digits: the run's folder; the same for one setting whatever
                        trials.runs.NUMBERS is; the key of the run that it starts from (an
                        ensemble: several, with spaces between them)
preset, step, seed      what was run
arms                    the arms that end with this run, separated by "; "
settings                the flags that differ from the preset
images, multiply_adds   processed; three times the network's for an image of a training, once for
                        one that is scored or of which the last layer alone learns
seconds                 spent, in training or scoring
val_top1, test_top1     percent; empty for a selection
selected, labels_right  rows of a selection; percent of its labels that are right, where known
precision, cpu, torch   of the computation; the CPU or GPU; torch's version
started                 UTC
registered              of each claim that compares the run: its name and the first 8 hexadecimal
                        digits of its digest, see trials.claim.Claim
commit                  the project's

One setting has one row a precision.  A row of another machine is never replaced.
"""

import csv
from pathlib import Path

from files import whole_file

COLUMNS = ("identity", "key", "parent", "preset", "step", "seed", "arms", "settings", "images")
COLUMNS += ("multiply_adds", "seconds", "val_top1", "test_top1", "selected", "labels_right")
COLUMNS += ("precision", "cpu", "torch", "started", "registered", "commit")
STEPS = ("tags", "teacher", "further", "samples", "student", "finetuned")
STEPS += ("samples again", "student again", "finetuned again")  # a second round
STEPS += ("transferred",)


def read_rows(path):
    """-> [{column: text}], empty where there is no file.  Raises ValueError for other columns."""
    path = Path(path)
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has other columns than {', '.join(COLUMNS)}; move it away")
        return list(reader)


def write_rows(path, rows):
    """Write the file whole or not at all, in an order that hangs on the rows alone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(
        rows,
        key=lambda r: (
            r["preset"],
            int(r["seed"]),
            STEPS.index(r["step"]),
            r["key"],
            r["precision"],
        ),
    )
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(order)


def row_of(run, result, config):
    """The row of a finished run, but for its arms.

    run: trials.runs.Run;  result, config: contents of its two files
    """
    images = result.get("images_processed", result.get("pool_size"))
    return {
        "identity": run.identity[:16],
        "key": run.key,
        "parent": " ".join(parent.key for parent in run.parents),
        "preset": run.preset,
        "step": run.step,
        "seed": str(run.seed),
        "arms": "",
        "settings": " ".join(f"{name} {value}" for name, value in run.flags),
        "images": str(images),
        "multiply_adds": str(round(images * run.multiply_adds / run.images)),
        "seconds": str(round(result["seconds"], 2)),
        "val_top1": str(result.get("val_top1", "")),
        "test_top1": str(result.get("test_top1", "")),
        "selected": str(result.get("selected", "")),
        "labels_right": str(result.get("pseudo_label_accuracy", "")),
        "precision": config["precision"],
        "cpu": config["device_name"] or "",
        "torch": config["versions"]["torch"],
        "started": config.get("started", ""),
        "registered": "",
        "commit": (config["versions"].get("project") or "")[:12],
    }


def last_rows(rows, preset):
    """{arm: {seed: row}} of one preset, the row being that of the arm's last run."""
    by_arm = {}
    for row in rows:
        if row["preset"] == preset:
            for arm in filter(None, row["arms"].split("; ")):
                by_arm.setdefault(arm, {})[int(row["seed"])] = row
    return by_arm


def accuracies(rows, preset):
    """{arm: {seed: (validation, test)}} for trials.statistics.Table; percent."""
    return {
        arm: {s: (float(row["val_top1"]), float(row["test_top1"])) for s, row in seeds.items()}
        for arm, seeds in last_rows(rows, preset).items()
    }


def chain(rows, row):
    """A row and those that it came from, the oldest first."""
    by_key = {(other["key"], other["precision"]): other for other in rows}
    wanted = [(key, row["precision"]) for key in row["parent"].split()]
    parents = [by_key[each] for each in wanted if each in by_key]
    return [*(before for parent in parents for before in chain(rows, parent)), row]
