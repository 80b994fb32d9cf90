"""Command lines: the only module besides the scripts that knows flags.

A flag that is not given is None.  `shared`, `compute` and `training` give the flags' values as
plain dicts.  Nothing here imports torch, which takes seconds: the scripts parse their flags first.
"""

import argparse
import dataclasses
import os
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from presets import PRESETS, Training

from .folder import finished_already, left_behind, next_action
from .inherit import DEFAULT_PRESET, INHERITED
from .lock import taken
from .records import check_stage
from .signals import from_the_start, say

# The names of what data/, engine.py and ranking.py have; a test compares them.
LABELLED_SETS = ("cifar100", "cifar10", "digits", "folder")
POLICIES = ("none", "crop", "crop-flip", "trivialaugment")
SCHEDULES = ("cosine", "halving", "steps")
STRATEGIES = ("ranked", "unbalanced", "random-in-class", "random", "tags")
PRECISIONS = ("auto", "float32", "bfloat16")
COMPILE = ("auto", "on", "off")

CHUNK = 512  # images that step 2 scores at a time, see stages/scoring.py

# What step 2 takes of the fields of presets.Training, so that one set of flags suits all steps.
_EVERYWHERE = {
    "model": "must be the teacher's, if given",
    "epochs": "no effect in step 2",
    "learning_rate": "no effect in step 2",
    "batch_size": f"images scored at a time (default {CHUNK})",
}


class _Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2.  No argument may be empty: `--run-dir "$RUN"` without a RUN
    would mean this folder.
    """

    def parse_args(self, args=None):
        words = sys.argv[1:] if args is None else args
        for before, word in pairwise(["", *words]):
            name, equals, value = word.partition("=")
            if not word or (equals and not value and name.startswith("--")):
                self.error(f"argument {name or before}: must not be empty")
        return super().parse_args(words)

    def error(self, message):
        print(f"{self.prog}: {message}; see python {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


class Boolean(argparse.Action):
    """--x, --x True, --x=false, --no-x."""

    words: ClassVar = {"true": True, "1": True, "yes": True, "on": True}
    words |= {"false": False, "0": False, "no": False, "off": False}

    def __init__(self, option_strings, dest, default=False, **kwargs):
        names = option_strings + ["--no-" + s[2:] for s in option_strings if s.startswith("--")]
        super().__init__(names, dest, nargs="?", default=default, metavar="True|False", **kwargs)

    def __call__(self, parser, namespace, value, option):
        if option.startswith("--no-"):
            if value is not None:
                parser.error(f"argument {option}: takes no value, not {value!r}")
            flag = False
        else:
            flag = self.words.get("true" if value is None else value.lower())
            if flag is None:
                parser.error(f"argument {option}: must be True or False, not {value!r}")
        setattr(namespace, self.dest, flag)


def number(kind, least, most=2**31, exclusive=False):
    """An argparse type: an int or float from `least` (itself left out if `exclusive`) to `most`,
    above which no setting makes sense and some libraries overflow.
    """

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}") from None
        if not (value > least if exclusive else value >= least) or value > most:  # also for nan
            bound = f"above {least}" if exclusive else f"{least} or more"
            raise argparse.ArgumentTypeError(f"must be {bound} and at most {most}, not {text}")
        return value

    return convert


def path(text):
    """An argparse type: a Path, with ~ for the home folder also in `--run-dir=~/x`."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"there is no such home folder: {text}") from None


# The fields of presets.Training that are numbers, and what they may be.
_TYPES = dict.fromkeys(("epochs", "batch_size"), number(int, 1))
_TYPES |= {"passes": number(int, 1, 1000)}  # the order of an epoch is in memory
_TYPES |= dict.fromkeys(("warmup", "label_smoothing", "ema_decay", "mixed"), number(float, 0, 1))
_TYPES |= dict.fromkeys(("weight_decay", "mixup", "cutmix"), number(float, 0))
_TYPES |= {"learning_rate": number(float, 0, exclusive=True)}
_CHOICES = {"schedule": SCHEDULES, "augment": POLICIES}


def bare_parser(description):
    """A parser without flags, for the scripts that are no stage."""
    raw = argparse.RawDescriptionHelpFormatter
    return _Parser(description=description, formatter_class=raw, allow_abbrev=False)


def usual(name, *parts):
    """What the presets say of a field, for --help: "[lab study: 0.1 / 0.01; demo: 0.05 / 0.005]".

    parts: the parts of a preset that have the field, a value each; none for a field of its own
    """
    presets = {}  # value -> those that have it
    for preset, settings in PRESETS.items():
        owners = [getattr(settings, part) for part in parts] or [settings]
        found = dict.fromkeys(_shown(getattr(owner, name)) for owner in owners)
        presets.setdefault(" / ".join(found), []).append(preset)
    if len(presets) == 1:
        return f"[{next(iter(presets))}]"
    return "[" + "; ".join(f"{' '.join(who)}: {value}" for value, who in presets.items()) + "]"


def _shown(value):
    if isinstance(value, float):
        return f"{value:g}"
    return " + ".join(value) if isinstance(value, tuple) else "all" if value is None else str(value)


