"""What the runs say: one sentence, one picture, the differences.

Runs that differ in their seed alone are one arm.  A rival stands beside the run that it is the
rival of.
"""

from typing import NamedTuple

import numpy as np

from report import figures
from report.diagnostics import wilson_interval
from report.mcnemar import difference_over_seeds, paired_difference
from report.tables import RIVAL, TRAININGS, flat

from .parts import SPACE, chart

# Settings that say where and with what a stage ran; seeds are told apart by themselves.
_UNCOMPARED = ("stage", "started", "parent.", "more_parents", "versions.", "inputs.", "pools.")
_UNCOMPARED += ("normalisation.", "data_dir", "device_name", "threads", "seed")


class Tested(NamedTuple):
    """A network and the test images."""

    top1: float  # percent
    images: int
    right: np.ndarray | None  # bool (images,), None for a network from before answers were kept
    pixels: str  # digest of the labelled set
    sha256: str  # of the network

    @classmethod
    def of(cls, run, stage):
        finished, answers = run.stages[stage], run.answers.get(stage)
        pixels = finished.config["inputs"]["labelled"]["pixels"]
        right = None if answers is None else answers.right
        top1 = finished.result["test_top1"]
        return cls(top1, len(run.test.labels), right, pixels, finished.sha256)


class Arm(NamedTuple):
    """Runs of one setting, one a seed."""

    name: str
    runs: list  # stages.whole_run.WholeRun
    rivals: list  # of each run its rival, or None

    @property
    def networks(self):
        """{network: {seed: Tested}}, in the order of the steps, the rival last."""
        columns = {}
        for run, rival in zip(self.runs, self.rivals, strict=True):
            trained = {stage: Tested.of(run, stage) for stage in run.curves}
            trained |= {RIVAL: Tested.of(rival, "teacher")} if rival else {}
            for name, tested in trained.items():
                columns.setdefault(name, {})[seed_of(run)] = tested
        return {name: columns[name] for name in TRAININGS if name in columns}

    @property
    def last(self):
        """The last network of the steps."""
        return [name for name in self.networks if name != RIVAL][-1]


def seed_of(run):
    return next(iter(run.stages.values())).config["seed"]


def arms_of(runs, is_rival):
    """runs: {name: WholeRun};  is_rival: (run, of) -> bool;  -> [Arm], in the order given.

    Runs without a trained network are left out.
    """
    of_run = {n: next((o for o in runs.values() if is_rival(o, r)), None) for n, r in runs.items()}
    rivals, groups = list(map(id, of_run.values())), {}
    for name, run in runs.items():
        if run.curves and id(run) not in rivals:
            key = tuple(settings_of(run).items())
            again = [n for n in groups.get(key, ()) if seed_of(runs[n]) == seed_of(run)]
            groups.setdefault((key, name) if again else key, []).append(name)
    return [
        Arm(
            names[0] + (f" ({len(names)} seeds)" if names[1:] else ""),
            [runs[name] for name in names],
            [of_run[name] for name in names],
        )
        for names in groups.values()
    ]


def settings_of(run):
    """{name: text} of the settings that make an arm; those of a training with its stage before."""
    settings = {}
    for stage, content in run.stages.items():
        for name, value in flat(content.config):
            if not name.startswith(_UNCOMPARED):
                short = name.removeprefix("training.")
                settings.setdefault(short if short == name else f"{stage}: {short}", value)
    return settings


# --- numbers ------------------------------------------------------------------------------------


def top1(column):
    """Percent of the test images right, (n,).  column: {seed: Tested}"""
    return [tested.top1 for tested in column.values()]


def value(column):
    """Text: percent; for several seeds the mean and the standard deviation."""
    spread = f" ± {np.std(top1(column), ddof=1):.2f}" if len(column) > 1 else ""
    return f"{np.mean(top1(column)):.2f}{spread}{SPACE}%"


def _interval(column):
    """The 95 % interval in percent: Student's of several seeds, Wilson's of one."""
    if len(column) > 1:
        _, low, high, _ = difference_over_seeds(top1(column), np.zeros(len(column)))
        return max(0, low), min(100, high)
    ((percent, images, *_),) = column.values()
    return [100 * bound for bound in wilson_interval(round(percent * images / 100), images)]


