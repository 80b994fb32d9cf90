"""What the scripts share as programs: flags, inheritance, exit codes, signals.

Exit codes: 0 done; 2 a bad flag or a missing input, nothing changed; 1 a failure while running,
finished work kept; 130 Ctrl-C and 143 SIGTERM, state saved.  An error is one line on stderr;
`python -X dev main.py` adds the traceback.
"""

import argparse
import ctypes
import dataclasses
import errno
import functools
import os
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import torch

import distributed
import runlog
from data import LABELLED_SETS, POLICIES, load_labelled, split
from engine import SCHEDULES
from models import MODELS
from presets import PRESETS, Training, override

# What stages 2 to 4 take over from the stage before; a flag may repeat it but not change it.
INHERITED = ("preset", "dataset", "seed", "labels_per_class", "val_per_class", "input_size")


class Failure(Exception):
    """A stage could not go on; what it had finished is kept."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM."""

    def __init__(self, signum):
        super().__init__(signum)
        self.signum = signum


class _Signals:
    """Ctrl-C and SIGTERM end the program at once, or wait while a stage can save its state."""

    pending = None
    deferred = False

    def receive(self, signum, frame):
        if self.deferred and self.pending is None:
            self.pending = signum
        # torchrun passes a signal on that its processes may have had themselves already.
        elif not (self.deferred and distributed.size() > 1):
            raise Interrupted(signum)


_signals = _Signals()


def interruption():
    """The signal that a stage has to save its state for and stop at, or None."""
    return _signals.pending


@contextmanager
def saving_on_interrupt():
    """Inside this context a first signal is only noted: the code asks `interruption()` for it,
    saves, and calls `stop`.  A second one ends the program at once.
    """
    _signals.deferred = True
    try:
        yield
    finally:
        _signals.deferred = False
    if _signals.pending is not None:  # it came after the last question
        raise Interrupted(_signals.pending)


def stop(bar, folder, signum):
    """End a stage whose state has just been saved."""
    bar.close()
    print(f"state saved in {folder}; go on with --resume", flush=True)
    raise Interrupted(signum)


def program(main):
    """Make `main(argv=None)` a program: it raises SystemExit with the code of its error."""

    @functools.wraps(main)
    def wrapper(argv=None):
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                previous[signum] = signal.signal(signum, _signals.receive)
        _signals.pending = None
        try:
            main(argv)
            distributed.wait()  # the first process writes the last files
        except (Failure, FloatingPointError) as error:
            _stop(1, error)
        except RuntimeError as error:
            if distributed.size() == 1:
                raise
            _stop(1, error)  # most likely another process has failed, and says why
        except (ValueError, OSError) as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            _stop(1 if full else 2, error)
        except Interrupted as stop:
            _stop(128 + stop.signum, f"stopped by {signal.Signals(stop.signum).name}")
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    return wrapper


def _stop(code, error):
    line, who = " ".join(str(error).split()), Path(sys.argv[0]).name
    who += f" (process {distributed.rank()})" if distributed.size() > 1 else ""
    print(f"{who}: {line}", file=sys.stderr)
    if sys.flags.dev_mode and isinstance(error, Exception):
        raise error
    raise SystemExit(code)


@contextmanager
def working():
    """From here on an error of the disk or of the data is a Failure (exit code 1)."""
    try:
        yield
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        raise Failure(str(error)) from error


@contextmanager
def running(folder, config=None, epochs_done=None):
    """A stage runs, `working`: -> its RunLog in the first process, None in the others.

    The arguments are those of RunLog.
    """
    distributed.wait()  # every process has read what it needs
    with working(), ExitStack() as stack:
        log = None
        if distributed.is_first():
            log = stack.enter_context(runlog.RunLog(folder, config, epochs_done))
        distributed.wait()  # the folder is there
        yield log


