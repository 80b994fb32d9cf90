"""Every flag of every script with every odd value, taken from the parsers themselves.

A command that must end for a reason of its own (its input is not there) is given one more flag.
Either the odd value is refused by name, or the table below has it and the command ends as without.
"""

import argparse
import dataclasses
import importlib
import re

import cv2
import numpy as np
import pytest
from test_structure import SCRIPTS

from presets import PRESETS, Training
from stages import flags

ODD = {
    "word": "word",
    "empty": "",
    "zero": "0",
    "negative": "-1",
    "huge": "99999999999999999999",
    "infinite": "1e400",
    "nan": "nan",
}
ANY = set(ODD) - {"empty"}
# A command of each script that ends before any work, and what it says then.
COMMANDS = {
    "main": ("--preset demo --dataset folder --data-dir nothing", "'nothing/train'"),
    "make_sample_data": ("--run-dir nothing", "nothing/teacher"),
    "student_train": ("--run-dir nothing", "nothing/samples"),
    "predict": ("photo.png", "runs/cifar100/finetuned"),
    "export": ("nothing out", "nothing is no finished stage"),
    "study": ("--preset demo --claims none", "--claims none"),
    "report.__main__": ("nothing", "nothing holds no finished stage"),
}
# What a flag accepts of the odd values; one that is not here accepts none of them.
NUMBERS = "seed min-score max-bad-fraction warmup label-smoothing ema-decay mixed weight-decay"
NUMBERS += " mixup cutmix member"
# Places and names: what does not exist is said by whoever needs it, and some are yet to be made.
NAMES = "run-dir data-dir runs-dir results output export tensorboard scores"
NAMES += " cache-dir model unlabeled push commands"
ACCEPTED = {f"--{name}": {"zero"} for name in NUMBERS.split()}
ACCEPTED |= {f"--{name}": ANY for name in NAMES.split()} | {"out": ANY}
NEEDS = {"--student": ["--student-network"]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", False), ("--x", True), ("--x True", True), ("--x=true", True), ("--x yes", True),
     ("--x False", False), ("--x=false", False), ("--x 0", False), ("--x off", False),
     ("--no-x", False), ("--x --no-x", False)],
)  # fmt: skip
def test_a_boolean_flag_takes_its_value_as_people_write_it(words, expected):
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", action=flags.Boolean)
    assert parser.parse_args(words.split()).x is expected


class Caught(Exception):
    """Holds the parser of a script that is about to parse."""


def actions_of(script, monkeypatch):
    """What the parser of a script knows: its flags and its positional arguments."""

    def catch(parser, args=None):
        raise Caught(parser)

    with monkeypatch.context() as patch, pytest.raises(Caught) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        script.parse([])
    actions = caught.value.args[0]._actions
    return [action for action in actions if action.dest not in ("help", "help_all")]


def with_value(command, action, position, value):
    """The words of a command with an odd value of one flag or of one positional argument."""
    words = command.split()
    if not action.option_strings:
        return [*words[:position], value, *words[position + 1 :]]
    flag = action.option_strings[0]
    return [*words, *NEEDS.get(flag, ()), f"{flag}={value}"]


def test_every_script_has_its_command():
    assert set(COMMANDS) == SCRIPTS - {"lab.__main__"}  # a number alone: see tests/test_lab.py


@pytest.mark.parametrize("name", COMMANDS)
def test_odd_values_are_refused_by_name_or_change_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cv2.imwrite("photo.png", np.zeros((8, 8, 3), np.uint8))
    script, (command, says) = importlib.import_module(name), COMMANDS[name]

    def error_of(words):
        with pytest.raises(SystemExit) as stop:
            script.main(words)
        printed, error = capsys.readouterr()
        assert (stop.value.code, printed, error.count("\n")) == (2, "", 1), (words, error)
        return error

    usual, actions = error_of(command.split()), actions_of(script, monkeypatch)
    assert says in usual and len(actions) > 3
    for position, action in enumerate(actions):
        known = (*action.option_strings, action.dest)[0]
        accepted = {"zero"} if isinstance(action, flags.Boolean) else ACCEPTED.get(known, set())
        for kind, value in ODD.items():
            error = error_of(with_value(command, action, position, value))
            shown = rf"(?<!\w){re.escape(value)}\b" if value else "must not be empty"
            named = known in error or re.search(shown, error)
            assert (kind in accepted) if error == usual else named, (known, kind, error)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("words", [["--run-dir", ""], ["--run-dir="], [""]])
def test_an_empty_word_is_refused_however_it_is_given(words, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("main").main(words)
    assert "must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["main", "make_sample_data", "student_train"])
def test_help_has_what_every_preset_says_of_a_flag(name, monkeypatch):
    """A flag for a field of a preset, or of one of its trainings, has its values in brackets."""
    script = importlib.import_module(name)
    helps = {action.dest: action.help for action in actions_of(script, monkeypatch)}
    parts = {"main": ("teacher", "finetune"), "student_train": ("student",)}.get(name, ())
    own = {"p", "k", "unlabeled"} if name == "make_sample_data" else set()
    fields = own | {"dataset", "input_size", "labels_per_class", "val_per_class"}
    fields |= {field.name for field in dataclasses.fields(Training)} if parts else set()
    for field in fields:
        where = parts if field in Training.__dataclass_fields__ else ()
        said = {}
        for group in re.search(r"\[([^]]*)\]$", helps[field])[1].split("; "):
            names, _, value = group.rpartition(": ")
            said |= dict.fromkeys(names.split() or PRESETS, value.split(" / "))
        for preset, settings in PRESETS.items():
            owners = [getattr(settings, part) for part in where] or [settings]
            for value, text in zip(
                [getattr(o, field) for o in owners], said[preset] * 2, strict=False
            ):
                if isinstance(value, float):
                    assert float(text) == value
                else:
                    words = (
                        value
                        if isinstance(value, tuple)
                        else ("all" if value is None else value or "none",)
                    )
                    assert text == " + ".join(map(str, words)), (field, preset)
