"""The report page: the four steps, the learning curves, the settings."""

import shlex

from report import figures
from report.diagnostics import SelectedRows, count_labels
from report.tables import RIVAL, TRAININGS, flat, labels_right

from .parts import chart


def steps(run):
    """Four cards: number, title, what goes in, the number that matters, what else there is."""
    titles = {
        "teacher": "Train the teacher",
        "samples": "Rank the pool",
        "student": "Pre-train the student",
        "finetuned": "Fine-tune the student",
    }
    cards = []
    for number, (name, title) in enumerate(titles.items(), start=1):
        card = {"number": number, "title": title, "stage": name}
        if name not in run.stages:
            begun = run.missing[name] == "unfinished"
            card["missing"] = "not finished yet" if begun else "not run yet"
        elif name == "samples":
            card |= _selection_card(run, run.stages[name])
        else:
            card |= _training_card(run, run.stages[name])
        cards.append(card)
    return cards


def _training_card(run, stage):
    config, result = stage.config, stage.result
    per_class = config["labels_per_class"]
    labels = f"{per_class * len(run.classes):,} labelled images" if per_class else "labelled images"
    source = labels
    if stage.name == "student":
        source = f"the selection, {labels if config.get('joint') else 'no true label'}"
    return {
        "source": source,
        "value": f"{result['test_top1']:.2f} %",
        "unit": "of the test images right (top-1)",
        "facts": [
            ("validation top-1", f"{result['val_top1']:.2f} %"),
            ("test top-5", f"{result['test_top5']:.2f} %"),
            ("network", f"{result['model']}, {result['num_parameters']:,} parameters"),
            ("images processed", f"{result['images_processed']:,}"),
            ("seconds", f"{result['seconds']:,.0f}"),
        ],
    }


def _selection_card(run, stage):
    config, result = stage.config, stage.result
    pools = ", ".join(f"{name} {pool['entries']:,}" for name, pool in config["pools"].items())
    return {
        "source": f"pool: {pools}",
        "value": f"{result['selected']:,}",
        "unit": f"images kept: the K={result['k']} best of each class, each image in its "
        f"P={result['p']} best classes",
        "facts": [
            ("scored", f"{result['scored']:,}"),
            ("left out", f"{result['skipped']:,}"),
            ("different images", f"{result['unique_images']:,}"),
            ("labels right", labels_text(run)),
            ("seconds", f"{result['seconds']:,.0f}"),
        ],
    }


def labels_text(run):
    """How many labels of the selection are right; counted here, since older runs did not."""
    return labels_right({"labels": count_labels(SelectedRows(*run.rows))})


def learning(chains, uid):
    """chains: [(name, run, its rival or None)] -> a chart"""
    drawn = [_curves(run, rival) for _, run, rival in chains]
    names = [name for name, *_ in chains]
    rows = [
        (name, TRAININGS[network], f"{images:,}", f"{top1:.2f}")
        for name, curves in zip(names, drawn, strict=True)
        for network, points in curves.items()
        for images, top1 in zip(*points, strict=True)
    ]
    head = ("run", "training", "images processed", "validation top-1, %")
    note = "An image that is scored in step 2 counts as processed, too."
    if len(names) > 1:
        note += f" From strong to faint lines: {', '.join(names)}."
    figure = figures.learning_curves(drawn)
    return chart(figure, "Learning curves", f"{uid}-curves", (head, rows), note=note)


def _curves(run, rival):
    """{network: (images processed, validation top-1)}, the steps one after the other."""
    curves, before = {}, 0
    for name, stage in run.stages.items():
        if name in run.curves:
            images, top1 = zip(*run.curves[name], strict=True)
            curves[name] = [before + count for count in images], top1
        before += stage.result.get("images_processed", stage.result.get("scored"))
    return curves | ({RIVAL: tuple(zip(*rival.curves["teacher"], strict=True))} if rival else {})


def settings(run, command_of):
    """Every setting of config.json, a column a stage, and the commands.

    command_of: (run folder, config.json as a dict) -> a command line, a list of words
    """
    columns = {name: dict(flat(stage.config)) for name, stage in run.stages.items()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [(name, *(column.get(name, "") for column in columns.values())) for name in names]
    commands = [
        shlex.join(command_of(stage.folder.parent, stage.config)) for stage in run.stages.values()
    ]
    return {"head": ("setting", *columns), "rows": lines, "commands": commands}
