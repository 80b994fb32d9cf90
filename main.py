"""Steps 1 and 4: train on the labelled images.

    python main.py                            # step 1 -> RUN/teacher
    python main.py --student-network True     # step 4 -> RUN/finetuned, starts from RUN/student
    python main.py --weak-pretrain tiny-imagenet      # step 1 after a training on folder names

Expect   --preset demo: a quarter of a minute, about 92 % of the digits right, 94 % after step 4.
         --preset cifar10: 6 minutes and 48 % of 10 classes of photographs, 52 % after step 4.
         --preset lab: 7 minutes and 25 % of CIFAR-100's 100 classes, 27 % after step 4, on two
         cores.  The default preset is for a GPU.  RESULTS.md has every number.
Reads    the labelled set (downloaded to datasets/ on first use); step 4 also RUN/student
Writes   RUN/{teacher,finetuned}: config.json, metrics.jsonl, model.pt, TensorBoard's events, and,
         last, result.json; the same in RUN/weak/teacher with --weak-pretrain
"""

from dataclasses import asdict

from stages import flags


def parse(argv):
    parser = flags.stage_parser(__doc__, "teacher", "finetune")
    add = parser.add_argument_group("steps 1 and 4").add_argument
    add("--student-network", action=flags.Boolean, help="step 4: fine-tune the "
        "student of step 3 on the true labels")  # fmt: skip
    add("--student", type=flags.path, metavar="PATH", help="step 4: the stage to start "
        "from (default RUN/student)")  # fmt: skip
    add("--weights", metavar="PATH|NAME", help="step 1: start from a checkpoint, or from published "
        "weights (from DATA_DIR/weights/NAME.pth where that is): resnet50_swsl (CC-BY-NC 4.0), "
        "efficientnet_b0, timm/resnet10t")  # fmt: skip
    add("--member", type=flags.number(int, 0, 99), default=0, metavar="N", help="step 1: another "
        "start on the same labels; several make an ensemble (default 0)")  # fmt: skip
    add("--linear", action=flags.Boolean, help="train the last layer alone, all "
        "others as --weights has them: how good are its features?")  # fmt: skip
    add("--weak-pretrain", metavar="POOL", help="step 1: first train on the folder names of a pool "
        "(see --unlabeled in step 2) as classes, with the settings of step 3: the paper's "
        "semi-weak supervision")  # fmt: skip
    add("--weak-epochs", type=flags.number(int, 1), metavar="N", help="passes over that pool "
        "(default the preset's epochs of step 3)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.student and not args.student_network:
        parser.error("argument --student: belongs to step 4; add --student-network True")
    if args.weights and args.student_network:
        parser.error("argument --weights: belongs to step 1; step 4 starts from the student")
    if args.weak_pretrain and (args.weights or args.student_network):
        parser.error("argument --weak-pretrain: belongs to step 1 without --weights")
    if args.weak_epochs and not args.weak_pretrain:
        parser.error("argument --weak-epochs: add --weak-pretrain POOL")
    if args.linear and not (args.weights or args.weak_pretrain or args.student_network):
        parser.error("argument --linear: needs a network to start from; add --weights PATH")
    return args


def stage_name(args):
    return "finetuned" if args.student_network else "teacher"


if __name__ == "__main__":
    flags.answer_early(parse, stage_name)

import distributed
from data.duplicates import LeakGuard
from data.labelled import tagged
from data.pool import open_pool
from files import sha256_of_file
from models import build_model, check_name
from presets import PRESETS, override
from report import tables
from report.board import Board
from stages import training
from stages.config import config_of
from stages.dataset import cache_of, load_dataset, normalisation_of
from stages.device import set_up_device, settle_compile, settle_compute
from stages.estimate import print_hours
from stages.finished import read_stage
from stages.folder import STAGES
from stages.inherit import inherit, recipe_in_force
from stages.lifetime import open_stage
from stages.program import program
from stages.records import read_record
from stages.start import starting_point


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    folder = flags.run_dir(args) / stage_name(args)
    with open_stage(folder, args.resume, args.overwrite) as stage:
        if stage:
            weak = pretrain(args, stage, device) if args.weak_pretrain else None
            job = prepare(args, stage, device, weak)
            result = training.run(job, Board)
            print_summary(args, job, result)


def pretrain(args, stage, device):
    """--weak-pretrain: a step 1 on the folder names of a pool; -> its FinishedStage.

    stage: OpenStage of the step 1 that starts from it
    """
    folder = stage.folder.parent / "weak" / "teacher"
    with open_stage(folder, args.resume, args.overwrite) as weak:
        if weak:
            job = prepare_weak(args, weak, device, stage.saved)
            result = training.run(job, Board)
            source = f"{len(job.labels):,} images, {job.labelled.name}"
            rows = tables.training_summary(result, source, len(job.val), folder, len(job.classes))
            tables.print_table("before step 1: the teacher is trained on tags", rows)
            distributed.wait()  # the first process writes
    weak = read_stage(folder, "teacher")
    was, wish = weak.config["weak_pretrain"], args.weak_pretrain
    if was != wish or args.weak_epochs not in (None, weak.config["training"]["epochs"]):
        raise ValueError(
            f"{folder} was trained on {was} for {weak.config['training']['epochs']} epochs, not "
            f"with this --weak-pretrain and --weak-epochs; start anew with --overwrite"
        )
    return weak


def prepare_weak(args, stage, device, earlier):
    """As `prepare`, for the training on tags.  earlier: config.json of step 1 if it is resumed

    The labelled set is read, too: pool images that repeat its own are left out, and what is wrong
    with its flags is found before hours are spent.
    """
    settings = inherit(flags.shared(args), earlier)
    preset = PRESETS[settings["preset"]]
    given = {"model": args.model or preset.teacher.model, "epochs": args.weak_epochs, "passes": 1}
    given = dict.fromkeys(flags.training(args)) | {"batch_size": args.batch_size} | given
    recipe = recipe_in_force(preset.student, given)
    check_name(recipe.model)
    ask_before_hours(args, stage, device, settings, recipe)
    labelled, split = load_dataset(settings, earlier)
    data_dir, size = settings["data_dir"], settings["input_size"]
    pool = open_pool([args.weak_pretrain], data_dir, size, labelled, split, cache_of(settings))
    pool.find_duplicates(LeakGuard(labelled, split))
    tags, val = tagged(pool, settings["seed"])
    network = build_model(recipe.model, len(tags.classes))
    compute = settle_compute(
        device, flags.compute(args), stage.saved, network, size, recipe.batch_size
    )
    config = config_of(
        stage.name, settings | {"dataset": tags.name}, tags, normalisation_of(tags.train.images),
        compute, training=asdict(recipe), weak_pretrain=args.weak_pretrain,
        compile=settle_compile(device, args.compile, stage.saved),
    )  # fmt: skip
    stage.check_unchanged(config)
    images, labels = tags.train.images, tags.train.labels
    return training.TrainingJob(stage, config, compute, recipe, tags, val, images, labels)


def prepare(args, stage, device, weak=None):
    """Settle everything that the training needs; nothing is written.  weak: see `pretrain`"""
    student = stage.parent("student", args.student) if args.student_network else None
    earlier = stage.saved or (student and student.config)
    settings = inherit(flags.shared(args), earlier)
    start = starting_point(student or weak, args.weights, settings["data_dir"] / "weights")
    preset = PRESETS[settings["preset"]]
    recipe = override(preset.finetune if student else preset.teacher, model=start.model)
    recipe = recipe_in_force(recipe, flags.training(args), stage.saved and stage.saved["training"])
    check_name(recipe.model)  # now: data may take minutes to read
    ask_before_hours(args, stage, device, settings, recipe)
    labelled, split = load_dataset(settings, earlier)
    network = start.network(recipe.model, len(labelled.classes))
    compute = settle_compute(
        device, flags.compute(args), stage.saved, network, settings["input_size"], recipe.batch_size
    )  # fmt: skip
    train = labelled.train.subset(split.labelled)

    config = config_of(
        stage.name, settings, labelled, start.mean_std or normalisation_of(train.images), compute,
        parent=student and student.as_parent(stage.folder),
        training=asdict(recipe),
        compile=settle_compile(device, args.compile, stage.saved),
        weights=args.weights,
        weak_pretrain=args.weak_pretrain,
        linear=args.linear,
        member=args.member,
    )  # fmt: skip
    if (weak or args.weights) and start.file:
        config["inputs"]["weights"] = {"sha256": sha256_of_file(start.file)}
    stage.check_unchanged(config)
    val = labelled.train.subset(split.val)
    return training.TrainingJob(
        stage, config, compute, recipe, labelled, val, train.images, train.labels, start.weights,
        start.source, args.linear,
        weak and {name: weak.result[name] for name in ("dataset", *_WEAK)},
    )  # fmt: skip


_WEAK = ("images_processed", "seconds", "val_top1", "test_top1")  # of result.json, the tags'


def ask_before_hours(args, stage, device, settings, recipe):
    """On a CPU the cifar100 presets take days: say so before anything is decoded."""
    if device.type == "cpu" and settings["preset"].startswith("cifar100") and not stage.saved:
        of_a_class = settings["labels_per_class"] or 500 - settings["val_per_class"]
        print_hours(recipe, 100, settings["input_size"], 100 * of_a_class, args.yes)


def print_summary(args, job, result):
    folder, step_1 = job.stage.folder, job.stage.name == "teacher"
    title = "step 1: the teacher is trained" if step_1 else "step 4: the student is fine-tuned"
    trained_on = f"{len(job.labels):,} labelled images, {tables.length(job.recipe)}"
    rows = tables.training_summary(
        result, trained_on, len(job.val.labels), folder, len(job.classes)
    )
    if step_1:
        rows.append(("next", flags.next_command("make_sample_data.py", args)))
        tables.print_table(title, rows)
        return
    rows.append(("next", f"python -m report {folder.parent}"))
    rows.append(("or", f"tensorboard --logdir {folder.parent.parent}"))
    tables.print_table(title, rows)
    files = {stage: folder.parent / stage / "result.json" for stage in STAGES}
    results = {stage: read_record(file) for stage, file in files.items() if file.exists()}
    title = f"test top-1 of {result['dataset']}, seed {job.config['seed']}"
    tables.print_table(title, tables.accuracy_summary(results))


if __name__ == "__main__":
    main()
