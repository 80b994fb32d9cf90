"""Step 2: score the unlabelled pool with the teacher, rank, keep the top K of every class.

    python make_sample_data.py                # RUN/teacher -> RUN/samples
    python make_sample_data.py --unlabeled heldout path/to/photos --k 500

Expect   --preset demo: 600 images, 81 % of the labels right, at once.  --preset lab: 20,000 images,
         35 % right, in a minute on two cores.  RESULTS.md has every number.
Reads    RUN/teacher; the pools (downloaded to datasets/ on first use)
Writes   RUN/samples: config.json, selection.csv, scores.npz, skipped.csv, TensorBoard's events,
         and, last, result.json
"""

from stages import flags
from stages.program import begin

TEXTS = {
    "teacher": "model.pt or its stage (default RUN/teacher), that of step 4 for a second round; "
    "several vote with the mean of their softmax",
    "unlabeled": "the pool: heldout, cifar10, tiny-imagenet, stl10, patches, a folder, or tar "
    f"shards, several at once {flags.preset_values('unlabeled')}",
    "p": "the paper's P: best classes that an image may stand for; more where classes are short of "
    f"it {flags.preset_values('p')}",
    "k": "the paper's K: best images that a class keeps; more are more varied, more often wrong "
    f"{flags.preset_values('k')}",
    "engine": "score tar shards, local or on s3://, gs://, hf://, on Ray Data, without a cache "
    "(docs/scaling.md)",
    "scores": "rank these scores in place of the teacher's: Parquet files of image, label, score; "
    "--unlabeled names the tar shards",
    "export": "also write the selection as class folders",
    "pool-size": "draw N images from the pool: how good is a smaller one? (default all)",
    "min-score": "least score of a candidate, for pools with images of no class (default 0)",
    "strategy": "ranked: the paper's; the others are its rivals, see ranking.candidates (default "
    "ranked)",
    "max-bad-fraction": "unreadable share of the pool that stops the run (default 0.01)",
    "keep-duplicates": "keep images that a labelled set holds too",
    "save-scores": "write scores.npz for a pool of any size",
    "load-pretrained": flags.HIDDEN,  # what happens anyway
}


def parse(argv):
    parser = flags.stage_parser(__doc__)
    share = flags.number(float, 0, 1)
    add = parser.group("step 2", TEXTS)
    add("teacher", type=flags.path, nargs="+", metavar="PATH")
    add("unlabeled", type=flags.place, nargs="+", metavar="SPEC")
    add("p", type=flags.number(int, 1))
    add("k", type=flags.number(int, 1))
    add("engine", choices=("ray",))
    add("scores", metavar="PATH")
    add("export", type=flags.path, metavar="DIR")
    add("pool-size", rare=True, type=flags.number(int, 1), metavar="N")
    add("min-score", rare=True, type=share, default=0.0)
    add("strategy", rare=True, choices=flags.STRATEGIES, default="ranked")
    add("max-bad-fraction", rare=True, type=share, default=0.01, metavar="X")
    add("keep-duplicates", rare=True, action=flags.Boolean)
    add("save-scores", rare=True, action=flags.Boolean)
    add("load-pretrained", action=flags.Boolean, default=True)
    args = parser.parse_args(argv)
    if not args.load_pretrained:
        parser.error("argument --load-pretrained: False is not possible: step 2 needs a teacher")
    return args


if __name__ == "__main__":
    begin(parse)

import torch

import distributed
from data import selection
from report import diagnostics, tables
from report.board import Board
from report.diagnostics import SelectedRows
from stages import scoring
from stages.device import set_up_device
from stages.inherit import inherit
from stages.lifetime import chain_settings, open_stage, read_stage, run_logged
from stages.prepare import load_dataset, prepare_scoring, reopen
from stages.program import Failure, enough_memory, program, saving_first, tell


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
    scoring.check_readable(job)
    engine = scoring
    if job.config["engine"]:
        from stages import ray_engine as engine
    elif job.guard:
        tell("looking for copies of labelled images")
        job.pool.find_duplicates(job.guard)
    walk = engine.Walk(job)
    with run_logged(stage, job.config, Board) as log:
        with saving_first(), enough_memory(job.config["batch_size"]):
            scored = engine.run(walk)
        if log is None:
            return  # the first process goes on, with what all have scored
        tell("writing and drawing")
        rows = selected_rows(job.pool, scored.selector)
        stage.check_ours()
        scoring.write_files(job, rows, scored.scores)
        classes = job.teacher.classes
        result = scoring.result_of(job, rows.position, scored)
        result |= diagnostics.selection_facts(rows, len(classes), result["k"])
        true_counts = job.pool.true_counts(len(classes))
        result |= diagnostics.label_quality(rows, true_counts, result["k"]) | scored.facts
        show(job, log.board, rows, scored.selector.histogram.cpu())
        if args.export:
            export(job.pool, classes, args.export, rows.position, rows.label, rows.rank)
        log.finish(result, chain_settings(stage.folder, job.config))
    sources = {source.name: len(source) for source in job.pool.sources}
    if scored.facts:  # then they are the selected images alone
        sources = {" + ".join(sources): result["pool_size"]}
    summary = tables.selection_summary(result, sources, stage.folder)
    summary.append(("next", flags.next_command("student_train.py", args)))
    tables.print_table("step 2: the pool is ranked", summary)


def selected_rows(pool, selector):
    """The selection with the true classes, where they are known.  Raises Failure for none."""
    position, label, score, rank = (column.numpy() for column in selector.rows())
    if not len(position):
        raise Failure(
            "no image entered the selection; lower --min-score or choose another --unlabeled"
        )
    return SelectedRows(position, label, score, rank, pool.truth_of(position))


def show(job, board, rows, histogram):
    """TensorBoard: the selection, and the pool's images that repeat labelled ones."""
    pool, guard = job.pool, job.pool.guard
    board.selection(rows, pool.images, histogram, job.teacher.classes, job.config["k"])
    pairs = [
        (position, duplicate.match, duplicate.similarity, guard.subset_of(duplicate))
        for position, duplicate in pool.duplicates.items()
        if duplicate.similarity is not None
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
    pool, position, _, label, rank = reopen(stage, labelled, split, settings, args.unlabeled)
    export(pool, labelled.classes, args.export, position, label, rank)
    print(f"its selection is exported to {args.export}")


if __name__ == "__main__":
    main()
