"""Steps 1 and 4: train on the labelled images.

    python main.py                            # step 1 -> RUN/teacher
    python main.py --student-network True     # step 4 -> RUN/finetuned, starts from RUN/student

Reads    the labelled set (downloaded to datasets/ on first use); step 4 also RUN/student
Writes   RUN/{teacher,finetuned}: config.json, metrics.jsonl, model.pt, TensorBoard's events, and,
         last, result.json
"""

from dataclasses import replace
from pathlib import Path

import torch

import checkpoint
import cli
import runlog
import training
from data import Images, load_labelled, split
from models.hub import HUB, MEAN, STD, hub_weights
from presets import PRESETS


def parse(argv):
    parser = cli.parser(__doc__)
    add = parser.add_argument_group("steps 1 and 4").add_argument
    add("--student-network", action=cli.Boolean, help="step 4: fine-tune the student")
    add("--student", type=Path, metavar="PATH", help="step 4: the stage to start from")
    add("--weights", metavar="PATH|NAME", help="step 1: start from a checkpoint or hub weights")
    args = parser.parse_args(argv)
    if args.student and not args.student_network:
        parser.error("argument --student: belongs to step 4; add --student-network True")
    if args.weights and args.student_network:
        parser.error("argument --weights: belongs to step 1; step 4 starts from the student")
    return args


@cli.program
def main(argv=None):
    args = parse(argv)
    device = cli.pick_device(args)
    folder = cli.run_dir(args) / ("finetuned" if args.student_network else "teacher")
    action = runlog.claim(folder, args.resume, args.overwrite)
    if action == "nothing":
        return print(f"{folder} is finished already; --overwrite starts it anew")

    job = prepare(args, folder, device, resume=action == "resume")
    if job.config["preset"] == "cifar100" and device.type == "cpu":
        training.print_hours(job, device)
    result = training.run(job, device, resume=action == "resume")
    report(args, job, result)


def prepare(args, folder, device, resume):
    """Settle everything that the training needs, without touching `folder`."""
    stage = folder.name
    saved = runlog.read_json(folder / "config.json") if resume else None
    student = None
    if stage == "finetuned":
        student = runlog.read_stage(args.student or folder.parent / "student", "student")
    if saved:
        runlog.check_parent(folder, saved)
    above = saved or (student and student.config)
    settings = cli.chain(args, above)
    preset = PRESETS[settings["preset"]]
    recipe = preset.finetune if student else preset.teacher
    if student:
        recipe = replace(recipe, model=student.config["training"]["model"])
    recipe = cli.recipe(args, recipe, saved and saved["training"])
    data_dir = cli.data_dir(args, above)

    labelled = load_labelled(settings["dataset"], data_dir, settings["input_size"])
    parts = split(
        labelled.train_labels,
        settings["seed"],
        settings["labels_per_class"],
        settings["val_per_class"],
    )
    images, labels = Images.of(labelled.train_images), torch.from_numpy(labelled.train_labels)
    rows, val = torch.from_numpy(parts.labelled), torch.from_numpy(parts.val)

    weights, source = None, ""
    if student:
        weights, source = checkpoint.load(student.product), str(student.product)
        if recipe.model != weights["arch"]["name"]:
            raise ValueError(
                f"--model {recipe.model} contradicts {source}, a {weights['arch']['name']}; "
                f"leave the flag out"
            )
        mean_std = tuple(student.config["normalisation"].values())
    else:
        mean_std = training.normalisation(images, rows)
    if args.weights:
        weights, source, mean_std = starting_weights(args.weights, mean_std)
        checkpoint.start_from(  # now, so that a misfit is found before anything is written
            training.build_model(recipe.model, len(labelled.classes)), weights, source
        )
    config = training.describe(
        stage, settings, recipe, device, data_dir, {"labelled": labelled.inputs},
        student and student.as_parent(folder), mean_std,
    )  # fmt: skip
    config["weights"] = args.weights
    if args.weights and Path(args.weights).is_file():
        config["inputs"]["weights"] = {"sha256": checkpoint.fingerprint(args.weights)}
    if saved:
        cli.check_same(saved, config)
    return training.Job(
        stage, folder, config, recipe, labelled.classes, images, rows, labels[rows],
        (images.subset(val), labels[val]),
        (Images.of(labelled.test_images), torch.from_numpy(labelled.test_labels)),
        weights, source,
    )  # fmt: skip


def starting_weights(name, mean_std):
    """The state_dict behind --weights, its name, and the normalisation it was trained with."""
    if name in HUB or not Path(name).exists():
        return hub_weights(name), name, (list(MEAN), list(STD))
    weights = checkpoint.load(name)
    if isinstance(weights, dict) and "normalisation" in weights:
        mean_std = tuple(weights["normalisation"].values())
    return weights, name, mean_std


def report(args, job, result):
    rows = [
        ("network", f"{result['model']}, {result['num_parameters']:,} parameters"),
        ("trained on", f"{len(job.labels):,} labelled images, {job.recipe.epochs} epochs"),
        ("validation", f"{result['val_top1']:.2f} % top-1 of {len(job.val[1]):,}"),
        ("test", f"{result['test_top1']:.2f} % top-1, {result['test_top5']:.2f} % top-5"),
        ("time", f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s"),
        ("written to", job.folder),
    ]
    if job.stage == "teacher":
        rows.append(("next", cli.command("make_sample_data.py", args)))
        cli.table("step 1: the teacher is trained", rows)
        return
    rows.append(("next", f"tensorboard --logdir {job.folder.parent.parent}"))
    cli.table("step 4: the student is fine-tuned", rows)
    names = {
        "teacher": "teacher",
        "student": "student, pre-trained",
        "finetuned": "student, fine-tuned",
    }
    results = {
        name: runlog.read_json(job.folder.parent / stage / "result.json")
        for stage, name in names.items()
        if (job.folder.parent / stage / "result.json").exists()
    }
    cli.table(
        f"test top-1 of {job.config['dataset']}, seed {job.config['seed']}",
        [(name, f"{one['test_top1']:.2f} %") for name, one in results.items()],
    )


if __name__ == "__main__":
    main()
