"""Settings: from the preset, the stage before and the flags; what --resume may not change."""

import sys
from dataclasses import fields
from pathlib import Path

from presets import PRESETS, Training, override

# What steps 2 to 4 take from the stage before; a flag may repeat it but not change it.
INHERITED = ("preset", "dataset", "seed", "labels_per_class", "val_per_class", "input_size")
DEFAULT_PRESET = "cifar100"


def inherit(flags, earlier=None, own=()):
    """The settings that all four stages share: a dict of INHERITED and data_dir.

    flags     the same names; None where a flag was not given
    earlier   config.json of the stage before, or of this stage if it is resumed; None for step 1
    own       names whose flags may differ from the stage before
    Raises ValueError for a flag that contradicts it.
    """
    if earlier is None:
        name = flags["preset"] or DEFAULT_PRESET
        own = [n for n in INHERITED if n not in ("preset", "seed")]
        preset = override(PRESETS[name], **{n: flags[n] for n in own})
        settings = {"preset": name, "seed": flags["seed"] or 0}
        settings |= {n: getattr(preset, n) for n in own}
        data_dir = flags["data_dir"] or Path("datasets")
        return settings | {"data_dir": data_dir, "cache_dir": flags.get("cache_dir")}
    for name in INHERITED:
        given = flags[name]
        if given not in (None, earlier[name]) and name not in own:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} {given} contradicts the stage {earlier['stage']}, made with "
                f"{earlier[name]}; leave the flag out, or use another --run-dir and start from "
                f"step 1"
            )
    settings = {name: earlier[name] for name in INHERITED}
    settings |= {name: flags[name] for name in own if flags[name] is not None}
    for name in ("data_dir", "cache_dir"):
        place = flags.get(name) or earlier.get(name)
        settings[name] = place and Path(place)
    return settings


def recipe_in_force(preset, flags, saved=None):
    """The presets.Training of a stage: the preset's under the flags.

    flags: its fields, None where a flag was not given;  saved: the fields of the stage that is
    resumed, which then stand in for the preset's
    A batch size given without a learning rate scales the rate with it: the paper's rule, so much
    for every 256 images (after Goyal et al. 2017).
    """
    names = [setting.name for setting in fields(Training)]
    base = Training(**{n: saved[n] for n in names if n in saved}) if saved else preset
    if flags["batch_size"] and flags["learning_rate"] is None:
        scaled = base.learning_rate * flags["batch_size"] / base.batch_size
        flags = {**flags, "learning_rate": scaled}
    return override(base, **flags)


def check_unchanged(saved, now):
    """ValueError when a stage to be resumed would go on with other settings or other data.

    saved, now: the contents of config.json
    """
    saved, now = _without_places(saved), _without_places(now)
    if saved.get("device_name") != now["device_name"]:
        print(
            f"resumed on {now['device_name']}, begun on {saved.get('device_name')}: the bits will "
            f"not be those of a run that was never stopped",
            file=sys.stderr,
        )
    places = {"versions", "device_name", "data_dir", "cache_dir", "started"}
    for name in sorted(saved.keys() & now.keys() - places):
        was, wish = saved[name], now[name]
        if was == wish:
            continue
        if isinstance(was, dict) and isinstance(wish, dict):
            name, was, wish = next(
                (f"{name}.{key}", was.get(key), wish.get(key))
                for key in {**was, **wish}
                if was.get(key) != wish.get(key)
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
