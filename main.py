"""Steps 1 and 4: train on the labelled images.

    python main.py                            # step 1 -> RUN/teacher
    python main.py --student-network True     # step 4 -> RUN/finetuned, starts from RUN/student

Reads    the labelled set (downloaded to datasets/ on first use); step 4 also RUN/student
Writes   RUN/{teacher,finetuned}: config.json, metrics.jsonl, model.pt, TensorBoard's events, and,
         last, result.json
"""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

import checkpoint
import cli
import runlog
import training
from data import Images
from models import build_model
from models.hub import HUB, LICENCE, MEAN, STD, find, hub_weights
from presets import PRESETS, override


def parse(argv):
    parser = cli.parser(__doc__)
    add = parser.add_argument_group("steps 1 and 4").add_argument
    add("--student-network", action=cli.Boolean, help="step 4: fine-tune the student")
    add("--student", type=Path, metavar="PATH", help="step 4: the stage to start from")
    add("--weights", metavar="PATH|NAME", help="step 1: start from a checkpoint, or from published "
        f"ImageNet weights such as resnet50_swsl ({LICENCE}) or resnet50_imagenet")  # fmt: skip
    args = parser.parse_args(argv)
    if args.student and not args.student_network:
        parser.error("argument --student: belongs to step 4; add --student-network True")
    if args.weights and args.student_network:
        parser.error("argument --weights: belongs to step 1; step 4 starts from the student")
    return args


@cli.program
def main(argv=None):
    args = parse(argv)
    begun = cli.begin(args, "finetuned" if args.student_network else "teacher")
    if begun is None:
        return
    device, folder, resume = begun
    job = prepare(args, folder, device, resume)
    result = training.run(job, device, resume)
    report(args, job, result)


def prepare(args, folder, device, resume):
    """Settle everything that the training needs, without touching `folder`."""
    saved = runlog.read_json(folder / "config.json") if resume else None
    student = None
    if args.student_network:
        student = runlog.read_stage(args.student or folder.parent / "student", "student")
    if saved:
        runlog.check_parent(folder, saved)
    above = saved or (student and student.config)
    settings = cli.chain(args, above)
    data_dir = cli.data_dir(args, above)
    start = starting_point(args, student)
    preset = PRESETS[settings["preset"]]
    recipe = override(preset.finetune if student else preset.teacher, model=start.model)
    recipe = cli.recipe(args, recipe, saved and saved["training"])
    if start.model not in (None, recipe.model):
        raise ValueError(
            f"--model {recipe.model} contradicts {start.source}, a {start.model}; "
            f"leave the flag out"
        )

    labelled, parts = cli.labelled_data(settings, data_dir)
    if above:
        cli.check_data(labelled, labelled.classes, above)
    if start.weights is not None:  # tried now, so that a misfit is found before anything is written
        model = build_model(recipe.model, len(labelled.classes))
        checkpoint.start_from(model, start.weights, start.source)
    images, labels = Images.of(labelled.train_images), torch.from_numpy(labelled.train_labels)
    rows = torch.from_numpy(parts.labelled)
    config = runlog.describe(
        folder.name, settings, device, data_dir, labelled.inputs,
        student and student.as_parent(folder),
        start.mean_std or training.normalisation(images, rows),
        training=asdict(recipe), weights=args.weights,
    )  # fmt: skip
    if args.weights and Path(start.source).is_file():
        config["inputs"]["weights"] = {"sha256": checkpoint.fingerprint(start.source)}
    if saved:
        cli.check_same(saved, config)
    return training.Job(
        folder, config, recipe, labelled, parts, images, rows, labels[rows], start.weights,
        start.source,
    )  # fmt: skip


class Start(NamedTuple):
    """What a training starts from; all None for random weights."""

    weights: dict | None = None  # a state_dict, or the content of a model.pt
    source: str | None = None  # its name
    model: str | None = None  # the network that it fits, where it says so
    mean_std: tuple | None = None  # the normalisation it was trained with, where it says so


def starting_point(args, student):
    """Step 4 starts from the student, step 1 from --weights or from nothing."""
    path = student.product if student else args.weights
    if path is None:
        return Start()
    if path in HUB or not Path(path).exists():
        name = find(path)
        return Start(hub_weights(name), name, HUB[name], (list(MEAN), list(STD)))
    path = Path(path, "model.pt") if Path(path).is_dir() else path  # a stage's folder
    weights = checkpoint.load(path)
    if not isinstance(weights, dict) or "arch" not in weights:
        return Start(weights, str(path))
    normalisation = tuple(weights["normalisation"].values())
    return Start(weights, str(path), weights["arch"]["name"], normalisation)


def report(args, job, result):
    trained_on = f"{len(job.labels):,} labelled images, {job.recipe.epochs} epochs"
    if job.stage == "teacher":
        more = [("next", cli.command("make_sample_data.py", args))]
        training.report("step 1: the teacher is trained", job, result, trained_on, more)
        return
    more = [("next", f"tensorboard --logdir {job.folder.parent.parent}")]
    training.report("step 4: the student is fine-tuned", job, result, trained_on, more)
    stages = {
        "teacher": "teacher",
        "student": "student, pre-trained",
        "finetuned": "student, fine-tuned",
    }
    files = {name: job.folder.parent / stage / "result.json" for stage, name in stages.items()}
    results = {name: runlog.read_json(file) for name, file in files.items() if file.exists()}
    cli.table(
        f"test top-1 of {job.config['dataset']}, seed {job.config['seed']}",
        [(name, f"{one['test_top1']:.2f} %") for name, one in results.items()],
    )


if __name__ == "__main__":
    main()