def stage_parser(description, *parts):
    """A parser with the common flags, and one for every field of presets.Training; without `parts`
    for those of them that every step takes.

    parts: the trainings of a preset that the program is for: teacher, student, finetune
    """
    parser = bare_parser(description)
    text = "Brackets have the values of the presets"
    text += ", those of step 1 / step 4 where they differ." if len(parts) > 1 else "."
    add = parser.add_argument_group("common", text).add_argument
    add("--preset", choices=PRESETS, help="the named settings that the other flags change, see "
        "presets.py (default cifar100, for a GPU)")  # fmt: skip
    add("--run-dir", type=path, metavar="DIR", help="where the stages are; a folder of its own for "
        "every experiment (default runs/<preset>)")  # fmt: skip
    add("--data-dir", type=path, metavar="DIR", help="where data sets are, or go when they are "
        "downloaded (default datasets)")  # fmt: skip
    add("--cache-dir", type=path, metavar="DIR", help="where decoded images are kept (default "
        "DATA_DIR/cache; with --dataset folder datasets/cache)")  # fmt: skip
    add("--dataset", "--dataset-mode", choices=LABELLED_SETS, type=str.lower, help="the labelled "
        f"images; folder: your own, in DATA_DIR/train/<class>/* {usual('dataset')}")  # fmt: skip
    add("--input-size", type=number(int, 8, 1024), metavar="N", help="pixels a side that every "
        f"image is resized to; half of it is four times as fast {usual('input_size')}")  # fmt: skip
    add("--labels-per-class", type=number(int, 1), metavar="N", help="true labels that steps 1 and "
        "4 see; the other training images are the pool heldout: with fewer labels there is more to "
        f"gain from it {usual('labels_per_class')}")  # fmt: skip
    add("--val-per-class", type=number(int, 1), metavar="N", help="images a class cut from the "
        f"training images, for all choices {usual('val_per_class')}")  # fmt: skip
    add("--seed", type=number(int, 0, 2**31), help="of the whole chain: split, weights, order; "
        "several give error bars (default 0)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto: a GPU where there is one (default)")  # fmt: skip
    add("--precision", choices=PRECISIONS, default="auto", help="of the convolutions; auto: the "
        "faster one on this machine (default)")  # fmt: skip
    add("--threads", type=number(int, 1, 1024), metavar="N", help="of the CPU; fewer beside other "
        "programs (default: as many as the network can use)")  # fmt: skip
    add("--deterministic", action=Boolean, help="refuse kernels whose sums vary from run to run; "
        "for the same bits twice on a GPU")  # fmt: skip
    add("--resume", action=Boolean, help="go on with an unfinished stage; a finished one stays")
    add("--overwrite", action=Boolean, help="start the stage anew")
    if parts:
        add("--compile", choices=COMPILE, default="auto", help="the network that is trained, with "
            "torch.compile; auto: on a GPU, not with --deterministic (default)")  # fmt: skip
        add(
            "--yes", action=Boolean, help="presets cifar100 on a CPU: train for days without asking"
        )
    add = parser.add_argument_group("training" if parts else "scoring").add_argument
    for setting in dataclasses.fields(Training):
        name, text = setting.name, setting.metadata["help"]
        if parts or name in _EVERYWHERE:
            add(
                "--" + name.replace("_", "-"),
                type=_TYPES.get(name),
                choices=_CHOICES.get(name),
                metavar="NAME" if name == "model" else "N" if name in _TYPES else None,
                help=f"{text} {usual(name, *parts)}" if parts else _EVERYWHERE[name],
            )
    return parser


def answer_early(parse, stage_name):
    """--help, a wrong flag, a stage that is finished or somebody else's: end the program before
    torch is imported.  From here on a signal ends it in one line.

    parse: argv -> arguments;  stage_name: arguments -> the stage
    """
    from_the_start()
    args = parse(None)
    with suppress(ValueError, OSError):  # the program itself will say what is wrong
        folder = run_dir(args) / stage_name(args)
        first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one writes and speaks
        if first and (said := taken(folder)):
            say(said)
            raise SystemExit(2)
        nothing = next_action(folder, args.resume, args.overwrite) == "nothing"
        if nothing and not getattr(args, "export", None) and not left_behind(folder):
            check_stage(folder)
            if first:
                print(finished_already(folder))
            raise SystemExit


def run_dir(args):
    """The folder that holds the stages.  Raises ValueError for a file."""
    folder = args.run_dir or Path("runs") / (args.preset or DEFAULT_PRESET)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run-dir {folder} is not a folder; name another one")
    return folder


def shared(args):
    """The flags that all stages share: a dict for `inherit.inherit`."""
    return {name: getattr(args, name) for name in (*INHERITED, "data_dir", "cache_dir")}


def compute(args):
    """The flags that say what to compute with: a dict for `device.settle_compute`."""
    return {"precision": args.precision, "threads": args.threads}


def training(args):
    """The flags of a training: a dict of the fields of presets.Training."""
    return {setting.name: getattr(args, setting.name) for setting in dataclasses.fields(Training)}


def next_command(script, args):
    """The next step's command line, for the same run folder."""
    words = ["python", script]
    if args.preset:
        words += ["--preset", args.preset]
    if args.run_dir:
        words += ["--run-dir", str(args.run_dir)]
    return " ".join(words)