def difference(ours, theirs):
    """(points, low, high, p, text: what was paired) of two columns; None where nothing can be.

    Pairs the seeds where both have several, otherwise the answers to the test images.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) > 1:
        columns = ([column[seed].top1 for seed in seeds] for column in (ours, theirs))
        return *difference_over_seeds(*columns), f"{len(seeds)} seeds"
    if len(ours) == len(theirs) == 1:
        a, b = next(iter(ours.values())), next(iter(theirs.values()))
    elif seeds:
        a, b = ours[seeds[0]], theirs[seeds[0]]
    else:
        return None
    if a.right is None or b.right is None or (a.pixels, a.images) != (b.pixels, b.images):
        return None
    gap, low, high, p = paired_difference(a.right, b.right)
    return 100 * gap, 100 * low, 100 * high, p, f"{a.images:,} test images, one seed"


def shared_teacher(arms):
    """The column of the teachers that all of several arms start from, None where they differ."""
    columns = [arm.networks.get("teacher", {}) for arm in arms]
    hashes = [{seed: tested.sha256 for seed, tested in column.items()} for column in columns]
    same = len(arms) > 1 and all(seeds == hashes[0] for seeds in hashes)
    return columns[0] if same and hashes[0] else None


# --- the sentence, the table, the picture -------------------------------------------------------


def conclusion(arms):
    """What the page begins with: a dict of sentence, details, differences (a table), picture."""
    differences = list(_differences(arms))
    rows = [
        (name, f"{gap:+.2f}", f"[{low:+.2f}, {high:+.2f}]", f"{p:.3f}" if p >= 0.001 else "< 0.001",
         paired)
        for name, gap, low, high, p, paired in differences
    ]  # fmt: skip
    head = ("difference in test top-1", "points", "95 % interval", "p", "paired")
    details = [_reading(*difference) for difference in differences[:3]]
    facts = {"differences": {"head": head, "rows": rows}, "details": details}
    facts["rival"] = any(any(arm.rivals) for arm in arms)
    return facts | {"sentence": _sentence(arms), "picture": _picture(arms) if arms else None}


def _sentence(arms):
    if not arms:
        return "No network is trained yet"
    run, networks = arms[0].runs[0], arms[0].networks
    digits = next(iter(run.stages.values())).config["dataset"] == "digits"
    of_all = f"of the {len(run.test.labels):,} test {'digits' if digits else 'images'}"
    if len(arms) > 1:
        shares = [(np.mean(top1(arm.networks[arm.last])), arm.name) for arm in arms]
        chosen = shares if len(arms) < 4 else (min(shares), max(shares))
        shown = [f"{name} {share:.1f}{SPACE}%" for share, name in chosen]
        return f"Right {of_all}: {(', ' if len(arms) < 4 else ' to ').join(shown)}"
    shown = {name: f"{np.mean(top1(column)):.1f}{SPACE}%" for name, column in networks.items()}
    last, seeds = arms[0].last, len(arms[0].runs)
    text = (
        f"The {'teacher' if last == 'teacher' else 'student'} is right for {shown[last]} {of_all}"
    )
    text += " before fine-tuning" if last == "student" else ""
    if last != "teacher" and "teacher" in shown:
        text += f", its teacher for {shown['teacher']}"
    text += f", the labels alone with equal compute for {shown[RIVAL]}" if RIVAL in shown else ""
    return f"{text}; {f'means of {seeds} seeds' if seeds > 1 else 'one seed'}"


def _reading(name, gap, low, high, p, paired):
    text = f"{name}: {gap:+.2f} points [{low:+.2f}, {high:+.2f}], {paired}."
    if low > 0 or high < 0:
        return f"{text} The interval lies {'above' if low > 0 else 'below'} zero."
    return f"{text} The interval holds zero: the two cannot be told apart by this."


def _differences(arms):
    """Yields (text, *`difference`): in each arm to the rival and the teacher, then to the first."""
    pairs = []
    for arm in arms:
        for name in (RIVAL, "teacher"):
            if name in arm.networks and arm.last != name:
                whose = f"{arm.name}: student" if len(arms) > 1 else "Student"
                text = f"{whose} minus {TRAININGS[name]}"
                pairs.append((text, arm.networks[arm.last], arm.networks[name]))
    for arm in arms[1:]:
        columns = (ends.networks[ends.last] for ends in (arm, arms[0]))
        pairs.append((f"{arm.name} minus {arms[0].name}", *columns))
    return [(text, *numbers) for text, *columns in pairs if (numbers := difference(*columns))]


def _picture(arms):
    shared = shared_teacher(arms)
    rows = [("one teacher", [_dot("teacher", shared)])] if shared else []
    for arm in arms:
        dots = [
            _dot(name, column)
            for name, column in arm.networks.items()
            if not (shared and name == "teacher")
        ]
        rows += (
            [(arm.name, dots)] if len(arms) > 1 else [(TRAININGS[dot[0]], [dot]) for dot in dots]
        )
    lines = [
        (f"{text}: {TRAININGS[name]}" if len(arms) > 1 else text, f"{mean:.2f}",
         f"{low:.2f} to {high:.2f}", " ".join(f"{x:.2f}" for x in seeds))
        for text, dots in rows for name, mean, low, high, seeds in dots
    ]  # fmt: skip
    head = ("network", "test top-1, %", "95 % interval", "of each seed")
    return chart(figures.accuracies(rows), "Test accuracy", "accuracy", (head, lines))


def _dot(name, column):
    return name, float(np.mean(top1(column))), *_interval(column), top1(column)
