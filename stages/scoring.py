"""The walk over the pool in step 2: score, rank, save; it goes on wherever it was stopped.

The pool is scored in chunks of a fixed size; a tar shard begins a new one, so that a shard has the
same scores wherever it is scored.  Every process of a torchrun job has a contiguous range of whole
chunks and a Selector of its own.  So the number of processes changes no chunk, hence
no score, where the same kernels compute it.  (On a CPU the number of threads made no difference to
any network tried; on a GPU no kernel is chosen by timing here.)  Merged selectors do not depend on
how the pool was cut, so the selection is the same, byte for byte.
"""

import time
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
import torch
from tqdm import tqdm

import distributed
from data import selection
from data.augment import Normalise
from data.duplicates import LeakGuard
from data.labelled import display_name
from data.pool import Pool
from engine import predict
from ranking import Selector

from . import checkpoint, program
from .device import Compute
from .folder import clear
from .lifetime import OpenStage, identity

SAVE_SECONDS = 60
_AHEAD = 64  # chunks whose scores wait on the device: fetching each would hold up a GPU


@dataclass
class ScoringJob:
    """Step 2 with everything settled, before its folder is touched."""

    stage: OpenStage
    config: dict  # config.json, see prepare.config_of
    compute: Compute
    teacher: checkpoint.Checkpoint
    pool: Pool
    guard: LeakGuard | None = None  # finds the pool's copies of labelled images


@dataclass
class Scored:
    """A pool, scored and ranked."""

    selector: Selector
    scores: list[selection.ScoreFile]  # in pool order, one a process; none where not asked for
    seconds: float
    facts: dict = field(default_factory=dict)  # of result.json, where they are not the pool's own


class Walk:
    """One process's range of the pool, as far as it is scored."""

    def __init__(self, job):
        """Raises ValueError for a damaged state."""
        self.job, self.number = job, distributed.rank()
        self.first, self.last = _range(job)
        self.selector, self.spent = new_selector(job, self.first, job.compute.device), 0.0
        self.path = job.stage.folder / _state_file(self.number)
        checksum = None
        if job.stage.saved and self.path.exists():
            with checkpoint.resuming(self.path):
                state = checkpoint.load(self.path)
                if state.pop("stage") != identity(job.config):
                    raise ValueError("it was saved by another stage")
                self.spent, checksum = float(state.pop("seconds")), state.pop("scores", None)
                self.selector.load_state_dict(state)
                if not self.first <= self.selector.position <= self.last:
                    raise ValueError("its position is not in this process's part of the pool")
        self.scores, self.waiting = None, []
        if job.config["save_scores"]:
            path = job.stage.folder / _score_file(self.number)
            self.scores = selection.ScoreFile(path, job.config["p"])
            self.kept = self.selector.position - self.first
            self.scores.check(self.kept, checksum)

    def begin(self):
        """From here on files are written."""
        if self.scores:
            self.scores.open(self.kept)
        self.began = time.monotonic()

    @property
    def seconds(self):
        """Spent on this range in all, before a stop included."""
        return self.spent + time.monotonic() - self.began

    def add(self, start, logits):
        """Take in the logits (B,C) of the entries from `start` on."""
        pool, config, end = self.job.pool, self.job.config, start + len(logits)
        scorable, tags = torch.from_numpy(pool.scorable(start, end)), None
        if config["strategy"] == "tags":
            tags = torch.from_numpy(pool.tags(self.job.teacher.classes, start, end))
        self.waiting.append(self.selector.add(start, logits, scorable, tags))
        if len(self.waiting) == _AHEAD:
            self._write_scores()

    def _write_scores(self):
        if self.scores and self.waiting:
            score, label = (torch.cat(parts).cpu() for parts in zip(*self.waiting, strict=True))
            self.scores.write(score.numpy(), label.numpy())
        self.waiting.clear()
        self.job.pool.release_pages()

    def save(self):
        self._write_scores()
        self.job.stage.check_ours()
        state = {**self.selector.state_dict(), "seconds": self.seconds}
        state["stage"] = identity(self.job.config)
        if self.scores:
            self.scores.flush()
            state["scores"] = self.scores.checksum
        checkpoint.save(state, self.path)


