"""Step 2 over tar shards that lie anywhere, on Ray Data: for pools too large for one machine.

    python make_sample_data.py --engine ray --unlabeled 's3://bucket/shards/{000000..000999}.tar'

An actor holds the teacher and the leak guard.  It reads a shard, decodes it with the code that
decodes every pool, scores it and reduces it to the K best of every class.  The program merges what
the actors answer and remembers which shards are done.  So an actor that dies costs the shard that
it was at, and a program that stops goes on with --resume.  A tie is won by the earlier shard, then
by the earlier member: the order of the pool.  Nothing in memory grows with the number of images.
"""

import io
import json
import logging
import os
import shutil
import signal
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from tqdm import tqdm

import distributed
from data import selection
from data.augment import Normalise
from data.images import Images
from data.listing import list_tars
from data.pool import open_pool
from data.remote import local_copy, locate, members_of, selected_pool, write_members
from engine import predict
from ranking import SCORE_BINS
from topk import EMPTY, MAX_POSITION, unpack_key

from . import checkpoint, program
from .lifetime import identity
from .prepare import cache_of
from .scoring import SAVE_SECONDS, Scored, new_selector

ROUND = 1000  # shards that Ray Data gets at a time
RETRIES = 2  # of a shard whose actor died
CPUS = 0.9  # of an actor; whole ones would starve Ray's own tasks
ACTORS_A_GPU = 2  # one scores while the other decodes


def first_position(number, shards):
    """The position of the first image of a shard, and how many images it may have.

    The high bits of a position are the shard's number, the others count its members.
    """
    bits = 32 - max(0, shards - 1).bit_length()
    return number << bits, min(1 << bits, MAX_POSITION)


def positions_in(selector):
    """The positions of all candidates that a Selector holds: a set."""
    keys = torch.cat([table.state_dict()["key"].flatten() for table in selector.tables.values()])
    return set(unpack_key(keys[keys != EMPTY])[1].tolist())


# --- in an actor --------------------------------------------------------------------------------


class Scorer:
    """What an actor holds."""

    def __init__(self, job):
        """job: Ray's reference to a ScoringJob whose pool is data.remote.Shards"""
        import ray

        self.job = job = ray.get(job)
        self.device = job.compute.device
        self.model = job.teacher.model.to(self.device)
        self.normalise = Normalise(job.teacher.mean, job.teacher.std, self.device)
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    def __call__(self, batch):
        (number,) = batch["number"].tolist()
        content, url = io.BytesIO(), self.job.pool.urls[number]
        try:
            with local_copy(url) as path, TemporaryDirectory() as scratch:
                answer = self.score(number, url, path, scratch)
        except (OSError, ValueError, FloatingPointError) as error:
            answer = {"error": f"{url}: {error}"}
        torch.save({"number": number, **answer}, content)
        return {"answer": [content.getvalue()]}

    def score(self, number, url, path, scratch):
        """Decode, guard, score and reduce a shard: a dict of tensors and plain types."""
        shards, config = self.job.pool, self.job.config
        first, most = first_position(number, len(shards.urls))
        kept, listing = new_selector(self.job, first, "cpu"), list_tars([path])
        if not len(listing):
            return {"state": kept.state_dict(), "entries": 0, "skipped": [], "members": "[]"}
        if len(listing) > most:
            raise ValueError(
                f"{len(listing)} images are more than the {most} that one of {len(shards.urls)} "
                f"shards may hold; score fewer shards at a time"
            )
        pool = open_pool([path], scratch, config["input_size"])
        if self.job.guard:
            pool.find_duplicates(self.job.guard)
        of = self.model, pool.images, self.normalise, config["batch_size"]
        selector, scored = new_selector(self.job, first, self.device), []
        for start, logits in predict(*of, precision=self.job.compute.precision):
            usable = torch.from_numpy(pool.scorable(start, start + len(logits)))
            top = selector.add(first + start, logits, usable)
            if config["save_scores"]:
                scored.append([column.cpu()[usable] for column in top])
        kept.merge(selector)  # from a GPU
        cut = len(os.path.basename(path))
        names = [shards.names[number] + inside[cut:] for inside in listing.names]
        best = [position - first for position in sorted(positions_in(kept))]
        members = members_of(path, listing, best, url, shards.names[number])
        return {
            "state": kept.state_dict(),
            "entries": len(pool),
            "counts": pool.count_skipped(),
            "skipped": [[names[position], reason] for position, reason in pool.skipped()],
            # JSON: torch's safe reader of such lists is slow.
            "members": json.dumps([(first + i, m) for i, m in zip(best, members, strict=True)]),
            "scores": parquet(pool, names, scored) if scored else None,
        }


