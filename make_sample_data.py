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
from data import Images, Normalise, find_duplicates, load_labelled, open_pools, selection, split
from engine import autocast_dtype, predict
from presets import PRESETS
from ranking import STRATEGIES, Ranking, candidates, top_classes

CHUNK = (
    512  # images scored at a time, however many processes score: a score depends on nothing else
)
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
    pools: list
    images: Images  # all pools, one after the other
    skipped: dict[int, str]  # position -> reason, over all pools
    tags: np.ndarray | None  # (N,) the class each folder is named after, -1 for none
    truth: np.ndarray  # (N,) -1 where it is not known

    def name_of(self, position):
        for pool in self.pools:
            if position < len(pool):
                return pool.name_of(position)
            position -= len(pool)
        raise IndexError(position)


@cli.program
def main(argv=None):
    args = parse(argv)
    device = cli.pick_device(args)
    folder = cli.run_dir(args) / "samples"
    action = runlog.claim(folder, args.resume, args.overwrite)
    if action == "nothing":
        return print(f"{folder} is finished already; --overwrite starts it anew")
    if args.export:
        selection.check_export(args.export)
    resume = action == "resume"
    job = prepare(args, folder, device, resume)
    with cli.running(), runlog.RunLog(folder, None if resume else job.config, 0) as log:
        with cli.saving_on_interrupt():
            table, score, label, seconds = score_pool(job, device, resume)
        rows = table.rows()
        result = write(args, job, log, rows, score, label, seconds)
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

    labelled = load_labelled(settings["dataset"], data_dir, settings["input_size"])
    cli.check_data(labelled, teacher.classes, teacher_config)
    parts = split(
        labelled.train_labels,
        settings["seed"],
        settings["labels_per_class"],
        settings["val_per_class"],
    )
    specs = args.unlabeled or list(preset.unlabeled)
    pools = open_pools(specs, data_dir, settings["input_size"], labelled, parts)
    skipped = find_skipped(args, pools, labelled, parts)
    unreadable = sum(len(pool.skipped) for pool in pools)
    total = sum(map(len, pools))
    config = {
        "stage": "samples",
        **settings,
        "data_dir": str(data_dir),
        "normalisation": {"mean": teacher.mean, "std": teacher.std},
        "unlabeled": specs,
        "p": p,
        "k": k,
        "min_score": args.min_score,
        "strategy": args.strategy,
        "batch_size": args.batch_size or CHUNK,
        "keep_duplicates": args.keep_duplicates,
        "max_bad_fraction": args.max_bad_fraction,
        "device": str(device),
        "precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch."),
        "versions": runlog.versions(),
        "pools": {pool.name: {"spec": pool.spec, **pool.inputs} for pool in pools},
        "inputs": {"labelled": labelled.inputs},
        "parent": parent,
    }
    if saved:
        cli.check_same(saved, config)
    tags = folder_tags(pools, teacher.classes) if args.strategy == "tags" else None
    truth = [np.full(len(pool), -1) if pool.truth is None else pool.truth for pool in pools]
    job = Job(
        folder, config, teacher, pools, Images.of(*(pool.images for pool in pools)), skipped, tags,
        np.concatenate(truth),
    )  # fmt: skip
    if unreadable > args.max_bad_fraction * total:
        folder.mkdir(parents=True, exist_ok=True)
        runlog.clear(folder)  # --overwrite: the list would not be the old selection's
        write_skipped(job)
        raise cli.Failure(
            f"{unreadable} of {total} pool images cannot be read (see {folder / 'skipped.csv'}), "
            f"more than --max-bad-fraction {args.max_bad_fraction:g}"
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


def find_skipped(args, pools, labelled, parts):
    """Unreadable images, and duplicates of labelled ones: position over all pools -> reason."""
    skipped, first = {}, 0
    known = np.concatenate([parts.labelled, parts.val])
    images = np.concatenate([labelled.train_images[known], labelled.test_images])
    hashes = np.concatenate([labelled.train_hashes[known], labelled.test_hashes])
    for pool in pools:
        found = dict(pool.skipped)
        if not args.keep_duplicates:
            found |= find_duplicates(pool.images, pool.hashes, images, hashes, skip=found)
        skipped |= {first + position: reason for position, reason in found.items()}
        first += len(pool)
    return skipped


def folder_tags(pools, classes):
    """The class that each image's folder is named after, -1 for none: (N,) int64."""
    plain = {name.lower().replace(" ", "_"): number for number, name in enumerate(classes)}
    tags = [
        plain.get(pool.tags(i).lower().replace(" ", "_"), -1) if pool.tags else -1
        for pool in pools
        for i in range(len(pool))
    ]
    if max(tags) < 0:
        raise ValueError(
            f"--strategy tags: no folder of the pool is named after a class such as {classes[0]!r}"
        )
    return np.array(tags)


def score_pool(job, device, resume):
    """Score every image and rank; -> the Ranking, score (N,P), label (N,P), seconds.

    Rows of skipped images stay zero.
    """
    c, classes = job.config, len(job.teacher.classes)
    size = len(job.images)
    whole = c["strategy"] in ("unbalanced", "random")
    ranked = Ranking(classes, c["k"], device)  # also tells the other strategies how many rows
    chosen = ranked if c["strategy"] == "ranked" else None
    chosen = chosen or Ranking(1 if whole else classes, c["k"] * (classes if whole else 1), device)
    score, label = torch.zeros(size, c["p"]), torch.zeros(size, c["p"], dtype=torch.int32)
    usable = torch.ones(size, dtype=torch.bool)
    usable[list(job.skipped)] = False
    position, spent, path = 0, 0.0, job.folder / "resume.pt"
    if resume and path.exists():
        state = checkpoint.load(path)
        position, spent = state["position"], state["seconds"]
        score, label = state["score"], state["label"]
        ranked.load_state_dict(state["ranked"])
        chosen.load_state_dict(state["chosen"])

    began = saved = time.monotonic()
    bar = tqdm(
        total=size, initial=position, unit="img", unit_scale=True, disable=None, desc="scoring"
    )
    prepare_batch = Normalise(job.teacher.mean, job.teacher.std, device)
    for first, logits in predict(
        job.teacher.model, job.images, prepare_batch, c["batch_size"], position
    ):
        position = first + len(logits)
        chunk_score, chunk_label = top_classes(logits, c["p"])
        score[first:position], label[first:position] = chunk_score.cpu(), chunk_label.cpu()
        tags = None if job.tags is None else torch.from_numpy(job.tags[first:position]).to(device)
        here = usable[first:position].to(device)
        for strategy, table in {"ranked": ranked, c["strategy"]: chosen}.items():
            rows = candidates(
                strategy,
                logits[here],
                c["p"],
                torch.arange(first, position, device=device)[here],
                c["seed"],
                tags if tags is None else tags[here],
            )
            enough = rows[4] >= c["min_score"]
            table.add(*(column[enough] for column in rows))
        bar.update(len(logits))
        stop = cli.interruption()  # once: a signal after this is the next chunk's
        if stop or time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            parts = {"position": position, "seconds": spent + saved - began}
            parts |= {"score": score, "label": label}
            parts |= {"ranked": ranked.state_dict(), "chosen": chosen.state_dict()}
            checkpoint.save(parts, path)
        if stop:
            bar.close()
            print(f"state saved in {job.folder}; go on with --resume", flush=True)
            raise cli.Interrupted(stop)
    bar.close()
    if whole:  # the same number of rows as the paper's rule keeps
        chosen.cut(len(ranked.rows()[0]))
    return chosen, score.numpy(), label.numpy(), spent + time.monotonic() - began


def write(args, job, log, rows, score, label, seconds):
    """The artefacts of the selection, result.json last; returns its content."""
    position, kept_label, kept_score, rank = (column.numpy() for column in rows)
    classes, c = job.teacher.classes, job.config
    names = [job.name_of(i) for i in position]
    selection.write_selection(job.folder / "selection.csv", names, kept_label, kept_score, rank)
    write_skipped(job)
    scored = np.ones(len(job.images), bool)
    scored[list(job.skipped)] = False
    if args.save_scores or len(job.images) <= SCORES_UP_TO:
        selection.write_scores(
            job.folder / "scores.npz",
            [job.name_of(i) for i in np.flatnonzero(scored)],
            score[scored],
            label[scored],
        )
    if args.export:
        export(args.export, job, position, kept_label, rank)
    counts = np.bincount(kept_label, minlength=len(classes))
    result = {
        "stage": "samples",
        "dataset": c["dataset"],
        "model": job.teacher.name,
        "seed": c["seed"],
        "num_parameters": sum(p.numel() for p in job.teacher.model.parameters()),
        "pool_size": len(job.images),
        "scored": int(scored.sum()),
        "skipped": len(job.skipped),
        "selected": len(position),
        "unique_images": len(np.unique(position)),
        "p": c["p"],
        "k": c["k"],
        "classes_below_k": int((counts < c["k"]).sum()),
        "per_class_counts": counts.tolist(),
    }
    truth = job.truth[position]
    known = truth >= 0
    if known.any():
        correct = truth[known] == kept_label[known]
        result["pseudo_label_accuracy"] = round(100 * correct.mean().item(), 4)
    result |= {
        "seconds": round(seconds, 2),
        "images_per_second": round(len(job.images) / seconds, 2),
    }
    show(job, log, rows, score[scored], counts)
    numbers = ("preset", "dataset", "seed", "p", "k", "min_score", "strategy")
    log.finish(result, {name: c[name] for name in numbers})
    return result


def show(job, log, rows, score, counts):
    """TensorBoard: the best images of every class, score histograms, counts, accuracy by rank."""
    position, label, kept_score, rank = (column.numpy() for column in rows)
    classes, board = job.teacher.classes, log.tensorboard
    truth = job.truth[position]
    pictures, scores, correct = [], [], []
    for number in range(len(classes)):
        best = np.flatnonzero(label == number)[:8]
        pictures.append(job.images[torch.from_numpy(position[best])].numpy())
        scores.append(kept_score[best])
        correct.append(truth[best] == number)
    known = truth >= 0
    grids = figures.selection_grid(
        pictures, scores, classes, correct=correct if known.all() else None
    )
    for number, figure in enumerate(grids):
        board.add_figure("selection/best images of each class", figure, number)
    board.add_histogram("selection/score of the best class, all images", score[:, 0])
    board.add_histogram("selection/score, kept", kept_score)
    board.add_figure("selection/scores", figures.score_histogram(score[:, 0], kept_score))
    k = job.config["k"]
    board.add_figure("selection/images per class", figures.per_class_counts(counts, classes, k))
    if known.any():
        right = truth[known] == label[known]
        board.add_figure(
            "selection/accuracy by rank", figures.accuracy_by_rank(rank[known], right, k)
        )


def write_skipped(job):
    pairs = ((job.name_of(i), reason) for i, reason in sorted(job.skipped.items()))
    selection.write_skipped(job.folder / "skipped.csv", pairs)


def export(folder, job, position, label, rank):
    """The selection as class folders: files as they are, images of other pools as PNG."""

    def picture(i):
        image = job.images[torch.tensor([i])].numpy()[0]
        for pool in job.pools:
            if i < len(pool):
                is_file = pool.inputs["kind"] == "folder"
                return (Path(pool.inputs["path"]) / pool.names[i] if is_file else None), image
            i -= len(pool)
        raise IndexError(i)

    selection.export(folder, job.teacher.classes, map(picture, position), label, rank)


def report(args, job, result):
    counts = np.array(result["per_class_counts"])
    rows = [
        ("pool", ", ".join(f"{pool.name} {len(pool):,}" for pool in job.pools)),
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
