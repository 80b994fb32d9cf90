"""Step 2: score the unlabelled pool with the teacher, rank, keep the top K of every class.

    python make_sample_data.py                # RUN/teacher -> RUN/samples
    python make_sample_data.py --unlabeled heldout path/to/photos --k 500

Expect   --preset demo: 600 images, 81 % of the labels right, at once.  --preset lab: 20,000 images,
         35 % right, in a minute on two cores.  RESULTS.md has every number.
Reads    RUN/teacher; the pools (downloaded to datasets/ on first use)
Writes   RUN/samples: config.json, selection.csv, scores.npz, skipped.csv, TensorBoard's events,
         and, last, result.json
"""

from pathlib import Path

from stages import flags

SCORES_UP_TO = 1_000_000  # images of a pool whose scores.npz is written unasked


def parse(argv):
    parser = flags.stage_parser(__doc__)
    share = flags.number(float, 0, 1)
    add = parser.add_argument_group("step 2").add_argument
    add("--teacher", type=Path, nargs="+", metavar="PATH", help="model.pt or its stage (default "
        "RUN/teacher); that of step 4 begins a second round; of several the mean of their softmax")  # fmt: skip
    add("--unlabeled", nargs="+", metavar="SPEC", help="the pool: heldout, cifar10, "
        "tiny-imagenet, stl10, patches, a folder, or tar shards, several at once "
        f"{flags.usual('unlabeled')}")  # fmt: skip
    add("--pool-size", type=flags.number(int, 1), metavar="N",
        help="draw N images from the pool: how good is a smaller one? (default all)")  # fmt: skip
    add("--p", type=flags.number(int, 1), help="the paper's P: best classes that an "
        f"image may stand for; more where classes are short of it {flags.usual('p')}")  # fmt: skip
    add("--k", type=flags.number(int, 1), help="the paper's K: best images that "
        f"a class keeps; more are more varied, more often wrong {flags.usual('k')}")  # fmt: skip
    add("--min-score", type=share, default=0.0, help="least score of a candidate, "
        "for pools with images of no class (default 0)")  # fmt: skip
    add("--strategy", choices=flags.STRATEGIES, default="ranked", help="ranked: the "
        "paper's; the others are its rivals, see ranking.candidates (default ranked)")  # fmt: skip
    add("--max-bad-fraction", type=share, default=0.01, metavar="X",
        help="unreadable share of the pool that stops the run (default 0.01)")  # fmt: skip
    add("--keep-duplicates", action=flags.Boolean, help="keep images that a labelled set holds too")
    add("--save-scores", action=flags.Boolean, help="write scores.npz for a pool of any size")
    add("--export", type=Path, metavar="DIR", help="also write the selection as class folders")
    add("--load-pretrained", action=flags.Boolean, default=True,
        help="score with the teacher; always")  # fmt: skip
    args = parser.parse_args(argv)
    if not args.load_pretrained:
        parser.error("argument --load-pretrained: False is not possible: step 2 needs a teacher")
    return args


def stage_name(args):
    return "samples"


if __name__ == "__main__":
    flags.answer_early(parse, stage_name)

import numpy as np
import torch

import distributed
from data import LeakGuard, called, draw, open_pool, reopen_pool, selection
from presets import PRESETS
from report import diagnostics, tables
from report.board import Board
from report.diagnostics import SelectedRows
from stages import checkpoint, scoring
from stages.config import config_of
from stages.dataset import load_dataset
from stages.device import set_up_device, settle_compute
from stages.finished import read_stage
from stages.folder import clear
from stages.inherit import inherit
from stages.lifetime import open_stage, running
from stages.program import Failure, program
from stages.records import check_file
from stages.signals import saving_first
from stages.whole_run import chain_settings
from topk import MAX_POSITION


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    folder = flags.run_dir(args) / stage_name(args)
    with open_stage(folder, args.resume, args.overwrite) as stage:
        if stage:
            select(args, stage, device)
        elif args.export and not args.export.exists():
            export_finished(args)