def parquet(pool, names, scored):
    """The scored images of a shard as a Parquet file: image; label and score, P numbers each."""
    import pyarrow
    from pyarrow.parquet import write_table

    usable, content = pool.scorable(0, len(pool)), io.BytesIO()
    score, label = (torch.cat(column).numpy() for column in zip(*scored, strict=True))
    columns = {"image": [name for name, use in zip(names, usable, strict=True) if use]}
    columns |= {"label": list(label.astype("i4")), "score": list(score)}
    write_table(pyarrow.table(columns), content)
    return content.getvalue()


# --- in the program -----------------------------------------------------------------------------


class Walk:
    """The shards that are done, merged."""

    def __init__(self, job):
        """Raises ValueError for a damaged state, and under torchrun."""
        if distributed.size() > 1:
            raise ValueError("--engine ray starts processes of its own; leave torchrun out")
        self.job, self.folder = job, job.stage.folder
        self.path, self.shards = self.folder / "resume.pt", self.folder / "shards"
        self.selector = new_selector(job, 0, "cpu")
        self.done, self.entries, self.counts, self.spent = [], 0, {}, 0.0
        self.members = {}  # position -> its row of members.csv, for those in the selector
        if job.stage.saved and self.path.exists():
            with checkpoint.resuming(self.path):
                state = checkpoint.load(self.path)
                if state["stage"] != identity(job.config):
                    raise ValueError("it was saved by another stage")
                self.selector.load_state_dict(state.pop("selector"))
                vars(self).update({name: state[name] for name in _SAVED})

    def begin(self):
        """From here on files are written."""
        if not self.done:
            shutil.rmtree(self.shards, ignore_errors=True)
        self.shards.mkdir(exist_ok=True)
        self.began = time.monotonic() - self.spent

    def add(self, answer):
        """Take in what an actor answered.  Raises program.Failure where that failed."""
        if "error" in answer:
            raise program.Failure(
                f"{answer['error']}; all finished shards are kept, go on with --resume"
            )
        number, other = answer["number"], new_selector(self.job, 0, "cpu")
        other.load_state_dict(answer["state"])
        self.selector.merge(other)
        self.keep(dict(json.loads(answer["members"])))
        self.counts = added(self.counts, answer.get("counts"))
        self.entries += answer["entries"]
        if answer.get("scores"):
            (self.shards / f"{number:06}.parquet").write_bytes(answer["scores"])
        if answer["skipped"]:
            (self.shards / f"{number:06}.json").write_text(json.dumps(answer["skipped"]))
        self.done.append(number)

    def keep(self, members):
        """Add to `members`; those that are no candidates any more go now and then."""
        self.members |= members
        places = sum(table.table["key"].numel() for table in self.selector.tables.values())
        if len(self.members) > 2 * max(2**16, places):
            kept = positions_in(self.selector)
            self.members = {at: row for at, row in self.members.items() if at in kept}

    def save(self):
        self.spent = time.monotonic() - self.began
        self.job.stage.check_ours()
        state = {name: getattr(self, name) for name in _SAVED} | {
            "stage": identity(self.job.config)
        }
        checkpoint.save(state | {"selector": self.selector.state_dict()}, self.path)

    def skipped(self):
        """Yields (name, reason) in the order of the pool."""
        for path in sorted(self.shards.glob("*.json")):
            yield from json.loads(path.read_text())


