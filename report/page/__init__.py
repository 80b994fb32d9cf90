"""The report page: one HTML file of one or more runs that opens from disk, nothing fetched.

steps     the four steps, the learning curves, the settings
selected  what step 2 has kept and left out
tested    what the networks say of the test images
parts     charts and pictures as the template takes them
embed     figures as inline SVG, pictures as data URIs
"""

from pathlib import Path

import jinja2

from data.labelled import called
from report import curves
from report.tables import TRAININGS, flat

from . import selected, steps, tested
from .parts import NONE, chart

FOLDER = Path(__file__).parent
_UNCOMPARED = ("stage", "parent.", "versions.", "inputs.", "pools.", "normalisation.", "data_dir")


def render(runs, command_of):
    """The page as text.

    runs: one or more stages.whole_run.WholeRun;  command_of: see `steps.settings`
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    names = short_names([run.folder for run in runs])
    sections = [
        run_facts(run, f"r{number}", name, command_of)
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    together = comparison(dict(zip(names, runs, strict=True))) if len(runs) > 1 else None
    return environment.get_template("page.html").render(runs=sections, together=together)


def short_names(folders):
    """A name for each folder: its last part, the whole path where several share that."""
    last = [folder.resolve().name for folder in folders]
    return [
        name if last.count(name) == 1 else str(folder)
        for name, folder in zip(last, folders, strict=True)
    ]


def run_facts(run, uid, name, command_of):
    """What the template says of a run.  uid: begins the ids of its elements"""
    config = next(iter(run.stages.values())).config
    facts = {"uid": uid, "name": name, "classes": run.classes, "steps": steps.steps(run)}
    facts |= {"seed": config["seed"], "preset": config["preset"]}
    facts["dataset"] = called(config["dataset"], config["data_dir"])
    facts["settings"] = steps.settings(run, command_of)
    facts["learning"] = steps.learning(run, uid) if run.metrics else None
    facts["selection"] = selected.selection(run, uid) if run.rows else None
    facts["left_out"] = selected.left_out(run) if run.rows else None
    facts["confusions"] = tested.confusions(run, uid) if run.logits else []
    facts["mistakes"] = tested.mistakes(run) if run.logits else []
    return facts


def comparison(runs):
    """Runs side by side: accuracies, selections, the settings that differ.  runs: {name: run}"""
    accuracies = {
        name: {
            TRAININGS[s]: run.stages[s].result["test_top1"] for s in TRAININGS if s in run.metrics
        }
        for name, run in runs.items()
    }
    lines = [
        (
            f"{training}, test top-1",
            *(_percent(found.get(training)) for found in accuracies.values()),
        )
        for training in TRAININGS.values()
    ]
    kept = (f"{len(run.rows[0]):,}" if run.rows else NONE for run in runs.values())
    lines.append(("rows kept", *kept))
    right = (steps.labels_text(run) if run.rows else NONE for run in runs.values())
    lines.append(("labels right", *right))
    lines += _differences(runs)
    tops = [
        (name, *(_percent(found.get(training)) for training in TRAININGS.values()))
        for name, found in accuracies.items()
    ]
    last = {
        f"{name}: {TRAININGS[stage]}": steps.curve_of(run, stage)
        for name, run in runs.items()
        for stage in list(run.metrics)[-1:]
    }
    points = [
        (name, f"{images:,}", f"{top1:.2f}")
        for name, curve in last.items()
        for images, top1 in zip(*curve, strict=True)
    ]
    head = ("training", "images processed", "validation top-1, %")
    figure = curves.accuracy_of_runs(accuracies)
    charts = [
        chart(
            figure, "Test top-1 of the runs", "all-accuracy", (("run", *TRAININGS.values()), tops)
        ),
        chart(curves.learning_curves(last), "The last trainings", "all-curves", (head, points)),
    ]
    return {"head": ("", *runs), "rows": lines, "charts": charts}


def _percent(value):
    return NONE if value is None else f"{value:.2f} %"


def _differences(runs):
    """(setting, its value in each run) of what is not the same in all."""
    columns = [{} for _ in runs]
    for column, run in zip(columns, runs.values(), strict=True):
        for stage, found in run.stages.items():
            for name, value in flat(found.config):
                if not name.startswith(_UNCOMPARED):
                    own = name.startswith("training.")
                    column.setdefault(f"{stage}: {name}" if own else name, value)
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [(name, *(column.get(name, NONE) for column in columns)) for name in names]
    return [line for line in lines if len(set(line[1:])) > 1]
