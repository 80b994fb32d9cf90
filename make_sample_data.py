"""Step 2: score the unlabelled pool with the teacher, rank, keep the top K of every class.

    python make_sample_data.py                # RUN/teacher -> RUN/samples
    python make_sample_data.py --unlabeled heldout path/to/photos --k 500

Reads    RUN/teacher; the pools (downloaded to datasets/ on first use)
Writes   RUN/samples: config.json, selection.csv, scores.npz, skipped.csv, TensorBoard's events,
         and, last, result.json
"""

from pathlib import Path

import numpy as np
import torch

import checkpoint
import cli
import diagnostics
import distributed
import runlog
import scoring
from data import JoinedPools, LeakGuard, open_pools, selection
from presets import PRESETS
from ranking import MAX_POSITION, STRATEGIES

CHUNK = 512  # images scored at a time, see scoring.py; --batch-size
SCORES_UP_TO = 1_000_000  # images of a pool whose scores.npz is written unasked
_PAIRS = 16  # duplicates shown beside the labelled images that they resemble


def parse(argv):
    parser = cli.parser(__doc__, training=False)
    add = parser.add_argument_group("step 2").add_argument
    add("--teacher", type=Path, metavar="PATH", help="stage or model.pt (default RUN/teacher)")
    add("--unlabeled", nargs="+", metavar="SPEC", help="heldout, cifar10, tiny-imagenet, stl10, "
        "patches, a folder, or tar shards")  # fmt: skip
    add("--p", type=int, help="classes an image may stand for")
    add("--k", type=int, help="images a class keeps")
    add("--min-score", type=cli.number(float, 0, 1), default=0.0, help="least score of a candidate")
    add("--strategy", choices=STRATEGIES, default="ranked", help="see ranking.candidates")
    add("--max-bad-fraction", type=cli.number(float, 0, 1), default=0.01, metavar="X",
        help="unreadable share of the pool that stops the run (default 0.01)")  # fmt: skip
    add("--keep-duplicates", action=cli.Boolean, help="keep images that a labelled set holds too")
    add("--save-scores", action=cli.Boolean, help="write scores.npz for a pool of any size")
    add("--export", type=Path, metavar="DIR", help="also write the selection as class folders")
    add(
        "--load-pretrained", action=cli.Boolean, default=True, help="score with the teacher; always"
    )
    args = parser.parse_args(argv)
    if not args.load_pretrained:
        parser.error("argument --load-pretrained: False is not possible: step 2 needs a teacher")
    for name in ("p", "k"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument --{name}: must be 1 or more, not {getattr(args, name)}")
    return args


@cli.program
def main(argv=None):
    args = parse(argv)
    begun = cli.begin(args, "samples")
    if begun is None:
        return
    device, folder, resume = begun
    if args.export:
        selection.check_export(args.export)
    job = prepare(args, folder, device, resume)
    with cli.running(folder, None if resume else job.config, 0) as log:
        with cli.saving_on_interrupt():
            scored = scoring.run(job, device, resume)
        if log is None:
            return  # the first process goes on, with what all have scored
        result = write(args, job, log, scored)
    report(args, job, result)


def prepare(args, folder, device, resume):
    """Settle everything that scoring needs, without touching `folder`."""
    saved = runlog.read_json(folder / "config.json") if resume else None
    if saved:
        runlog.check_parent(folder, saved)
    teacher_config, path, parent = find_teacher(args, folder)
    teacher = checkpoint.load_model(path, device)
    settings = cli.chain(args, teacher_config)
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
    data_dir = cli.data_dir(args, teacher_config)

    labelled, parts = cli.labelled_data(settings, data_dir)
    cli.check_data(labelled, teacher.classes, teacher_config)
    specs = args.unlabeled or list(preset.unlabeled)
    pool = JoinedPools(open_pools(specs, data_dir, settings["input_size"], labelled, parts))
    if len(pool) > MAX_POSITION:
        raise ValueError(f"{len(pool)} images are more than one ranking holds; split the pool")
    if args.strategy == "tags":
        pool.check_tags(teacher.classes)
    config = runlog.describe(
        "samples", settings, device, data_dir, labelled.inputs, parent, (teacher.mean, teacher.std),
        unlabeled=specs,
        pools={pool.name: {"spec": pool.spec, **pool.inputs} for pool in pool.pools},
        p=p,
        k=k,
        min_score=args.min_score,
        strategy=args.strategy,
        batch_size=args.batch_size or CHUNK,
        keep_duplicates=args.keep_duplicates,
        max_bad_fraction=args.max_bad_fraction,
        save_scores=args.save_scores or len(pool) <= SCORES_UP_TO,
    )  # fmt: skip
    if saved:
        cli.check_same(saved, config)
    job = scoring.Job(folder, config, teacher, pool)
    check_readable(job, resume)
    if not args.keep_duplicates:
        guard = LeakGuard(labelled, parts, data_dir / "cache" / "duplicates")
        pool.find_duplicates(guard)
    return job


def find_teacher(args, folder):
    """-> the config of the stage (None for a lone model.pt), the model.pt, its parent entry."""
    path = args.teacher or folder.parent / "teacher"
    if path.is_file() and not (path.parent / "config.json").exists():
        entry = {"stage": "teacher", "path": str(path.resolve())}
        return None, path, entry | {"sha256": checkpoint.fingerprint(path)}
    stage = runlog.read_stage(path, "teacher")
    return stage.config, stage.product, stage.as_parent(folder)


def check_readable(job, resume):
    """Raises cli.Failure, the list written, when too much of the pool cannot be read."""
    most, bad = job.config["max_bad_fraction"], len(job.pool.unreadable)
    if bad <= most * len(job.pool):
        return
    if distributed.is_first():
        job.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            runlog.clear(job.folder)  # --overwrite: the list would not be the old selection's
        write_skipped(job.folder, job.pool)
    distributed.wait()
    raise cli.Failure(
        f"{bad} of {len(job.pool)} pool images cannot be read "
        f"(see {job.folder / 'skipped.csv'}), above --max-bad-fraction {most:g}"
    )


def write(args, job, log, scored):
    """The artefacts of the selection, result.json last; return its content."""
    position, label, score, rank = rows = [column.numpy() for column in scored.selector.rows()]
    classes, c, pool = job.teacher.classes, job.config, job.pool
    if not len(position):
        raise cli.Failure(
            "no image of the pool entered the selection; lower --min-score or choose another "
            "--unlabeled"
        )
    names = list(map(pool.name_of, position))
    selection.write_selection(job.folder / "selection.csv", names, label, score, rank)
    write_skipped(job.folder, job.pool)
    if scored.scores:
        path = job.folder / "scores.npz"
        selection.write_scores(path, pool.names_of, pool.usable, scored.scores)
    truth = pool.truth_of(position)
    kept = np.unique(position)
    result = {
        "stage": "samples",
        "dataset": c["dataset"],
        "model": job.teacher.name,
        "seed": c["seed"],
        "num_parameters": sum(p.numel() for p in job.teacher.model.parameters()),
        "pool_size": len(pool),
        "scored": scored.selector.scored,
        "skipped": len(pool) - scored.selector.scored,
        "left_out": pool.count_left_out(),
        "copies_in_pool": pool.count_copies(),
        "copies_in_selection": len(kept) - len(np.unique(pool.prints(kept), axis=0)),
        "p": c["p"],
        "k": c["k"],
        **diagnostics.describe(position, label, score, rank, len(classes), c["k"]),
        **diagnostics.compare(label, rank, truth, pool.true_counts(len(classes)), c["k"]),
        "seconds": round(scored.seconds, 2),
        "images_per_second": round(len(pool) / scored.seconds, 2),
    }
    show(job, log, rows, truth, scored.selector.histogram.cpu().numpy())
    if args.export:
        pictures = ((pool.file_of(i), pool.images[torch.tensor([i])][0].numpy()) for i in position)
        selection.export(args.export, classes, pictures, label, rank)
    numbers = ("preset", "dataset", "seed", "p", "k", "min_score", "strategy")
    log.finish(result, {name: c[name] for name in numbers})
    return result


def write_skipped(folder, pool):
    pairs = ((pool.name_of(position), reason) for position, reason in pool.left_out())
    selection.write_skipped(folder / "skipped.csv", pairs)


def show(job, log, rows, truth, histogram):
    """TensorBoard: the best images of every class, scores, counts, accuracy by rank, the leaks."""
    import figures  # here, as everywhere: matplotlib takes half a second to import

    position, label, score, rank = rows
    classes, board, k = job.teacher.classes, log.tensorboard, job.config["k"]
    known = truth >= 0
    first = [np.flatnonzero(label == number)[:8] for number in range(len(classes))]
    grids = figures.selection_grid(
        [job.pool.images[torch.from_numpy(position[best])].numpy() for best in first],
        [score[best] for best in first],
        classes,
        correct=[truth[best] == label[best] for best in first] if known.all() else None,
    )
    for number, figure in enumerate(grids):
        board.add_figure("selection/best images of each class", figure, number)
    board.add_histogram("selection/score, kept", score)
    board.add_figure("selection/scores", figures.score_histogram(histogram, score))
    counts = np.bincount(label, minlength=len(classes))
    board.add_figure("selection/images per class", figures.per_class_counts(counts, classes, k))
    if known.any():
        right = truth[known] == label[known]
        figure = figures.accuracy_by_rank(rank[known], right, max(k, rank.max()))
        board.add_figure("selection/accuracy by rank", figure)
    show_duplicates(job.pool, board)


def show_duplicates(pool, board):
    """Near-duplicates beside the labelled images they resemble, from the nearest to the limit."""
    import figures

    near = [(at, found) for at, found in pool.duplicates.items() if found.similarity is not None]
    near.sort(key=lambda pair: -pair[1].similarity)
    if not near:
        return
    chosen = [near[i] for i in np.unique(np.linspace(0, len(near) - 1, _PAIRS).astype(int))]
    ours = pool.images[torch.tensor([position for position, _ in chosen])].numpy()
    theirs = pool.guard.images[torch.tensor([found.match for _, found in chosen])].numpy()
    titles = [f"{pool.guard.part_of(found)} {found.similarity:.2f}" for _, found in chosen]
    board.add_figure("left out/near-duplicates", figures.pairs(ours, theirs, titles))


def report(args, job, result):
    counts, kinds = np.array(result["per_class_counts"]), result["left_out"]
    near, exact = (sum(kinds[kind].values()) for kind in ("near_duplicate", "duplicate"))
    left_out = (
        f"{result['skipped']:,} (skipped.csv): {kinds['unreadable']:,} unreadable, {exact:,} "
        f"copies and {near:,} near-copies of labelled images"
    )
    rows = [
        ("pool", ", ".join(f"{pool.name} {len(pool):,}" for pool in job.pool.pools)),
        ("scored", f"{result['scored']:,} images"),
        ("left out", left_out),
        ("selected", f"{result['selected']:,} rows, {result['unique_images']:,} different images"),
        ("per class", f"{counts.min()} to {counts.max()} of K={result['k']}"),
    ]
    if "pseudo_label_accuracy" in result:
        share = f"{result['pseudo_label_accuracy']:.2f} %"
        rows.append(("labels right", f"{share} where the truth is known"))
    rows += [
        ("time", f"{result['seconds']:.0f} s, {result['images_per_second']:.0f} images/s"),
        ("written to", job.folder),
        ("next", cli.command("student_train.py", args)),
    ]
    cli.table("step 2: the pool is ranked", rows)


if __name__ == "__main__":
    main()