# --- flags --------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors are one line, exit code 2."""

    def error(self, message):
        print(f"{self.prog}: {message}; see python {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


class Boolean(argparse.Action):
    """--x, --x True, --x=false, --no-x."""

    words: ClassVar = {"true": True, "1": True, "yes": True, "on": True}
    words |= {"false": False, "0": False, "no": False, "off": False}

    def __init__(self, option_strings, dest, default=False, **kwargs):
        positive = [s for s in option_strings if s.startswith("--")]
        negative = ["--no-" + s[2:] for s in positive]
        super().__init__(
            option_strings + negative,
            dest,
            nargs="?",
            default=default,
            metavar="True|False",
            **kwargs,
        )

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


def number(kind, least, most=None, above=False):
    """An argparse type: a number from `least` (itself excluded with `above`) to `most`."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}") from None
        fits = (value > least if above else value >= least) and (most is None or value <= most)
        if not fits:  # also for nan
            bound = f"above {least}" if above else f"{least} or more"
            bound += "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value

    return convert


_LIMITS = {
    "epochs": number(int, 1),
    "learning_rate": number(float, 0, above=True),
    "batch_size": number(int, 1),
    "passes": number(int, 1),
    "warmup": number(float, 0, 1),
    "weight_decay": number(float, 0),
    "label_smoothing": number(float, 0, 1),
    "ema_decay": number(float, 0, 1),
    "mixup": number(float, 0),
    "cutmix": number(float, 0),
}
_CHOICES = {
    "model": list(MODELS),
    "schedule": SCHEDULES,
    "augment": POLICIES,
}


# The fields of presets.Training that step 2 takes too, so that one set of flags suits all steps.
EVERYWHERE = {
    "model": "must be the teacher's, if given",
    "epochs": "no effect in step 2",
    "learning_rate": "no effect in step 2",
    "batch_size": "images scored at a time",
}


def bare_parser(description):
    """A parser without flags, for the scripts that are no stage."""
    return _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parser(description, training=True):
    """A parser with the common flags; with `training` also one for every field of
    presets.Training, otherwise only those that every step takes.
    """
    parse = bare_parser(description)
    add = parse.add_argument_group("common").add_argument
    add("--preset", choices=PRESETS, help="named settings, see presets.py (default cifar100)")
    add("--run-dir", type=Path, metavar="DIR", help="where the stages are (default runs/<preset>)")
    add("--data-dir", type=Path, metavar="DIR", help="where data sets are (default datasets)")
    add(
        "--dataset",
        "--dataset-mode",
        choices=LABELLED_SETS,
        type=str.lower,
        help="the labelled images",
    )
    add("--input-size", type=number(int, 8, 1024), metavar="N", help="pixels a side")
    add("--labels-per-class", type=number(int, 1), metavar="N", help="labelled images a class")
    add("--val-per-class", type=number(int, 1), metavar="N", help="validation images a class")
    add("--seed", type=number(int, 0, 2**31), help="of the whole chain (default 0)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default auto")
    add("--deterministic", action=Boolean, help="refuse kernels whose sums vary from run to run")
    add("--resume", action=Boolean, help="go on with an unfinished stage; a finished one stays")
    add("--overwrite", action=Boolean, help="start the stage anew")
    add = parse.add_argument_group("training" if training else "scoring").add_argument
    for setting in dataclasses.fields(Training):
        if training or setting.name in EVERYWHERE:
            add(
                "--" + setting.name.replace("_", "-"),
                type=_LIMITS.get(setting.name),
                choices=_CHOICES.get(setting.name),
                metavar="NAME" if setting.name == "model" else None,
                help=setting.metadata["help"] if training else EVERYWHERE[setting.name],
            )
    return parse


def recipe(args, preset_training, saved=None):
    """The Training in force: the preset's (or, on resume, the saved one's) under the flags.

    A batch size given without a learning rate scales the rate with it: the paper's rule, so many
    for every 256 images (after Goyal et al. 2017).
    """
    base = Training(**saved) if saved else preset_training
    names = [field.name for field in dataclasses.fields(Training)]
    flags = {name: getattr(args, name) for name in names}
    if args.batch_size and args.learning_rate is None:
        flags["learning_rate"] = base.learning_rate * args.batch_size / base.batch_size
    return override(base, **flags)


def chain(args, above=None):
    """The settings that all four stages share, as a dict of INHERITED.

    above: config.json of the stage before (or of this stage itself, to be resumed); None for
    step 1.  Raises ValueError for a flag that contradicts it.
    """
    if above is None:
        preset = PRESETS[args.preset or "cifar100"]
        given = {name: getattr(args, name) for name in INHERITED[1:] if name != "seed"}
        settings = override(preset, **given)
        return {
            "preset": args.preset or "cifar100",
            "seed": args.seed or 0,
            **{name: getattr(settings, name) for name in given},
        }
    for name in INHERITED:
        given = getattr(args, name)
        if given is not None and given != above[name]:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} {given} contradicts the stage {above['stage']}, made with {above[name]}; "
                f"leave the flag out, or use another --run-dir and start from step 1"
            )
    return {name: above[name] for name in INHERITED}


def run_dir(args):
    folder = args.run_dir or Path("runs") / (args.preset or "cifar100")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run-dir {folder} is not a folder; name another one")
    return folder


def data_dir(args, above=None):
    """The flag, or what the stage before used."""
    return args.data_dir or Path(above["data_dir"] if above else "datasets")


def begin(args, stage):
    """-> device, stage folder, whether to resume; None, saying so, where nothing is to be done."""
    distributed.start()
    device, folder = pick_device(args), run_dir(args) / stage
    action = runlog.claim(folder, args.resume, args.overwrite)
    if action == "nothing":
        print(f"{folder} is finished already; --overwrite starts it anew")
        return None
    if action == "resume":  # another number of threads would sum in another order
        threads = runlog.read_json(folder / "config.json").get("threads")
        torch.set_num_threads(threads or torch.get_num_threads())
    return device, folder, action == "resume"


def keep_freed_memory():
    """Let glibc keep what a step frees, for the next one; elsewhere nothing happens.

    By default it gives large blocks back to the system, which clears their pages anew at the next
    step: resnet20 spent 3 to 5 % of its training and a third of its prediction on that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: 32 MB, the most that every version takes
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: nothing goes back


