"""Settings: from the preset, the stage before and the flags; what --resume may not change."""

from pathlib import Path

from presets import PRESETS, override

# What steps 2 to 4 take from the stage before; a flag may repeat it but not change it.
INHERITED = ("preset", "dataset", "seed", "labels_per_class", "val_per_class", "input_size")
DEFAULT_PRESET = "cifar100"


def inherit(flags, earlier=None, stage=None):
    """The settings that all four stages share: a dict of INHERITED, data_dir and
    cache_dir (None for the usual one, see prepare.cache_of).

    flags     the same names, and others; None where a flag was not given
    earlier   config.json of the stage before, or of this stage if it is resumed; None for step 1
    stage     the one that runs: the student may have an input size of its own
    Raises ValueError for a flag that contradicts the stage before.
    """
    if earlier is None:
        name = flags["preset"] or DEFAULT_PRESET
        names = [n for n in INHERITED if n not in ("preset", "seed")]
        preset = override(PRESETS[name], **{n: flags[n] for n in names})
        settings = {"preset": name, "seed": flags["seed"] or 0}
        settings |= {n: getattr(preset, n) for n in names}
        data_dir = flags["data_dir"] or Path("datasets")
        return settings | {"data_dir": data_dir, "cache_dir": flags.get("cache_dir")}
    settings = {name: earlier[name] for name in INHERITED}
    for name in INHERITED:
        given = flags[name]
        if given in (None, earlier[name]):
            continue
        if stage == "student" and name == "input_size":
            settings[name] = given
            continue
        flag = "--" + name.replace("_", "-")
        raise ValueError(
            f"{flag} {given} contradicts the stage {earlier['stage']}, made with {earlier[name]}; "
            f"leave the flag out, or use another --run-dir and start from step 1"
        )
    for name in ("data_dir", "cache_dir"):
        place = flags.get(name) or earlier.get(name)
        settings[name] = place and Path(place)
    return settings


def check_unchanged(saved, now):
    """ValueError when a stage to be resumed would go on with other settings or other data.

    saved, now: the contents of config.json
    """
    saved, now = _without_places(saved), _without_places(now)
    for name in sorted(saved.keys() & now.keys() - {*_AROUND, "data_dir", "cache_dir", "started"}):
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


_AROUND = (
    "device_name",
    "versions",
)  # these may change between two parts of a stage, and its bits with them


def with_resumption(saved, now):
    """-> config.json of a stage that is resumed, and in words what has changed around it since it
    was begun or last resumed, "" for nothing.

    saved, now: as in `check_unchanged`
    """
    around = {name: now[name] for name in _AROUND}
    last = [saved, *saved.get("resumed", ())][-1]
    was, new = (
        {"device": part.get("device_name"), **(part.get("versions") or {})}
        for part in (last, around)
    )
    words = [f"{n} is {new[n]}, was {was.get(n)}" for n in new if new[n] != was.get(n)]
    config = {**now, **saved}
    if words:
        entry = {"started": now["started"], **around}
        config["resumed"] = [*saved.get("resumed", ()), entry]
    return config, "; ".join(words)


def _without_places(config):
    """Data may move between two runs: their digests tell whether they are the same."""
    if not isinstance(config, dict):
        return config
    return {name: _without_places(value) for name, value in config.items() if name != "path"}