_SAVED = ("done", "entries", "counts", "spent", "members")


def added(one, other):
    """The sum of two numbers, or of two dicts of sums; None counts as nothing."""
    if not isinstance(one or other, dict):
        return (one or 0) + (other or 0)
    one, other = one or {}, other or {}
    return {key: added(one.get(key), other.get(key)) for key in one | other}


def run(walk):
    """Score and rank the shards that are not done; -> Scored of the selected images.

    job.pool becomes the Pool of these, which are fetched into the cache.
    """
    job, shards, folder = walk.job, walk.job.pool, walk.folder
    walk.begin()
    if job.config["scores"]:
        rank_table(walk)
        return finish(walk)
    todo = sorted(set(range(len(shards.urls))) - set(walk.done))
    bar = tqdm(total=len(shards.urls), initial=len(walk.done), unit="shard", disable=None)
    last_save = time.monotonic()
    try:
        for answer in answers(job, todo) if todo else ():
            walk.add(answer)
            bar.update()
            signum = program.interruption()
            if signum or time.monotonic() - last_save > SAVE_SECONDS:
                walk.save()
                last_save = time.monotonic()
            if signum:
                program.stop(bar, folder, signum)
    finally:
        walk.save()
    bar.close()
    selection.write_skipped(folder / "skipped.csv", walk.skipped())
    bad, most = walk.counts.get("unreadable", 0), job.config["max_bad_fraction"]
    if bad > most * walk.entries:
        raise program.Failure(
            f"{bad} of {walk.entries} pool images cannot be read (see {folder / 'skipped.csv'}), "
            f"above --max-bad-fraction {most:g}"
        )
    return finish(walk)


def finish(walk):
    """Write members.csv, fetch the selected images; -> Scored"""
    job, shards, (position, *columns) = walk.job, walk.job.pool, walk.selector.rows()
    position, index = position.unique(return_inverse=True)
    members, elsewhere = [walk.members[at] for at in position.tolist()], job.config["scores"]
    if elsewhere:
        members = locate([name for (name,) in members], shards)
    write_members(walk.folder / "members.csv", members)
    if members:
        job.pool = selected_pool(job.config, walk.folder, cache_of(job.config))
    if members and elsewhere and job.guard:
        job.pool.find_duplicates(job.guard)
        skipped = [(job.pool.name_of(position), reason) for position, reason in job.pool.skipped()]
        selection.write_skipped(walk.folder / "skipped.csv", skipped)
        if skipped:
            raise program.Failure(
                f"{len(skipped)} selected images repeat labelled ones (see "
                f"{walk.folder / 'skipped.csv'}): take them out of the scores, or give "
                f"--keep-duplicates"
            )
    selector, seconds = walk.selector, time.monotonic() - walk.began
    rows = SimpleNamespace(
        rows=lambda: (index, *columns), scored=selector.scored, histogram=selector.histogram
    )
    facts = {"pool_size": walk.entries, "skipped": walk.entries - selector.scored}
    facts |= {"left_out": walk.counts or job.pool.count_skipped(), "copies_in_pool": None}
    facts["images_per_second"] = round(walk.entries / seconds, 2)
    return Scored(rows, [], seconds, facts)


