"""verdicts.md and the study's figures, from claims and the rows of runs.csv alone."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from files import write_text

from .figures import claim_figure, save_svg
from .rows import accuracies, chain
from .statistics import Table, holm


def write_page(folder, preset, claims, rows, tuning):
    """Write FOLDER/verdicts.md and FOLDER/figures/<claim>.svg; -> [Judged], one a claim.

    preset: of the command;  claims: [trials.claim.Claim], all of the preset: Holm's correction is
    over them;  rows: see trials/rows.py;  tuning: the number of seeds that candidates are chosen on
    """
    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    rows = [row for row in rows if row["preset"] == preset]
    judged = [judge(claim, rows, preset, tuning) for claim in claims]
    others = [
        o
        for result in judged
        if not result.claim.primary
        for o in result.outcomes
        if o.p is not None
    ]
    corrected = dict(zip(map(id, others), holm([o.p for o in others]), strict=True))
    sections = []
    for result in judged:
        path = figures / f"{result.claim.name}.svg"
        path.unlink(missing_ok=True)
        if figure := claim_figure(result.claim, result.table, result.outcomes):
            save_svg(figure, path)
        sections += _section(result, corrected, preset, path.exists())
    lines = ["# Verdicts", "", _INTRODUCTION, "", _spent(rows), "", *_summary(judged), *sections]
    write_text(Path(folder, "verdicts.md"), "\n".join(lines) + "\n")
    return judged


_INTRODUCTION = """\
Made by `study.py --report` from `runs.csv` and `claims.py`.  Accuracies are percent top-1 on test
images, last weights; choices were made on validation images.  Differences are paired by seed:
points, mean, 95 % t interval.  *p* is that of the hypothesis that a confirmation rejects (the
docstring of `trials/statistics.py`), *Holm* the same after Holm's correction over all parts of this
page but those of the primary claim, *flip* the exact two-sided sign-flip p.  The primary claims of
the presets `study` and `cifar10` were named after their runs.  *Labels right* is the share of all
rows of the last selection whose label is the image's; an image of no class counts as wrong."""


@dataclass(frozen=True)
class Judged:
    """A claim, what its tests found, and the rows that they found it in."""

    claim: object
    outcomes: tuple
    table: Table
    ends: dict  # {arm: {seed: the rows of its chain, the oldest first}}
    notes: tuple[str, ...]  # on the machines


def judge(claim, rows, preset, tuning):
    """-> Judged.  One precision serves all tests of a claim: the one in which most of them have
    their seeds, the oldest of equals.  Where only several together have the seeds, the verdict is
    "not comparable".  Seeds beyond the claim's own, which another claim has run, do not count.
    """
    seeds, tuned = range(claim.seeds), range(min(tuning, claim.seeds))
    by_precision = {}
    for row in sorted(rows, key=lambda row: row.get("started") or ""):
        if int(row["seed"]) in seeds and row["arms"]:
            by_precision.setdefault(_named("precision", chain(rows, row)), []).append(row)

    def judged(chosen):
        table = Table(accuracies(chosen, preset))
        return table, tuple(test.judge(table, seeds, tuned) for test in claim.tests)

    def finished(precision):
        return sum(
            outcome.verdict != "unfinished" for outcome in judged(by_precision[precision])[1]
        )

    best = max(by_precision, key=finished, default=None)
    mine = by_precision.pop(best, [])
    everything = [row for others in by_precision.values() for row in others] + mine
    (table, outcomes), (_, mixed) = judged(mine), judged(everything)
    outcomes = tuple(
        replace(ours, verdict="not comparable")
        if ours.verdict == "unfinished" != other.verdict
        else ours
        for ours, other in zip(outcomes, mixed, strict=True)
    )
    ends = {}
    for row in everything:  # those of the best precision last
        for arm in row["arms"].split("; "):
            ends.setdefault(arm, {})[int(row["seed"])] = chain(rows, row)
    compared = sorted({arm for outcome in outcomes for arm in outcome.arms} & ends.keys())
    notes = [_machines("CPUs", "cpu", compared, ends)]
    if any(outcome.verdict == "not comparable" for outcome in outcomes):
        notes.append(_machines("Not comparable, precisions", "precision", compared, ends))
    return Judged(claim, outcomes, table, ends, tuple(filter(None, notes)))


def _named(column, steps):
    return " and ".join(sorted({row.get(column) or "unknown" for row in steps}))


def _machines(what, column, arms, ends):
    """Which arms have which value of a column; empty where all have the same."""
    by_value = {}
    for arm in arms:
        steps = [row for run in ends[arm].values() for row in run]
        by_value.setdefault(_named(column, steps), []).append(arm)
    text = "; ".join(f"{value}: {', '.join(names)}" for value, names in by_value.items())
    return f"{what}: {text}." if len(by_value) > 1 or " and " in text.partition(":")[0] else ""


def _spent(rows):
    images, seconds = (sum(float(row[name]) for row in rows) for name in ("images", "seconds"))
    return f"{len(rows)} runs, {images / 1e6:.1f} million images, {seconds / 3600:.1f} core hours."