def select(args, stage, device):
    """Score, rank, write, show."""
    if args.export:
        selection.check_export(args.export)
    job = prepare(args, stage, device)
    walk = scoring.Walk(job)
    with running(stage, job.config, Board) as log:
        with saving_first():
            scored = scoring.run(walk)
        if log is None:
            return  # the first process goes on, with what all have scored
        rows = selected_rows(job.pool, scored.selector)
        write_files(job, rows, scored.scores)
        result = result_of(job, rows, scored)
        show(job, log.board, rows, scored.selector.histogram.cpu())
        if args.export:
            classes = job.teacher.classes
            export(job.pool, classes, args.export, rows.position, rows.label, rows.rank)
        log.finish(result, chain_settings(stage.folder, job.config))
    sources = {source.name: len(source) for source in job.pool.sources}
    summary = tables.selection_summary(result, sources, stage.folder)
    summary.append(("next", flags.next_command("student_train.py", args)))
    tables.print_table("step 2: the pool is ranked", summary)


def prepare(args, stage, device):
    """Settle everything that scoring needs; nothing is written."""
    stage.check_parent()
    first, *more = find_teachers(args, stage.folder)
    teacher_config, path, parent = first
    teacher = checkpoint.load_models([path, *(other for _, other, _ in more)], device)
    settings = inherit(flags.shared(args), teacher_config)
    for flag, given, own in (
        ("--model", args.model, teacher.name),
        ("--input-size", args.input_size, teacher.input_size),
    ):
        if given not in (None, own):
            raise ValueError(f"{flag} {given} contradicts {path}, which has {own}; leave it out")
    settings["input_size"] = teacher.input_size
    preset = PRESETS[settings["preset"]]
    p, k = args.p or preset.p, args.k or preset.k
    if p > len(teacher.classes):
        raise ValueError(f"--p {p} is above the number of classes, {len(teacher.classes)}")

    chunk, size = args.batch_size or flags.CHUNK, teacher.input_size
    compute = settle_compute(
        device, flags.compute(args), stage.saved, teacher.model, size, chunk
    )  # fmt: skip
    data_dir = settings["data_dir"]
    labelled, split = load_dataset(settings, teacher_config, teacher.classes)
    specs = args.unlabeled or list(preset.unlabeled)
    pool = open_pool(specs, data_dir, settings["input_size"], labelled, split)
    if args.pool_size:
        pool = draw(pool, args.pool_size, settings["seed"])
    if len(pool) > MAX_POSITION:
        raise ValueError(f"{len(pool)} images are more than one ranking holds; split the pool")
    if args.strategy == "tags":
        pool.check_tags(teacher.classes)
    config = config_of(
        stage.name, settings, labelled, (teacher.mean, teacher.std), compute, parent,
        unlabeled=specs,
        pools={source.name: {"spec": source.spec, **source.inputs} for source in pool.sources},
        pool_size=args.pool_size,
        p=p,
        k=k,
        min_score=args.min_score,
        strategy=args.strategy,
        batch_size=chunk,
        keep_duplicates=args.keep_duplicates,
        max_bad_fraction=args.max_bad_fraction,
        save_scores=args.save_scores or len(pool) <= SCORES_UP_TO,
        more_parents=[entry for _, _, entry in more],
    )  # fmt: skip
    stage.check_unchanged(config)
    job = scoring.ScoringJob(stage, config, compute, teacher, pool)
    check_readable(job)
    if not args.keep_duplicates:
        pool.find_duplicates(LeakGuard(labelled, split, data_dir / "cache" / "duplicates"))
    return job


def find_teachers(args, folder):
    """[(the config of its stage, None for a lone model.pt; the model.pt; its parent entry)]"""
    return [find_teacher(path, folder) for path in args.teacher or [folder.parent / "teacher"]]


def find_teacher(path, folder):
    if path.is_file() and not (path.parent / "config.json").exists():
        entry = {"stage": "teacher", "path": str(path.resolve())}
        return None, path, entry | {"sha256": check_file(path)}
    stage = read_stage(path, "teacher", "finetuned")
    return stage.config, stage.product, stage.as_parent(folder)