def rank_table(walk):
    """Rank the scores in Parquet files: image, label and score (lists), in the order of the files.

    Raises ValueError for a file that has something else.
    """
    from fsspec.core import open_files
    from pyarrow.parquet import ParquetFile

    selector, p = walk.selector, walk.job.config["p"]
    names, classes = ["image", "label", "score"], len(walk.job.teacher.classes)
    for opened in sorted(open_files(walk.job.config["scores"]), key=lambda file: file.path):
        with opened as file:
            table = ParquetFile(file)
            if missing := set(names) - set(table.schema_arrow.names):
                raise ValueError(f"{opened.path} has no column {min(missing)!r}")
            for batch in table.iter_batches(2**16, columns=names):
                count = torch.tensor(batch["label"].value_lengths().to_numpy(False))
                label, score = (
                    torch.tensor(batch[name].flatten().to_numpy(False)) for name in names[1:]
                )
                label, score, first = label.long(), score.float(), walk.entries
                bad = (label < 0) | (label >= classes) | ~((score >= 0) & (score <= 1))
                if bad.any() or len(label) != len(score) or not 0 < count.min() <= count.max() <= p:
                    raise ValueError(
                        f"{opened.path}: a row needs 1 to --p {p} labels from 0 to {classes - 1}, "
                        f"and for each a score from 0 to 1"
                    )
                position = torch.arange(first, first + len(count))
                table_of = selector.tables["ranked"]
                table_of.add(label, score, position.repeat_interleave(count), label, score)
                bins = (score[count.cumsum(0) - count] * SCORE_BINS).long()
                selector.histogram += bins.clamp(max=SCORE_BINS - 1).bincount(minlength=SCORE_BINS)
                walk.keep({first + i: [n] for i, n in enumerate(batch["image"].to_pylist())})
                walk.entries = selector.scored = first + len(count)
    if not walk.entries:
        raise ValueError(f"--scores {walk.job.config['scores']}: no scores; check the path")


def answers(job, todo):
    """Yields what the actors answer for the shards `todo`, in any order."""
    with cluster() as ray:
        there = ray.cluster_resources()
        gpus = there.get("GPU", 0) if job.compute.device.type == "cuda" else 0
        settings = {"num_cpus": CPUS, "max_task_retries": RETRIES}
        settings |= {"num_gpus": 1 / ACTORS_A_GPU} if gpus else {}
        actors = int(gpus * ACTORS_A_GPU or max(1, there["CPU"]))
        job.teacher.model.cpu()
        if guard := job.guard:  # memory maps cannot travel
            guard.images = Images([guard.images[torch.arange(len(guard.images))]])
        reference = ray.put(job)
        for first in range(0, len(todo), ROUND):
            items = [{"number": number} for number in todo[first : first + ROUND]]
            pool = ray.data.ActorPoolStrategy(size=min(actors, len(items)))
            data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                Scorer, fn_constructor_args=(reference,), batch_size=1, compute=pool, **settings
            )
            try:
                for row in data.iter_rows():
                    yield torch.load(io.BytesIO(row["answer"]), weights_only=True)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().partition("\n")[0]
                raise program.Failure(f"Ray gave up ({reason}); go on with --resume") from error


@contextmanager
def cluster():
    """The Ray that runs already, the cluster that RAY_ADDRESS names, or one of this machine's own
    while it is needed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_worker_niceness", "0")  # with its 15, other work would starve them
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--engine ray needs Ray: pip install '.[ray]'") from None
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    if ray.is_initialized():
        yield ray
        return
    root, address = str(Path(__file__).parents[1]), os.environ.get("RAY_ADDRESS")
    words = {"address": address or "local", "log_to_driver": False, "logging_level": "error"}
    if address:
        words["runtime_env"] = {"working_dir": root, "excludes": ["/datasets", "/runs", ".git"]}
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        # As many actors as cores: each decodes with one (see data.workers.cores).
        variables = {"PYTHONPATH": root, "LOCAL_WORLD_SIZE": str(cores)}
        words |= {"include_dashboard": False, "num_cpus": cores, "_node_ip_address": "127.0.0.2"}
        words["runtime_env"] = {"env_vars": variables}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(**words)
    for number, handler in handlers.items():  # Ray has set its own
        signal.signal(number, handler)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # no bars of its own beside ours
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        ray.shutdown()
