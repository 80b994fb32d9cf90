"""Step 2: score the unlabelled pool with the teacher, rank, keep the top K of every class.

    python make_sample_data.py                # RUN/teacher -> RUN/samples
    python make_sample_data.py --unlabeled heldout path/to/photos --k 500

Reads    RUN/teacher; the pools (downloaded to datasets/ on first use)
Writes   RUN/samples: config.json, selection.csv, scores.npz, skipped.csv, TensorBoard's events,
         and, last, result.json
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import cli
import figures
import runlog
from data import JoinedPools, Normalise, open_pools, selection
from engine import predict
from presets import PRESETS
from ranking import STRATEGIES, Selector

# Images scored at a time, unless --batch-size says otherwise; the number of processes never does.
CHUNK = 512
SAVE_SECONDS = 60
SCORES_UP_TO = 1_000_000  # images of a pool whose scores.npz is written unasked


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


@dataclass
class Job:
    """Step 2 with everything settled, before its folder is touched."""

    folder: Path
    config: dict
    teacher: checkpoint.Checkpoint
    pool: JoinedPools
    tags: np.ndarray | None  # int64 (N,): --strategy tags, see JoinedPools.tags


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
    with cli.running(), runlog.RunLog(folder, None if resume else job.config, 0) as log:
        with cli.saving_on_interrupt():
            selector, seconds = score_pool(job, device, resume)
        result = write(args, job, log, selector, seconds)
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
    pools = open_pools(specs, data_dir, settings["input_size"], labelled, parts)
    pool = JoinedPools(pools)
    unreadable = len(pool.skipped)
    if not args.keep_duplicates:
        known = np.concatenate([parts.labelled, parts.val])
        pool.leave_out_duplicates(
            np.concatenate([labelled.train_images[known], labelled.test_images]),
            np.concatenate([labelled.train_hashes[known], labelled.test_hashes]),
        )
    config = runlog.describe(
        "samples", settings, device, data_dir, labelled.inputs, parent, (teacher.mean, teacher.std),
        unlabeled=specs,
        pools={pool.name: {"spec": pool.spec, **pool.inputs} for pool in pools},
        p=p,
        k=k,
        min_score=args.min_score,
        strategy=args.strategy,
        batch_size=args.batch_size or CHUNK,
        keep_duplicates=args.keep_duplicates,
        max_bad_fraction=args.max_bad_fraction,
    )  # fmt: skip
    if saved:
        cli.check_same(saved, config)
    tags = pool.tags(teacher.classes) if args.strategy == "tags" else None
    job = Job(folder, config, teacher, pool, tags)
    if unreadable > args.max_bad_fraction * len(pool):
        folder.mkdir(parents=True, exist_ok=True)
        if not saved:
            runlog.clear(folder)  # --overwrite: the list would not be the old selection's
        write_skipped(job)
        raise cli.Failure(
            f"{unreadable} of {len(pool)} pool images cannot be read "
            f"(see {folder / 'skipped.csv'}), above --max-bad-fraction {args.max_bad_fraction:g}"
        )
    return job


def find_teacher(args, folder):
    """-> the config of the stage (None for a lone model.pt), the model.pt, its parent entry."""
    path = args.teacher or folder.parent / "teacher"
    if path.is_file() and not (path.parent / "config.json").exists():
        entry = {"stage": "teacher", "path": str(path.resolve())}
        return None, path, entry | {"sha256": checkpoint.fingerprint(path)}
    stage = runlog.read_stage(path, "teacher")
    return stage.config, stage.product, stage.as_parent(folder)


def score_pool(job, device, resume):
    """Score and rank every image, saving every SAVE_SECONDS; -> the full Selector, seconds."""
    c, path = job.config, job.folder / "resume.pt"
    settings = {name: c[name] for name in ("strategy", "p", "k", "seed", "min_score")}
    selector = Selector(len(job.pool), len(job.teacher.classes), **settings, device=device)
    selector.leave_out(job.pool.skipped, job.tags)
    spent = 0.0
    if resume and path.exists():
        state = checkpoint.load(path)
        spent = state.pop("seconds")
        selector.load_state_dict(state)
    began = saved = time.monotonic()
    bar = tqdm(
        total=len(job.pool), initial=selector.position, unit="img", unit_scale=True, disable=None,
        desc="scoring",
    )  # fmt: skip
    normalise = Normalise(job.teacher.mean, job.teacher.std, device)
    for first, logits in predict(
        job.teacher.model, job.pool.images, normalise, c["batch_size"], selector.position
    ):
        selector.add(first, logits)
        bar.update(len(logits))
        stop = cli.interruption()  # once: a signal after this is the next chunk's
        last = selector.position == len(job.pool)
        if stop or last or time.monotonic() - saved > SAVE_SECONDS:
            seconds = spent + time.monotonic() - began
            checkpoint.save({**selector.state_dict(), "seconds": seconds}, path)
            saved = time.monotonic()
        if stop:
            cli.stop(bar, job.folder, stop)
    bar.close()
    return selector, spent + time.monotonic() - began


def write(args, job, log, selector, seconds):
    """The artefacts of the selection, result.json last; return its content."""
    position, label, score, rank = rows = [column.numpy() for column in selector.rows()]
    classes, c, pool = job.teacher.classes, job.config, job.pool
    if not len(position):
        raise cli.Failure(
            "no image of the pool entered the selection; lower --min-score or choose another "
            "--unlabeled"
        )
    names = list(map(pool.name_of, position))
    selection.write_selection(job.folder / "selection.csv", names, label, score, rank)
    write_skipped(job)
    usable = selector.usable.numpy()
    if args.save_scores or len(pool) <= SCORES_UP_TO:
        selection.write_scores(
            job.folder / "scores.npz",
            list(map(pool.name_of, np.flatnonzero(usable))),
            selector.score.numpy()[usable],
            selector.label.numpy()[usable],
        )
    if args.export:
        pictures = ((pool.file_of(i), pool.images[torch.tensor([i])][0].numpy()) for i in position)
        selection.export(args.export, classes, pictures, label, rank)
    counts = np.bincount(label, minlength=len(classes))
    result = {
        "stage": "samples",
        "dataset": c["dataset"],
        "model": job.teacher.name,
        "seed": c["seed"],
        "num_parameters": sum(p.numel() for p in job.teacher.model.parameters()),
        "pool_size": len(pool),
        "scored": int(usable.sum()),
        "skipped": len(pool.skipped),
        "selected": len(position),
        "unique_images": len(np.unique(position)),
        "p": c["p"],
        "k": c["k"],
        "classes_below_k": int((counts < c["k"]).sum()),
        "per_class_counts": counts.tolist(),
    }
    known = pool.truth[position] >= 0
    if known.any():
        right = pool.truth[position][known] == label[known]
        result["pseudo_label_accuracy"] = round(100 * right.mean().item(), 4)
    result |= {
        "seconds": round(seconds, 2),
        "images_per_second": round(len(pool) / seconds, 2),
    }
    show(job, log, rows, selector.score.numpy()[usable, 0], counts)
    numbers = ("preset", "dataset", "seed", "p", "k", "min_score", "strategy")
    log.finish(result, {name: c[name] for name in numbers})
    return result


def show(job, log, rows, best_score, counts):
    """TensorBoard: the best images of every class, score histograms, counts, accuracy by rank."""
    position, label, score, rank = rows
    classes, board, k = job.teacher.classes, log.tensorboard, job.config["k"]
    truth = job.pool.truth[position]
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
    board.add_histogram("selection/score of the best class, all images", best_score)
    board.add_histogram("selection/score, kept", score)
    board.add_figure("selection/scores", figures.score_histogram(best_score, score))
    board.add_figure("selection/images per class", figures.per_class_counts(counts, classes, k))
    if known.any():
        right = truth[known] == label[known]
        figure = figures.accuracy_by_rank(rank[known], right, max(k, rank.max()))
        board.add_figure("selection/accuracy by rank", figure)


def write_skipped(job):
    pairs = ((job.pool.name_of(i), reason) for i, reason in sorted(job.pool.skipped.items()))
    selection.write_skipped(job.folder / "skipped.csv", pairs)


def report(args, job, result):
    counts = np.array(result["per_class_counts"])
    rows = [
        ("pool", ", ".join(f"{pool.name} {len(pool):,}" for pool in job.pool.pools)),
        ("scored", f"{result['scored']:,} images; {result['skipped']:,} left out (skipped.csv)"),
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
