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

TEXTS = {
    "selection": "the stage of step 2 (default RUN/samples)",
    "soft-labels": "learn the teacher's scores of an image's P classes, not the class that keeps "
    "it (not in the paper)",
    "joint": "learn the true labels beside the selection, in one training in place of steps 3 and "
    "4 (not in the paper)",
    "unlabeled": "where the pools of step 2 are now, in the same order (default where they were)",
}


def parse(argv):
    parser = flags.stage_parser(__doc__, "student")
    add = parser.group("step 3", TEXTS)
    add("selection", type=flags.path, metavar="PATH")
    add("soft-labels", action=flags.Boolean)
    add("joint", action=flags.Boolean)
    add("unlabeled", rare=True, type=flags.place, nargs="+", metavar="SPEC")
    return parser.parse_args(argv)


if __name__ == "__main__":
    begin(parse)

import torch

import distributed
from data import selection
from data.images import Images
from report import tables
from report.board import Board
from stages import training
from stages.device import set_up_device
from stages.folder import check_file, command
from stages.lifetime import open_stage
from stages.prepare import prepare_training, reopen
from stages.program import program


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    with open_stage(flags.run_dir(args) / "student", args.resume, args.overwrite) as stage:
        if stage:
            samples = stage.parent("samples", args.selection)
            settings = {"soft_labels": args.soft_labels, "joint": args.joint}
            examples = partial(read_examples, samples, specs=args.unlabeled, **settings)
            job = prepare_training(vars(args), stage, device, samples, examples, **settings)
            result = training.run(job, Board)
            print_summary(args, job, samples, result)


def read_examples(samples, labelled, split, settings, soft_labels=False, joint=False, specs=None):
    """Images and pseudo-labels of the selection, in the order of selection.csv: classes (N,) int64,
    or with `soft_labels` the teacher's probabilities (N,C) float32; with `joint` the labelled
    images after them.

    settings, specs: see `prepare.reopen`

    An image that several classes keep stands there several times, each time with another class.
    Raises ValueError, see `prepare.reopen`, and FileNotFoundError without scores.
    """
    pool, position, names, label, _ = reopen(samples, labelled, split, settings, specs)
    if soft_labels:
        label = read_soft_labels(samples, names, len(labelled.classes))
    images, labels = pool.images.subset(torch.from_numpy(position)), torch.from_numpy(label)
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
