"""Step 3: pre-train the student on the selection.

    python student_train.py                   # RUN/samples -> RUN/student

Reads    RUN/samples; the pools and the labelled set it names (its validation and test images only)
Writes   RUN/student: config.json, metrics.jsonl, model.pt, TensorBoard's events, and, last,
         result.json
"""

from pathlib import Path

import numpy as np
import torch

import cli
import runlog
import training
from data import Images, load_labelled, open_pools, selection, split
from presets import PRESETS


def parse(argv):
    parser = cli.parser(__doc__)
    add = parser.add_argument_group("step 3").add_argument
    add("--selection", type=Path, metavar="PATH", help="the stage of step 2 (default RUN/samples)")
    return parser.parse_args(argv)


@cli.program
def main(argv=None):
    args = parse(argv)
    device = cli.pick_device(args)
    folder = cli.run_dir(args) / "student"
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
    saved = runlog.read_json(folder / "config.json") if resume else None
    samples = runlog.read_stage(args.selection or folder.parent / "samples", "samples")
    if saved:
        runlog.check_parent(folder, saved)
    settings = cli.chain(args, samples.config)
    recipe = PRESETS[settings["preset"]].student
    recipe = cli.recipe(args, recipe, saved and saved["training"])
    data_dir = cli.data_dir(args, samples.config)

    labelled = load_labelled(settings["dataset"], data_dir, settings["input_size"])
    cli.check_data(labelled, labelled.classes, samples.config)
    parts = split(
        labelled.train_labels,
        settings["seed"],
        settings["labels_per_class"],
        settings["val_per_class"],
    )
    images, rows, labels = read_samples(samples, data_dir, labelled, parts)
    val_labels = torch.from_numpy(labelled.train_labels[parts.val])
    config = training.describe(
        "student", settings, recipe, device, data_dir, {"labelled": labelled.inputs},
        samples.as_parent(folder), tuple(samples.config["normalisation"].values()),
    )  # fmt: skip
    if saved:
        cli.check_same(saved, config)
    return training.Job(
        "student", folder, config, recipe, labelled.classes, images, rows, labels,
        (Images.of(labelled.train_images).subset(torch.from_numpy(parts.val)), val_labels),
        (Images.of(labelled.test_images), torch.from_numpy(labelled.test_labels)),
    )  # fmt: skip


def read_samples(samples, data_dir, labelled, parts):
    """The selected images, once each, and the examples: -> Images, rows (R,), labels (R,).

    Raises ValueError when a pool is not what step 2 scored.
    """
    config = samples.config
    names, label, _, _ = selection.read_selection(samples.product, len(labelled.classes))
    pools = open_pools(config["unlabeled"], data_dir, config["input_size"], labelled, parts)
    for pool in pools:
        if pool.inputs["digest"] != config["pools"][pool.name]["digest"]:
            raise ValueError(
                f"the pool {pool.name} has changed since step 2 scored it; "
                f"run `{runlog.STAGES['samples'][1]} --overwrite`"
            )
    wanted, position, first = set(names), {}, 0
    for pool in pools:
        here = ((pool.name_of(i), first + i) for i in range(len(pool)))
        position |= {name: number for name, number in here if name in wanted}
        first += len(pool)
    missing = wanted - position.keys()
    if missing:
        raise ValueError(f"{samples.product}: no image {min(missing)!r} in the pools of step 2")
    chosen, rows = np.unique([position[name] for name in names], return_inverse=True)
    images = Images.of(*(pool.images for pool in pools)).subset(torch.from_numpy(chosen))
    return images, torch.from_numpy(rows), torch.from_numpy(label)


def report(args, job, result):
    rows = [
        ("network", f"{result['model']}, {result['num_parameters']:,} parameters"),
        ("trained on", f"{len(job.labels):,} rows of {len(job.images):,} images, "
         f"{job.recipe.epochs} epochs, no true label"),
        ("validation", f"{result['val_top1']:.2f} % top-1 of {len(job.val[1]):,}"),
        ("test", f"{result['test_top1']:.2f} % top-1, {result['test_top5']:.2f} % top-5"),
        ("time", f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s"),
        ("written to", job.folder),
        ("next", cli.command("main.py", args) + " --student-network True"),
    ]  # fmt: skip
    cli.table("step 3: the student is pre-trained", rows)


if __name__ == "__main__":
    main()