def pick_device(args):
    """The torch.device of --device, with determinism and memory set up.

    Raises ValueError for a device that is not there.
    """
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        name = "mps" if name == "cpu" and torch.backends.mps.is_available() else name
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[name]:
        raise ValueError(f"--device {name} is not available here; use --device cpu or auto")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    keep_freed_memory()
    torch.use_deterministic_algorithms(args.deterministic)
    torch.backends.cudnn.benchmark = not args.deterministic
    if name == "cuda" and distributed.size() > 1:
        if distributed.local_rank() >= torch.cuda.device_count():
            raise ValueError(
                f"process {distributed.local_rank()} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; lower torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(distributed.local_rank())
        return torch.device(name, distributed.local_rank())
    return torch.device(name)


def labelled_data(settings, data_dir):
    """The labelled set and its split: -> data.LabelledSet, data.Split."""
    with distributed.in_turns():  # the first one downloads and decodes
        labelled = load_labelled(settings["dataset"], data_dir, settings["input_size"])
    per_class = settings["labels_per_class"], settings["val_per_class"]
    return labelled, split(labelled.train_labels, settings["seed"], *per_class)


def check_data(labelled, classes, above):
    """ValueError when a data set is not the one that the stage before was made with."""
    if list(labelled.classes) != list(classes):
        raise ValueError(
            f"the teacher knows {len(classes)} classes ({classes[0]}, ...) and the data set "
            f"{labelled.name} has {len(labelled.classes)} ({labelled.classes[0]}, ...); choose "
            f"the --dataset and --data-dir that the teacher was trained on"
        )
    if above and labelled.inputs["pixels"] != above["inputs"]["labelled"]["pixels"]:
        raise ValueError(
            f"the data set {labelled.name} has changed since the stage {above['stage']} was made; "
            f"name its --data-dir, or start from step 1 with --overwrite"
        )


def check_same(saved, now):
    """ValueError when a stage to be resumed would go on with other settings or other data."""
    saved, now = _without_places(saved), _without_places(now)
    for name in sorted(saved.keys() & now.keys() - {"versions", "threads", "data_dir"}):
        if saved[name] != now[name]:
            was, wish = saved[name], now[name]
            if isinstance(was, dict):
                name, was, wish = next(
                    (f"{name}.{part}", was.get(part), wish.get(part))
                    for part in {**was, **wish}
                    if was.get(part) != wish.get(part)
                )
            raise ValueError(
                f"cannot resume: {name} was {was} and would now be {wish}; "
                f"resume with the same flags and data, or start anew with --overwrite"
            )


def _without_places(config):
    """Data may move between two runs: their digests tell whether they are the same."""
    if not isinstance(config, dict):
        return config
    return {name: _without_places(value) for name, value in config.items() if name != "path"}


def command(script, args):
    """The next step's command line, for the same run folder."""
    words = ["python", script]
    if args.preset:
        words += ["--preset", args.preset]
    if args.run_dir:
        words += ["--run-dir", str(args.run_dir)]
    return " ".join(words)


def table(title, rows):
    """Print two columns under a title."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
