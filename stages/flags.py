"""Command lines: the only module besides the scripts that knows flags.

A flag that is not given is None.  Nothing here imports torch,
which takes seconds: the scripts parse their flags first.
"""

import argparse
import dataclasses
import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from presets import PRESETS, Training

from .inherit import DEFAULT_PRESET
from .program import say

# The names of what data/, engine.py and ranking.py have; a test compares them.
LABELLED_SETS = ("cifar100", "cifar10", "digits", "folder")
POLICIES = ("none", "crop", "crop-flip", "trivialaugment")
SCHEDULES = ("cosine", "halving", "steps")
STRATEGIES = ("ranked", "unbalanced", "random-in-class", "random", "tags")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
COMPILE = ("auto", "on", "off")

HIDDEN = argparse.SUPPRESS  # as the help of a flag that --help-all leaves out, too
CHUNK = 512  # images that step 2 scores at a time, see stages/scoring.py
_OLD = "--dataset-mode CIFAR100, --load-pretrained True, --student-network True"
# Fields of presets.Training that one changes first; --help has these, --help-all all.
_FIRST = ("model", "epochs", "learning_rate", "batch_size")


class Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2.  No argument may be empty: `--run-dir "$RUN"` without a RUN
    would mean this folder.

    --help shows the flags that one uses first, --help-all also the rare ones.
    """

    def __init__(self, description, epilog=None):
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=_Format,
            allow_abbrev=False,
            add_help=False,
        )
        self._rare = []
        self.add_argument("--help", "-h", action=_Help, help="the flags that one uses first")
        self.add_argument("--help-all", action=_Help, help=argparse.SUPPRESS)

    def group(self, title, texts, description=None):
        """-> add(name, *other spellings, rare=False, **words): adds the flag --name with its text,
        for --help-all alone where it is `rare`.
        """
        group = self.add_argument_group(title, description)

        def add(name, *more, rare=False, **words):
            action = group.add_argument(f"--{name}", *more, help=texts[name], **words)
            if rare:
                self._rare.append(action)

        return add

    def print_all(self, rare):
        for action in [] if rare else self._actions:
            short = (action.help or "").partition(" [")[0]  # without the presets' values
            action.help = HIDDEN if action in self._rare else short
        self.print_help()

    def parse_args(self, args=None):
        words = sys.argv[1:] if args is None else args
        for before, word in pairwise(["", *words]):
            name, equals, value = word.partition("=")
            if not word or (equals and not value and name.startswith("--")):
                self.error(f"argument {name or before}: must not be empty")
        return super().parse_args(words)

    def error(self, message):
        say(f"{message}; see python {self.prog} --help")
        raise SystemExit(2)


class _Format(argparse.RawDescriptionHelpFormatter):
    """Shows the first of several spellings of a flag, and no values of a Boolean."""

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        bare = action.nargs == 0 or isinstance(action, Boolean)
        value = "" if bare else f" {self._format_args(action, action.dest.upper())}"
        return action.option_strings[0] + value

    def _format_usage(self, usage, actions, groups, prefix):
        words = [action.metavar or action.dest for action in actions if not action.option_strings]
        return f"usage: python {self._prog} {' '.join([*words, '[FLAGS]'])}\n\n"


class _Help(argparse.Action):
    def __init__(self, option_strings, dest, **kwargs):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser, namespace, values, option):
        parser.print_all(rare=option == "--help-all")
        parser.exit()


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


def labelled_set(text):
    """An argparse type: the name of a labelled set, or tags:POOL."""
    kind, colon, pool = text.partition(":")
    if colon and kind.lower() == "tags" and pool:
        return f"tags:{place(pool)}"
    if text.lower() not in LABELLED_SETS:
        known = ", ".join(LABELLED_SETS)
        raise argparse.ArgumentTypeError(f"choose from {known} and tags:POOL, not {text!r}")
    return text.lower()


def place(text):
    """An argparse type: a file or folder as text, also of `--flag=~/x`, in which no shell writes
    out the ~.
    """
    full = os.path.expanduser(text)
    if full.startswith("~") and not os.path.lexists(full.split("/")[0]):
        raise argparse.ArgumentTypeError(f"{text!r} names a user that there is not; write ./{text}")
    return full


def path(text):
    """`place` as a Path."""
    return Path(place(text))


def resizing(text):
    """An argparse type: a presets.Training.resize; none for whole images from the first step on."""
    text = "" if text == "none" else text
    try:
        Training(resize=text).sizes(2**31)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be SIZE:SHARE,..., sizes from 8 on, shares below 1 in all, not {text!r}"
        ) from None
    return text


# The fields of presets.Training that are numbers, and what they may be.
_TYPES = dict.fromkeys(("epochs", "batch_size"), number(int, 1))
_TYPES |= {"passes": number(int, 1, 1000)}  # the order of an epoch is in memory
_TYPES |= dict.fromkeys(("warmup", "label_smoothing", "ema_decay", "mixed"), number(float, 0, 1))
_TYPES |= dict.fromkeys(("weight_decay", "mixup", "cutmix"), number(float, 0))
_TYPES |= {"learning_rate": number(float, 0, exclusive=True)}
_METAVARS = dict.fromkeys(_TYPES, "N") | {"model": "NAME", "resize": "SIZE:SHARE,..."}
_TYPES |= {"resize": resizing}
_CHOICES = {"schedule": SCHEDULES, "augment": POLICIES}


def bare_parser(description):
    """A parser without flags, for the scripts that are no stage."""
    return Parser(description)


def preset_values(name, *parts):
    """What the presets say of a field, for --help: "[lab study: 0.1 / 0.01; demo: 0.05 / 0.005]".

    parts: the parts of a preset that have the field, a value each; none for a field of its own
    """
    presets = {}  # value -> those that have it
    for preset, settings in PRESETS.items():
        owners = [getattr(settings, part) for part in parts] or [settings]
        values = dict.fromkeys(_shown(getattr(owner, name)) for owner in owners)
        presets.setdefault(" / ".join(values), []).append(preset)
    if len(presets) == 1:
        return f"[{next(iter(presets))}]"
    return "[" + "; ".join(f"{' '.join(who)}: {value}" for value, who in presets.items()) + "]"


def _shown(value):
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return "all"
    return " + ".join(value) if isinstance(value, tuple) else str(value) or "none"


_TEXTS = {
    "preset": f"{', '.join(PRESETS)}: the named settings that the other flags change, see "
    "presets.py (default cifar100, for a GPU)",
    "run-dir": "where the stages are; a folder of its own for every experiment (default "
    "runs/<preset>)",
    "data-dir": "where data sets are, or go when they are downloaded (default datasets)",
    "cache-dir": "where decoded images are kept (default DATA_DIR/cache; with --dataset folder "
    "datasets/cache)",
    "dataset": f"the labelled images: {', '.join(LABELLED_SETS)}, or tags:POOL; folder: your own, "
    "DATA_DIR/train/<class>/*; tags: the names of a pool's folders, learnt with the preset's "
    f"settings of step 3 {preset_values('dataset')}",
    "seed": "of the whole chain: split, weights, order; several give error bars (default 0)",
    "resume": "go on with an unfinished stage; a finished one stays",
    "overwrite": "start the stage anew",
    "input-size": "pixels a side that every image is resized to; half of it is four times as fast "
    f"{preset_values('input_size')}",
    "labels-per-class": "true labels that steps 1 and 4 see; the other training images are the "
    "pool heldout: with fewer labels there is more to gain from it "
    f"{preset_values('labels_per_class')}",
    "val-per-class": "images a class cut from the training images, for all choices "
    f"{preset_values('val_per_class')}",
    "device": "auto: a GPU where there is one (default)",
    "precision": "of the convolutions; auto: the faster one on this machine (default)",
    "threads": "of the CPU; fewer beside other programs (default: as many as the network can use)",
    "deterministic": "refuse kernels whose sums vary from run to run; for the same bits twice on "
    "a GPU",
    "compile": "the network that is trained, with torch.compile; auto: on a GPU, not with "
    "--deterministic (default)",
    "yes": "presets for a GPU on a CPU: train for days",
}


def stage_parser(description, *parts):
    """A parser with the common flags, and one for every field of presets.Training; without `parts`
    these have no effect, but for batch_size.

    parts: the trainings of a preset that the program is for: teacher, student, finetune
    """
    parser = Parser(description, f"The predecessor's spellings work, too: {_OLD}.")
    text = "--help-all shows all flags, with the values of the presets in brackets"
    text += " (step 1 / step 4)." if len(parts) > 1 else "."
    add = parser.group("common", _TEXTS, text)
    add("preset", choices=PRESETS, metavar="NAME")
    add("run-dir", type=path, metavar="DIR")
    add("data-dir", type=path, metavar="DIR")
    add("cache-dir", rare=True, type=path, metavar="DIR")
    add("dataset", "--dataset-mode", type=labelled_set, metavar="NAME")
    add("input-size", rare=True, type=number(int, 8, 1024), metavar="N")
    add("labels-per-class", rare=True, type=number(int, 1), metavar="N")
    add("val-per-class", rare=True, type=number(int, 1), metavar="N")
    add("seed", type=number(int, 0, 2**31), metavar="N")
    add("device", rare=True, choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add("precision", rare=True, choices=PRECISIONS, default="auto")
    add("threads", rare=True, type=number(int, 1, 1024), metavar="N")
    add("deterministic", rare=True, action=Boolean)
    add("resume", action=Boolean)
    add("overwrite", action=Boolean)
    if parts:
        add("compile", rare=True, choices=COMPILE, default="auto")
        add("yes", rare=True, action=Boolean)
    texts = {setting.name: setting.metadata["help"] for setting in dataclasses.fields(Training)}
    if parts:
        texts = {name: f"{text} {preset_values(name, *parts)}" for name, text in texts.items()}
    else:  # the other steps' flags are taken, so that one set of flags suits all
        texts = dict.fromkeys(_FIRST, HIDDEN) | {
            "batch_size": f"images at a time (default {CHUNK})"
        }
    dashed = {name.replace("_", "-"): text for name, text in texts.items()}
    add = parser.group("training" if parts else "scoring", dashed)
    for name, flag in zip(texts, dashed, strict=True):
        add(
            flag,
            rare=not parts or name not in _FIRST,
            type=_TYPES.get(name),
            choices=_CHOICES.get(name),
            metavar=_METAVARS.get(name),
        )
    return parser


def run_dir(args):
    """The folder that holds the stages.  Raises ValueError for a file."""
    folder = args.run_dir or Path("runs") / (args.preset or DEFAULT_PRESET)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run-dir {folder} is not a folder; name another one")
    return folder


def pasted(command, *words):
    """A command line to be pasted into a shell, the words after it quoted."""
    return " ".join([command, *map(shlex.quote, map(str, words))])


def next_command(script, args, *more):
    """The next step's command line, for the same run folder; more: its other flags."""
    preset = ["--preset", args.preset] if args.preset else []
    run = ["--run-dir", args.run_dir] if args.run_dir else []
    return pasted(f"python {script}", *preset, *run, *more)
