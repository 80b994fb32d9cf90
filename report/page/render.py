"""The report page as a whole: its parts put into page.html."""

from pathlib import Path

import jinja2

from data.labelled import display_name
from report.tables import TRAININGS

from . import conclusion, selected, steps, tested

FOLDER = Path(__file__).parent


def render(run, rival, command_of):
    """The page of a run as text.

    run: stages.whole_run.WholeRun;  rival: another one, or None;  command_of: see `steps.settings`
    """
    name, uid = run.folder.resolve().name, "r0"  # uid: begins the ids of the run's elements
    facts = {"uid": uid, "classes": run.classes, "steps": steps.steps(run)}
    facts["settings"] = steps.settings(run, command_of)
    facts["learning"] = steps.learning([(name, run, rival)], uid) if run.curves else None
    facts["by_class"] = tested.by_class(run, uid) if run.answers else None
    facts["selection"] = selected.selection(run, uid) if run.rows else None
    facts["left_out"] = selected.left_out(run) if run.rows else None
    facts["unanswered"] = [TRAININGS[stage] for stage in run.curves.keys() - run.answers.keys()]
    facts["confusions"] = tested.confusions(run, uid)
    facts["mistakes"] = tested.mistakes(run) if run.answers else []
    arms = [conclusion.Arm(name, [run], [rival])] if run.curves else []
    return _render(name, [run], arms, run=facts, together=None)


def render_together(runs, links, is_rival):
    """The page of several runs side by side, as text.

    runs: {name: WholeRun};  links: {name: address of its page};  is_rival: (run, of) -> bool
    """
    arms = conclusion.arms_of(runs, is_rival)
    together = _comparison(arms) | {"links": list(links.items())}
    return _render(", ".join(runs), list(runs.values()), arms, run=None, together=together)


def _render(name, runs, arms, **facts):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    config = next(iter(runs[0].stages.values())).config
    seeds = ", ".join(map(str, sorted(set(map(conclusion.seed_of, runs)))))
    labelled = display_name(config["dataset"], config["data_dir"])
    about = f"{name}: {labelled}, {len(runs[0].classes)} classes, preset {config['preset']}, "
    about += f"seed{'s' if ',' in seeds else ''} {seeds}"
    facts |= {"name": name, "about": about, "said": conclusion.conclusion(arms)}
    return environment.get_template("page.html").render(facts)


def short_names(folders):
    """A name for each folder: its last part, the whole path where several share that."""
    last = [folder.resolve().name for folder in folders]
    return [
        name if last.count(name) == 1 else str(folder)
        for name, folder in zip(last, folders, strict=True)
    ]


def _comparison(arms):
    """Arms side by side: accuracies, selections, the settings that differ and those that do not."""
    shared, networks = conclusion.shared_teacher(arms), [arm.networks for arm in arms]
    lines = [
        (
            training,
            *(conclusion.value(column[name]) if name in column else "" for column in networks),
        )
        for name, training in TRAININGS.items()
        if any(name in column for column in networks) and not (shared and name == "teacher")
    ]
    firsts = [arm.runs[0] for arm in arms]
    if all(run.rows for run in firsts):
        lines.append(("rows kept, first seed", *(f"{len(run.rows[0]):,}" for run in firsts)))
        lines.append(("labels right, first seed", *map(steps.labels_text, firsts)))
    settings = [conclusion.settings_of(run) for run in firsts]
    names = dict.fromkeys(name for column in settings for name in column)
    rows = [(name, *(column.get(name, "") for column in settings)) for name in names]
    # A setting of a stage that only one of the runs has is no difference between them.
    differ = [row for row in rows if len({*row[1:]} - {""}) > 1]
    equal = [row[:2] for row in rows if row not in differ and row.count("") < len(arms) - 1]
    chains = [(arm.name, arm.runs[0], arm.rivals[0]) for arm in arms]
    return {
        "head": ("", *(arm.name for arm in arms)),
        "shared": shared and conclusion.value(shared),
        "rows": lines,
        "differ": differ,
        "equal": equal,
        "chart": steps.learning(chains, "all") if chains else None,
    }
