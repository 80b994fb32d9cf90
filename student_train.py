"""Step 3: pre-train the student on the selection.

    python student_train.py                   # RUN/samples -> RUN/student

Reads    RUN/samples; the pools and the labelled set it names (its validation and test images only)
Writes   RUN/student: config.json, metrics.jsonl, model.pt, TensorBoard's events, and, last,
         result.json
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import cli
import runlog
import training
from data import JoinedPools, open_pools, selection
from presets import PRESETS


def parse(argv):
    parser = cli.parser(__doc__)
    add = parser.add_argument_group("step 3").add_argument
    add("--selection", type=Path, metavar="PATH", help="the stage of step 2 (default RUN/samples)")
    return parser.parse_args(argv)


@cli.program
def main(argv=None):
    args = parse(argv)
    begun = cli.begin(args, "student")
    if begun is None:
        return
    device, folder, resume = begun
    job = prepare(args, folder, device, resume)
    result = training.run(job, device, resume)
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

    labelled, parts = cli.labelled_data(settings, data_dir)
    cli.check_data(labelled, labelled.classes, samples.config)
    images, rows, labels = read_samples(samples, data_dir, labelled, parts)
    config = runlog.describe(
        "student", settings, device, data_dir, labelled.inputs, samples.as_parent(folder),
        tuple(samples.config["normalisation"].values()), training=asdict(recipe),
    )  # fmt: skip
    if saved:
        cli.check_same(saved, config)
    return training.Job(folder, config, recipe, labelled, parts, images, rows, labels)


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
    pool = JoinedPools(pools)
    chosen, rows = np.unique(pool.positions(names), return_inverse=True)
    images = pool.images.subset(torch.from_numpy(chosen))
    return images, torch.from_numpy(rows), torch.from_numpy(label)


def report(args, job, result):
    trained_on = (
        f"{len(job.labels):,} rows of {len(job.images):,} pool images, no true label, "
        f"{job.recipe.epochs} epochs"
    )
    more = [("next", cli.command("main.py", args) + " --student-network True")]
    training.report("step 3: the student is pre-trained", job, result, trained_on, more)


if __name__ == "__main__":
    main()
