"""Step 3: pre-train the student on the selection.

    python student_train.py                   # RUN/samples -> RUN/student

Expect   --preset demo: a quarter of a minute, about 92 % of the digits right.  --preset lab: 9
         minutes and 26 % of CIFAR-100's 100 classes on two cores.  RESULTS.md has every number.
Reads    RUN/samples; the pools and the labelled set it names (its validation and test images only)
Writes   RUN/student: config.json, metrics.jsonl, model.pt, TensorBoard's events, and, last,
         result.json
"""

from functools import partial

from stages import flags
from stages.program import begin


def parse(argv):
    parser = flags.stage_parser(__doc__, "student")
    add = parser.add_argument_group("step 3").add_argument
    add(
        "--selection",
        type=flags.path,
        metavar="PATH",
        help="the stage of step 2 (default RUN/samples)",
    )
    add(
        "--soft-labels",
        action=flags.Boolean,
        help="learn the teacher's scores of an image's P "
        "classes, not the class that keeps it (not in the paper)",
    )
    add(
        "--joint",
        action=flags.Boolean,
        help="learn the true labels beside the selection, in one "
        "training in place of steps 3 and 4 (not in the paper)",
    )
    parser.rare(add)(
        "--unlabeled",
        type=flags.place,
        nargs="+",
        metavar="SPEC",
        help="where the pools of step 2 are now, in the same order (default where they were)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    begin(parse)

import torch

import distributed
from data import selection
from data.images import Images
from data.pool import reopen_pool
from report import tables
from report.board import Board
from stages import training
from stages.device import set_up_device
from stages.folder import check_file, command
from stages.lifetime import open_stage
from stages.prepare import cache_of, prepare_training
from stages.program import program


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    with open_stage(flags.run_dir(args) / "student", args.resume, args.overwrite) as stage:
        if stage:
            samples = stage.parent("samples", args.selection)
            own = {"soft_labels": args.soft_labels, "joint": args.joint}
            examples = partial(read_examples, samples, specs=args.unlabeled, **own)
            job = prepare_training(vars(args), stage, device, samples, examples, **own)
            result = training.run(job, Board)
            print_summary(args, job, samples, result)


def read_examples(samples, labelled, split, settings, soft_labels=False, joint=False, specs=None):
    """Images and pseudo-labels of the selection, in the order of selection.csv: classes (N,) int64,
    or with `soft_labels` the teacher's probabilities (N,C) float32; with `joint` the labelled
    images after them.

    specs: where the pools of step 2 are now, None for where they were
    settings: of `inherit`; the student's input size may differ from the teacher's, since a
    selection names images, not pixels

    An image that several classes keep stands there several times, each time with another class.
    Raises ValueError when a pool is not what step 2 scored, or rows are missing; FileNotFoundError
    without scores.
    """
    again = f"run `{command(samples.folder, '--overwrite')}`"
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
    if soft_labels:
        label = read_soft_labels(samples, names, len(labelled.classes))
    images, labels = pool.images.subset(torch.from_numpy(positions)), torch.from_numpy(label)
    if joint:
        return with_true_labels(images, labels, labelled.train.subset(split.labelled))
    return images, labels


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
        again = command(samples.folder, "--save-scores", "--overwrite")
        raise FileNotFoundError(f"--soft-labels needs {path}: run `{again}`")
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
    rows.append(("next", flags.next_command("main.py", args, "--student-network", "True")))
    tables.print_table("step 3: the student is pre-trained", rows)


if __name__ == "__main__":
    main()
