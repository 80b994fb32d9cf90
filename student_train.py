"""Step 3: pre-train the student on the selection.

    python student_train.py                   # RUN/samples -> RUN/student

Expect   --preset demo: a quarter of a minute, about 92 % of the digits right.  --preset lab: 9
         minutes and 26 % of CIFAR-100's 100 classes on two cores.  RESULTS.md has every number.
Reads    RUN/samples; the pools and the labelled set it names (its validation and test images only)
Writes   RUN/student: config.json, metrics.jsonl, model.pt, TensorBoard's events, and, last,
         result.json
"""

from dataclasses import asdict

from stages import flags


def parse(argv):
    parser = flags.stage_parser(__doc__, "student")
    add = parser.add_argument_group("step 3").add_argument
    add(
        "--selection",
        type=flags.path,
        metavar="PATH",
        help="the stage of step 2 (default RUN/samples)",
    )
    add("--soft-labels", action=flags.Boolean, help="learn the teacher's scores of an image's P "
        "classes, not the class that keeps it (not in the paper)")  # fmt: skip
    add("--joint", action=flags.Boolean, help="learn the true labels beside the selection, in one "
        "training in place of steps 3 and 4 (not in the paper)")  # fmt: skip
    add("--unlabeled", nargs="+", metavar="SPEC", help="where the pools of step 2 are now, in the "
        "same order (default where they were)")  # fmt: skip
    return parser.parse_args(argv)


def stage_name(args):
    return "student"


if __name__ == "__main__":
    flags.answer_early(parse, stage_name)

import torch

import distributed
from data import selection
from data.images import Images
from data.pool import reopen_pool
from models import build_model, check_name
from presets import PRESETS
from report import tables
from report.board import Board
from stages import training
from stages.config import config_of
from stages.dataset import cache_of, load_dataset
from stages.device import set_up_device, settle_compile, settle_compute
from stages.estimate import print_hours
from stages.folder import STAGES
from stages.inherit import inherit, recipe_in_force
from stages.lifetime import open_stage
from stages.program import program
from stages.records import check_file


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    folder = flags.run_dir(args) / stage_name(args)
    with open_stage(folder, args.resume, args.overwrite) as stage:
        if stage:
            samples = stage.parent("samples", args.selection)
            job = prepare(args, stage, samples, device)
            result = training.run(job, Board)
            print_summary(args, job, samples, result)


def prepare(args, stage, samples, device):
    """Settle everything that the training needs; nothing is written."""
    saved_size = stage.saved and stage.saved["input_size"]
    given = flags.shared(args) | {"input_size": args.input_size or saved_size}
    settings = inherit(given, samples.config, own=("input_size",))
    recipe = PRESETS[settings["preset"]].student
    recipe = recipe_in_force(recipe, flags.training(args), stage.saved and stage.saved["training"])
    check_name(recipe.model)  # now: data may take minutes to read
    if device.type == "cpu" and settings["preset"].startswith("cifar100") and not stage.saved:
        print_hours(recipe, 100, settings["input_size"], samples.result["selected"], args.yes)
    labelled, split = load_dataset(settings, samples.config)
    network = build_model(recipe.model, len(labelled.classes))
    compute = settle_compute(
        device, flags.compute(args), stage.saved, network, settings["input_size"], recipe.batch_size
    )  # fmt: skip
    images, labels = read_examples(
        samples, settings, labelled, split, args.soft_labels, args.unlabeled
    )
    if args.joint:
        images, labels = with_true_labels(images, labels, labelled.train.subset(split.labelled))
    config = config_of(
        stage.name, settings, labelled, samples.config["normalisation"].values(), compute,
        parent=samples.as_parent(stage.folder),
        soft_labels=args.soft_labels,
        joint=args.joint,
        training=asdict(recipe),
        compile=settle_compile(device, args.compile, stage.saved),
    )  # fmt: skip
    stage.check_unchanged(config)
    val = labelled.train.subset(split.val)
    return training.TrainingJob(stage, config, compute, recipe, labelled, val, images, labels)


def read_examples(samples, settings, labelled, split, soft=False, specs=None):
    """Images and pseudo-labels of the selection, in the order of selection.csv: classes (N,) int64,
    or with `soft` the teacher's probabilities (N,C) float32.

    settings: of `inherit`; the student's input size may differ from the teacher's, since a
    selection names images, not pixels

    An image that several classes keep stands there several times, each time with another class.
    Raises ValueError when a pool is not what step 2 scored, or rows are missing; FileNotFoundError
    without scores.
    """
    again = f"run `{STAGES['samples'][1]} --overwrite`"
    names, label, _, _ = selection.read_selection(samples.product, len(labelled.classes))
    if len(names) != samples.result["selected"]:
        raise ValueError(
            f"{samples.product} has {len(names)} rows and step 2 wrote "
            f"{samples.result['selected']}; {again}"
        )
    places = settings["data_dir"], labelled, split, cache_of(settings), specs
    pool = scored = reopen_pool(samples.config, *places)
    if settings["input_size"] != samples.config["input_size"]:
        pool = reopen_pool(samples.config | {"input_size": settings["input_size"]}, *places)
    try:
        positions = pool.positions(names)
        scored.check_pixels(positions, samples.result.get("selected_pixels"))
    except ValueError as error:
        raise ValueError(f"{samples.product}: {error}; {again}") from error
    if soft:
        label = read_soft_labels(samples, names, len(labelled.classes))
    return pool.images.subset(torch.from_numpy(positions)), torch.from_numpy(label)


def with_true_labels(images, labels, labelled):
    """The examples of the selection and after them the labelled ones, each once."""
    true = labelled.labels
    if labels.is_floating_point():
        true = torch.nn.functional.one_hot(true, labels.shape[1]).to(labels.dtype)
    return Images.joined(images, labelled.images), torch.cat([labels, true])


def read_soft_labels(samples, names, num_classes):
    """The teacher's probabilities of the images `names`: float32 (N,C)."""
    path = samples.folder / "scores.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"--soft-labels needs {path}: run step 2 with --save-scores --overwrite"
        )
    check_file(path)
    return selection.read_soft_labels(path, names, num_classes)


def print_summary(args, job, samples, result):
    rows, images = samples.result["selected"], samples.result["unique_images"]
    true = len(job.labels) - rows  # with --joint
    trained_on = (
        f"{rows:,} rows of {images:,} pool images, {f'{true:,}' if true else 'no'} true "
        f"label{'s' * bool(true)}, {tables.length(job.recipe)}"
    )
    rows = tables.training_summary(
        result, trained_on, len(job.val.labels), job.stage.folder, len(job.classes)
    )
    rows.append(("next", flags.next_command("main.py", args) + " --student-network True"))
    tables.print_table("step 3: the student is pre-trained", rows)


if __name__ == "__main__":
    main()