def run(walk):
    """Score and rank the pool; -> Scored, in the first process that of the whole pool.

    walk: a Walk that nothing was done with yet
    """
    job, size = walk.job, walk.job.config["batch_size"]
    walk.begin()
    device, precision = job.compute.device, job.compute.precision
    position = walk.selector.position
    # No kernel is chosen by timing, and none whose sums vary: the same scores on every run.
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    bar = tqdm(
        total=walk.last - walk.first, initial=position - walk.first, unit="img", unit_scale=True,
        disable=None, desc="scoring",
    )  # fmt: skip
    normalise = Normalise(job.teacher.mean, job.teacher.std, device)
    last_save = time.monotonic()
    ends = [end for end in shard_starts(job.pool) if position < end < walk.last]
    parts = pairwise([position, *ends, walk.last])
    of = job.teacher.model, job.pool.images, normalise, size
    for start, logits in chain.from_iterable(predict(*of, *part, precision) for part in parts):
        walk.add(start, logits)
        bar.update(len(logits))
        signum = program.interruption()  # asked once: a signal after this is the next chunk's
        if signum or time.monotonic() - last_save > SAVE_SECONDS:
            walk.save()
            last_save = time.monotonic()
        if signum:
            program.stop(bar, job.stage.folder, signum)
    walk.save()
    bar.close()
    seconds = distributed.largest(walk.seconds)  # all have saved by then
    return _gather(job, walk.selector, seconds)


def _gather(job, selector, seconds):
    """Let the first process take over what the others have ranked."""
    folder, processes = job.stage.folder, range(distributed.size())
    for number in processes[1:] if distributed.is_first() else ():
        other, path = new_selector(job, 0, "cpu"), folder / _state_file(number)
        other.load_state_dict(checkpoint.load(path))
        _, end = _range(job, number)
        if other.position != end:
            raise program.Failure(
                f"{path} ends at image {other.position}, not {end}; score again with --overwrite"
            )
        selector.merge(other)
    paths = [folder / _score_file(number) for number in processes]
    files = [selection.ScoreFile(path, job.config["p"]) for path in paths]
    return Scored(selector, files if job.config["save_scores"] else [], seconds)


def shard_starts(pool):
    """The positions at which a tar shard of the pool begins, rising."""
    for start, source in zip(pool.starts, pool.sources, strict=False):
        listing = source.cache and source.cache.source
        if source.inputs["kind"] != "tar" or len(listing) != len(source):  # drawn from: no shards
            continue
        position, entries = 0, range(len(source))
        while position < len(source):
            yield start + position
            shard, *_ = listing.place(position, None)
            position = bisect_right(entries, shard, key=lambda i: listing.place(i, None)[0])


def _range(job, number=None):
    """The entries that this process scores, or another one, as (first, last + 1): whole chunks."""
    size, total = job.config["batch_size"], len(job.pool)
    ends = sorted({0, *shard_starts(job.pool), total})
    chunks = [first for part in pairwise(ends) for first in range(*part, size)] + [total]
    first, last = distributed.share(len(chunks) - 1, number=number)
    return chunks[first], chunks[last]


def new_selector(job, start, device):
    settings = {name: job.config[name] for name in ("strategy", "p", "k", "seed", "min_score")}
    return Selector(len(job.teacher.classes), **settings, device=device, start=start)


def _state_file(number):
    return f"resume-{number}.pt" if number else "resume.pt"


def _score_file(number):
    return f"scores-{number}.bin"


# --- its files ----------------------------------------------------------------------------------


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
    raise program.Failure(
        f"{bad} of {len(job.pool)} pool images cannot be read (see {folder / 'skipped.csv'}), "
        f"above --max-bad-fraction {most:g}"
    )


def write_files(job, rows, score_files):
    """selection.csv, skipped.csv and, where the scores were kept, scores.npz.

    rows: position, label, score and rank, (M,) each, as attributes
    """
    folder, pool = job.stage.folder, job.pool
    names = list(map(pool.name_of, rows.position))
    path = folder / "selection.csv"
    selection.write_selection(path, names, rows.label, rows.score, rows.rank)
    if not job.config["engine"]:  # which has written its own
        write_skipped(job)
    if score_files:
        selection.write_scores(folder / "scores.npz", pool.names_of, pool.scorable, score_files)


def write_skipped(job):
    pairs = ((job.pool.name_of(position), reason) for position, reason in job.pool.skipped())
    selection.write_skipped(job.stage.folder / "skipped.csv", chain(pairs, job.pool.unused()))


def result_of(job, position, scored):
    """result.json but for what report.diagnostics says of the rows; position: (M,), of the rows"""
    c, pool, kept = job.config, job.pool, np.unique(position)
    return {
        "stage": job.stage.name,
        "dataset": display_name(c["dataset"], c["data_dir"]),
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
        "seconds": round(scored.seconds, 2),
        "images_per_second": round(len(pool) / scored.seconds, 2),
    }