def print_verdicts(judged):
    """One line a part."""
    width = max(len(result.claim.name) for result in judged)
    for result in judged:
        for part in parts(result):
            print(f"{result.claim.name:<{width}}  {part.replace('**', '')}")


def parts(result):
    """Yield "part: mean [interval] **verdict**" for every test of a claim."""
    for test, outcome in zip(result.claim.tests, result.outcomes, strict=True):
        numbers = "; ".join(map(_interval, outcome.contrasts))
        toy = result.claim.toy and outcome.verdict != "unfinished"
        word = f"**{outcome.verdict}{', toy' if toy else ''}**"
        name = f"{test.part}:" if test.part else ""
        yield " ".join(filter(None, (name, numbers, word)))


def _interval(contrast):
    width = f" [{contrast.low:+.2f}, {contrast.high:+.2f}]" if len(contrast.differences) > 1 else ""
    return f"{contrast.mean:+.2f}{width}"


def _summary(judged):
    """A row a claim, or for claims that stand beside one another."""
    yield "| claim | paper | here, points, and verdict by part | bears on the paper? |"
    yield "|---|---|---|---|"
    names = {result.claim.name for result in judged}
    for result in judged:
        if result.claim.beside in names:
            continue
        together = [result, *(other for other in judged if other.claim.beside == result.claim.name)]
        links = ", ".join(
            f"[{o.claim.name}](#{o.claim.name}){' (primary)' if o.claim.primary else ''}"
            for o in together
        )
        here = "<br>".join(part for o in together for part in parts(o))
        yield f"| {links} | {result.claim.paper} | {here} | {result.claim.bears} |"


def _section(result, corrected, preset, drawn):
    claim = result.claim
    yield from ("", f"## {claim.name}", "", claim.words, "", f"Paper: {claim.paper}.", "")
    if drawn:
        yield from (f"![{claim.name}](figures/{claim.name}.svg)", "")
    yield from (f"- {part}" for part in parts(result))
    if claim.bears:
        yield from ("", f"Bears on the paper?  {claim.bears[0].upper()}{claim.bears[1:]}.")
    yield from ("", f"Toy: {claim.toy}.") if claim.toy else ()
    columns = ("test", "counts from", "verdict", "mean", "95 % interval", "p", "Holm", "flip", "n")
    yield from ("", f"| {' | '.join((*columns, 'points'))} |", "|---" * 10 + "|")
    for test, outcome in zip(claim.tests, result.outcomes, strict=True):
        rule = f"{type(test).__name__} | {test.smallest:g} | {outcome.verdict}"
        if not outcome.contrasts:
            yield f"| {f'{test.part}: ' if test.part else ''}{rule} | | | | | | | |"
        p = "" if outcome.p is None else f"{outcome.p:.3g}"
        after = "primary" if claim.primary else f"{corrected.get(id(outcome), np.nan):.3g}"
        for c in outcome.contrasts:
            points = ", ".join(f"{x:+.2f}" for x in c.differences)
            yield (
                f"| {c.name}: {rule} | {c.mean:+.2f} | {c.low:+.2f} to {c.high:+.2f} | "
                f"{p} | {after if p else ''} | {c.p_flip:.3g} | {len(c.differences)} | {points} |"
            )
    notes = [outcome.note for outcome in result.outcomes if outcome.note]
    notes = [f"{note[0].upper()}{note[1:]}." for note in notes]
    yield from ("", *(f"{note}  " for note in (*notes, *result.notes)), "")
    yield from _arms_table(result)
    if any(outcome.verdict == "unfinished" for outcome in result.outcomes):
        yield f"Not all of the {claim.seeds} registered seeds are there; this finishes it:"
    command = f"python study.py --preset {preset}"
    yield from ("```", f"{command} --claims {claim.name}")
    yield f'{command} --commands "{claim.arms[-1].name}"   # prints those of one arm, seed 0'
    yield "```"


def _arms_table(result):
    """Every arm with what it cost and what its last selection was like."""
    yield "| arm | validation | test | n | images | multiply-adds | labels right |"
    yield "|---|---|---|---|---|---|---|"
    for arm in result.claim.arms:
        runs = list(result.ends.get(arm.name, {}).values())
        if not runs:
            yield f"| {arm.name} | not run | | 0 | | | |"
            continue
        val, test = (
            [float(steps[-1][name]) for steps in runs] for name in ("val_top1", "test_top1")
        )
        images = np.mean([sum(int(row["images"]) for row in steps) for steps in runs])
        work = np.mean([sum(int(row["multiply_adds"]) for row in steps) for steps in runs])
        right = [[row["labels_right"] for row in steps if row["labels_right"]] for steps in runs]
        right = [float(selections[-1]) for selections in right if selections]
        yield (
            f"| {arm.name} | {_mean_sd(val)} | {_mean_sd(test)} | {len(runs)} | {images:,.0f} | "
            f"{work:.3g} | {f'{np.mean(right):.1f} %' if right else ''} |"
        )
    yield ""


def _mean_sd(numbers):
    spread = f" ± {np.std(numbers, ddof=1):.2f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.2f}{spread}"
