"""Step 2: score the unlabelled pool with the teacher, rank, keep the top K of every class.

    python make_sample_data.py                # RUN/teacher -> RUN/samples
    python make_sample_data.py --unlabeled heldout path/to/photos --k 500

Expect   --preset demo: 600 images, 81 % of the labels right, at once.  --preset lab: 20,000 images,
         35 % right, in a minute on two cores.  RESULTS.md has every number.
Reads    RUN/teacher; the pools (downloaded to datasets/ on first use)
Writes   RUN/samples: config.json, selection.csv, scores.npz, skipped.csv, TensorBoard's events,
         and, last, result.json
"""

from itertools import chain

from stages import flags
from stages.program import begin


def parse(argv):
    parser = flags.stage_parser(__doc__)
    share = flags.number(float, 0, 1)
    add = parser.add_argument_group("step 2").add_argument
    rare = parser.rare(add)
    add(
        "--teacher",
        type=flags.path,
        nargs="+",
        metavar="PATH",
        help="model.pt or its stage (default RUN/teacher), that of step 4 for a second round; "
        "several vote with the mean of their softmax",
    )
    add(
        "--unlabeled",
        type=flags.place,
        nargs="+",
        metavar="SPEC",
        help="the pool: heldout, "
        "cifar10, tiny-imagenet, stl10, patches, a folder, or tar shards, several at once "
        f"{flags.usual('unlabeled')}",
    )
    add(
        "--p",
        type=flags.number(int, 1),
        help="the paper's P: best classes that an "
        f"image may stand for; more where classes are short of it {flags.usual('p')}",
    )
    add(
        "--k",
        type=flags.number(int, 1),
        help="the paper's K: best images that "
        f"a class keeps; more are more varied, more often wrong {flags.usual('k')}",
    )
    add(
        "--export", type=flags.path, metavar="DIR", help="also write the selection as class folders"
    )
    rare(
        "--pool-size",
        type=flags.number(int, 1),
        metavar="N",
        help="draw N images from the pool: how good is a smaller one? (default all)",
    )
    rare(
        "--min-score",
        type=share,
        default=0.0,
        help="least score of a candidate, for pools with images of no class (default 0)",
    )
    rare(
        "--strategy",
        choices=flags.STRATEGIES,
        default="ranked",
        help="ranked: the "
        "paper's; the others are its rivals, see ranking.candidates (default ranked)",
    )
    rare(
        "--max-bad-fraction",
        type=share,
        default=0.01,
        metavar="X",
        help="unreadable share of the pool that stops the run (default 0.01)",
    )
    rare(
        "--keep-duplicates", action=flags.Boolean, help="keep images that a labelled set holds too"
    )
    rare("--save-scores", action=flags.Boolean, help="write scores.npz for a pool of any size")
    add("--load-pretrained", action=flags.Boolean, default=True, help=flags.HIDDEN)
    args = parser.parse_args(argv)
    if not args.load_pretrained:
        parser.error("argument --load-pretrained: False is not possible: step 2 needs a teacher")
    return args


if __name__ == "__main__":
    begin(parse)

import numpy as np
import torch

import distributed
from data import selection
from data.labelled import called
from data.pool import reopen_pool
from data.sources import absolute
from report import diagnostics, tables
from report.board import Board
from report.diagnostics import SelectedRows
from stages import scoring
from stages.device import set_up_device
from stages.folder import clear
from stages.inherit import inherit
from stages.lifetime import chain_settings, open_stage, read_stage, running
from stages.prepare import cache_of, load_dataset, prepare_scoring
from stages.program import Failure, program, saving_first, tell


@program
def main(argv=None):
    args = parse(argv)
    distributed.start()
    device = set_up_device(args.device, args.deterministic)
    with open_stage(flags.run_dir(args) / "samples", args.resume, args.overwrite) as stage:
        if stage:
            select(args, stage, device)
        elif args.export and not args.export.exists():
            export_finished(args)


def select(args, stage, device):
    """Score, rank, write, show."""
    if args.export:
        selection.check_export(args.export)
    job = prepare_scoring(vars(args), stage, device)
    check_readable(job)
    if job.guard:
        tell("looking for copies of labelled images")
        job.pool.find_duplicates(job.guard)
    walk = scoring.Walk(job)
    with running(stage, job.config, Board) as log:
        with saving_first():
            scored = scoring.run(walk)
        if log is None:
            return  # the first process goes on, with what all have scored
        tell("writing and drawing")
        rows = selected_rows(job.pool, scored.selector)
        stage.check_ours()
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
    selection.write_skipped(job.stage.folder / "skipped.csv", chain(pairs, job.pool.unused()))


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
        "selected_pixels": pool.pixel_digest(kept),
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
    stage = read_stage(flags.run_dir(args) / "samples", "samples")
    settings = inherit(vars(args), stage.config)
    labelled, split = load_dataset(settings, stage.config)
    specs = args.unlabeled and [absolute(spec) for spec in args.unlabeled]
    data_dir, cache_dir = settings["data_dir"], cache_of(settings)
    pool = reopen_pool(stage.config, data_dir, labelled, split, cache_dir, specs)
    names, label, _, rank = selection.read_selection(stage.product, len(labelled.classes))
    positions = pool.positions(names)
    pool.check_pixels(positions, stage.result.get("selected_pixels"))
    export(pool, labelled.classes, args.export, positions, label, rank)
    print(f"its selection is exported to {args.export}")


if __name__ == "__main__":
    main()
