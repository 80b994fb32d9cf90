"""The walk over the pool in step 2: score, rank, save; stopped anywhere it goes on from there.

The pool is scored in chunks of a fixed size.  Every process of a torchrun job has a contiguous
range of whole chunks and a Selector of its own, so the number of processes changes no chunk, hence
no score, where the same kernels compute it: on a CPU the number of threads made no difference to
any network tried, on GPUs kernels are not chosen by timing here.  And since merged rankings do not
depend on how the pool was cut, the selection is the same, byte for byte.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import cli
import distributed
from data import JoinedPools, Normalise, selection
from engine import predict
from ranking import Ranking, candidates, top_classes

SAVE_SECONDS = 60
SCORE_BINS = 1000  # of the histogram of the pool's best scores, from 0 to 1
_AHEAD = 64  # chunks whose scores wait on the device: fetching each would hold up a GPU


class Selector:
    """Step 2 but for the teacher: logits of a pool, chunk by chunk -> the selection.

    Its state_dict is all that a walk over a pool needs to go on after a stop.  Several selectors,
    each on its own range of positions, are merged into the selection of the whole pool.
    """

    def __init__(self, classes, strategy, p, k, seed=0, min_score=0.0, device="cpu", start=0):
        """`min_score`: no candidate has less; `start`: the first position; see `candidates`."""
        self.strategy, self.p, self.seed, self.min_score = strategy, p, seed, min_score
        self.position = start  # the first entry not yet seen
        self.scored = 0
        self.histogram = torch.zeros(SCORE_BINS, dtype=torch.int64, device=device)  # best scores
        # The paper's ranking is kept whatever the strategy: it tells how many rows to select.
        self.tables = {"ranked": Ranking(classes, k, device)}
        self.whole = strategy in ("unbalanced", "random")  # one ranking for all classes
        if strategy != "ranked":
            groups, places = (1, classes * k) if self.whole else (classes, k)
            self.tables[strategy] = Ranking(groups, places, device)

    def add(self, first, logits, usable=None, tags=None):
        """Take in the logits (B,C) of the entries from position `first` on.

        usable: (B,) bool on the CPU, entries to let in, None for all; tags: (B,) int64, for the
        strategy tags.  Returns the P best classes of all entries: score, label (B,P).
        """
        score, label = top = top_classes(logits, self.p)
        position = torch.arange(first, first + len(logits), device=logits.device)
        if usable is not None and not usable.all():
            here = usable.nonzero()[:, 0].to(logits.device)
            logits, top, position = logits[here], (score[here], label[here]), position[here]
            tags = None if tags is None else tags[usable]
        tags = None if tags is None else tags.to(logits.device)
        for strategy, table in self.tables.items():
            rows = candidates(strategy, logits, top, position, self.seed, tags)
            if self.min_score > 0:
                enough = ~(rows[-1] < self.min_score)  # NaN is for the ranking to complain of
                rows = (column[enough] for column in rows)
            table.add(*rows)
        best = top[0][:, 0].nan_to_num()  # of NaN the ranking complains
        bins = (best * SCORE_BINS).long().clamp(0, SCORE_BINS - 1)
        # Not bincount, which makes a GPU wait.
        self.histogram.index_add_(0, bins, torch.ones_like(bins))
        self.scored += len(position)
        self.position = first + len(score)
        return score, label

    def rows(self):
        """The selection, see `Ranking.rows`."""
        table = self.tables[self.strategy]
        if self.whole:  # as many rows as the paper's rule selects
            table.cut(len(self.tables["ranked"].rows()[0]))
        return table.rows()

    def merge(self, other):
        """Take over what another selector, of other positions, has seen."""
        self.scored += other.scored
        self.histogram += other.histogram.to(self.histogram.device)
        for name, table in self.tables.items():
            table.merge(other.tables[name])

    def state_dict(self):
        state = {name: getattr(self, name) for name in ("position", "scored", "histogram")}
        return state | {"tables": {name: table.state_dict() for name, table in self.tables.items()}}

    def load_state_dict(self, state):
        self.position, self.scored = state["position"], state["scored"]
        self.histogram = state["histogram"].to(self.histogram.device)
        for name, table in state["tables"].items():
            self.tables[name].load_state_dict(table)


@dataclass
class Job:
    """Step 2 with everything settled, before its folder is touched."""

    folder: Path
    config: dict
    teacher: checkpoint.Checkpoint
    pool: JoinedPools


@dataclass
class Scored:
    """A pool, scored and ranked."""

    selector: Selector
    scores: list[selection.ScoreFile]  # in pool order, one a process; none where not asked for
    seconds: float


def run(job, device, resume):
    """Score and rank the pool; -> Scored, in the first process that of the whole pool."""
    c, pool, number = job.config, job.pool, distributed.rank()
    first, last = distributed.share(len(pool), c["batch_size"])
    selector, spent = _selector(job, first, device), 0.0
    path = job.folder / _state_file(number)
    if resume and path.exists():
        state = checkpoint.load(path)
        spent = state.pop("seconds")
        selector.load_state_dict(state)
    scores, waiting = None, []
    if c["save_scores"]:
        scores = selection.ScoreFile(job.folder / _score_file(number), c["p"])
        scores.open(selector.position - first)
    torch.backends.cudnn.benchmark = False
    began = saved = time.monotonic()
    bar = tqdm(
        total=last - first, initial=selector.position - first, unit="img", unit_scale=True,
        disable=None, desc="scoring",
    )  # fmt: skip

    def drain():
        for score, label in waiting if scores else ():
            scores.write(score.cpu().numpy(), label.cpu().numpy())
        waiting.clear()
        pool.images.let_go()

    def save():
        drain()
        if scores:
            scores.flush()
        seconds = spent + time.monotonic() - began
        checkpoint.save({**selector.state_dict(), "seconds": seconds}, path)

    normalise = Normalise(job.teacher.mean, job.teacher.std, device)
    for start, logits in predict(
        job.teacher.model, pool.images, normalise, c["batch_size"], selector.position, last
    ):
        end = start + len(logits)
        usable, tags = torch.from_numpy(pool.usable(start, end)), None
        if c["strategy"] == "tags":
            tags = torch.from_numpy(pool.tags(job.teacher.classes, start, end))
        waiting.append(selector.add(start, logits, usable, tags))
        if len(waiting) == _AHEAD:
            drain()
        bar.update(len(logits))
        stop = cli.interruption()  # once: a signal after this is the next chunk's
        if stop or time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        if stop:
            cli.stop(bar, job.folder, stop)
    save()
    bar.close()
    seconds = distributed.largest(spent + time.monotonic() - began)  # all have saved by then
    return _gather(job, selector, seconds)


def _gather(job, selector, seconds):
    """Let the first process take over what the others have ranked."""
    processes = range(distributed.size())
    for number in processes[1:] if distributed.is_first() else ():
        other, state = _selector(job, 0, "cpu"), checkpoint.load(job.folder / _state_file(number))
        other.load_state_dict(state)
        _, end = distributed.share(len(job.pool), job.config["batch_size"], number)
        if other.position != end:
            raise cli.Failure(
                f"{job.folder / _state_file(number)} ends at image {other.position}, not {end}; "
                f"score again with --overwrite"
            )
        selector.merge(other)
    paths = [job.folder / _score_file(number) for number in processes]
    files = [selection.ScoreFile(path, job.config["p"]) for path in paths]
    return Scored(selector, files if job.config["save_scores"] else [], seconds)


def _selector(job, start, device):
    settings = {name: job.config[name] for name in ("strategy", "p", "k", "seed", "min_score")}
    return Selector(len(job.teacher.classes), **settings, device=device, start=start)


def _state_file(number):
    return f"resume-{number}.pt" if number else "resume.pt"


def _score_file(number):
    return f"scores-{number}.bin"