def check_readable(job):
    """Raises Failure, the list written, when too much of the pool cannot be read."""
    most, bad = job.config["max_bad_fraction"], len(job.pool.unreadable)
    if bad <= most * len(job.pool):
        return
    folder = job.stage.folder
    if distributed.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        if job.stage.saved is None:
            clear(folder)  # --overwrite: the list would not be the old selection's
        write_skipped(job)
    distributed.wait()
    raise Failure(
        f"{bad} of {len(job.pool)} pool images cannot be read (see {folder / 'skipped.csv'}), "
        f"above --max-bad-fraction {most:g}"
    )


def selected_rows(pool, selector):
    """The selection with the true classes, where they are known.  Raises Failure for none."""
    position, label, score, rank = (column.numpy() for column in selector.rows())
    if not len(position):
        raise Failure(
            "no image of the pool entered the selection; lower --min-score or choose another "
            "--unlabeled"
        )
    return SelectedRows(position, label, score, rank, pool.truth_of(position))


def write_files(job, rows, score_files):
    """selection.csv, skipped.csv and, where the scores were kept, scores.npz."""
    folder, pool = job.stage.folder, job.pool
    names = list(map(pool.name_of, rows.position))
    path = folder / "selection.csv"
    selection.write_selection(path, names, rows.label, rows.score, rows.rank)
    write_skipped(job)
    if score_files:
        selection.write_scores(folder / "scores.npz", pool.names_of, pool.scorable, score_files)


def write_skipped(job):
    pairs = ((job.pool.name_of(position), reason) for position, reason in job.pool.skipped())
    selection.write_skipped(job.stage.folder / "skipped.csv", pairs)


def result_of(job, rows, scored):
    """The content of result.json."""
    c, pool, number = job.config, job.pool, len(job.teacher.classes)
    kept = np.unique(rows.position)
    return {
        "stage": job.stage.name,
        "dataset": called(c["dataset"], c["data_dir"]),
        "model": job.teacher.name,
        "seed": c["seed"],
        "num_parameters": sum(p.numel() for p in job.teacher.model.parameters()),
        "pool_size": len(pool),
        "scored": scored.selector.scored,
        "skipped": len(pool) - scored.selector.scored,
        "left_out": pool.count_skipped(),
        "copies_in_pool": pool.count_copies(),
        "copies_in_selection": len(kept) - len(np.unique(pool.checksums(kept), axis=0)),
        "class_names": job.teacher.classes,
        "p": c["p"],
        "k": c["k"],
        **diagnostics.selection_facts(rows, number, c["k"]),
        **diagnostics.label_quality(rows, pool.true_counts(number), c["k"]),
        "seconds": round(scored.seconds, 2),
        "images_per_second": round(len(pool) / scored.seconds, 2),
    }


def show(job, board, rows, histogram):
    """TensorBoard: the selection, and the pool's images that repeat labelled ones."""
    pool, guard = job.pool, job.pool.guard
    board.selection(rows, pool.images, histogram, job.teacher.classes, job.config["k"])
    pairs = [
        (position, found.match, found.similarity, guard.subset_of(found))
        for position, found in pool.duplicates.items()
        if found.similarity is not None
    ]
    if guard:
        board.near_duplicates(pairs, pool.images, guard.images)


def export(pool, classes, folder, position, label, rank):
    """Write a selection as class folders."""
    pictures = ((pool.file_of(i), pool.images[torch.tensor([i])][0].numpy()) for i in position)
    selection.export(folder, classes, pictures, label, rank)


def export_finished(args):
    """Write the selection of a finished stage as class folders."""
    stage = read_stage(flags.run_dir(args) / stage_name(args), "samples")
    settings = inherit(flags.shared(args), stage.config)
    labelled, split = load_dataset(settings, stage.config)
    pool = reopen_pool(stage.config, settings["data_dir"], labelled, split)
    names, label, _, rank = selection.read_selection(stage.product, len(labelled.classes))
    export(pool, labelled.classes, args.export, pool.positions(names), label, rank)
    print(f"its selection is exported to {args.export}")


if __name__ == "__main__":
    main()
