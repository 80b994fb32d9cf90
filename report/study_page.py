"""verdicts.md and the study's figures, from claims and the rows of runs.csv alone."""

from pathlib import Path

import numpy as np

from files import write_text
from trials.rows import accuracies, chain, last_rows

from .statistics import Table, verdict_of
from .study_figures import claim_figure, save_svg


def write_page(folder, preset, claims, rows, tuning):
    """Write FOLDER/verdicts.md and FOLDER/figures/<claim>.svg; -> [(claim, verdict, outcomes)].

    preset: of the command;  claims: claims.Claim;  rows: see report/rows.py
    tuning: the number of seeds that candidates are chosen on
    """
    figures = Path(folder) / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    judged, sections = [], []
    for claim in claims:
        seeds = range(claim.seeds)  # another claim may have run more of a shared arm
        table = Table(accuracies([row for row in rows if int(row["seed"]) in seeds], preset))
        outcomes = [
            test.judge(table, seeds, range(min(tuning, claim.seeds))) for test in claim.tests
        ]
        judged.append((claim, verdict_of(outcomes), outcomes))
        save_svg(claim_figure(claim, preset, table, outcomes), figures / f"{claim.name}.svg")
        sections += _section(*judged[-1], table, rows, preset)
    spent = _spent([row for row in rows if row["preset"] == preset])
    lines = ["# Verdicts", "", _INTRODUCTION, "", spent, "", *_summary(judged), *sections]
    write_text(Path(folder, "verdicts.md"), "\n".join(lines) + "\n")
    return judged


_INTRODUCTION = (
    "Made by `study.py --report` from `runs.csv` and `claims.py`.  Accuracies are percent top-1 on "
    "test images, last weights; choices were made on validation images.  Differences are paired by "
    "seed: points, mean, 95 % t interval; p is the exact two-sided sign-flip p."
)


def _spent(rows):
    images, seconds = (sum(float(row[name]) for row in rows) for name in ("images", "seconds"))
    return f"{len(rows)} runs, {images / 1e6:.1f} million images, {seconds / 3600:.1f} core hours."


def print_verdicts(judged):
    """One line a claim."""
    width = max(len(claim.name) for claim, *_ in judged)
    for claim, verdict, outcomes in judged:
        contrasts = [contrast for outcome in outcomes for contrast in outcome.contrasts]
        numbers = "; ".join(f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]" for c in contrasts)
        print(f"{claim.name:<{width}}  {_word(claim, verdict):<20} {numbers}")


def _word(claim, verdict):
    return f"{verdict}, toy" if claim.toy and verdict != "unfinished" else verdict


def _summary(judged):
    yield "| claim | paper | verdict | differences, points |"
    yield "|---|---|---|---|"
    for claim, verdict, outcomes in judged:
        contrasts = [contrast for outcome in outcomes for contrast in outcome.contrasts]
        numbers = "; ".join(f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]" for c in contrasts)
        yield (
            f"| [{claim.name}](#{claim.name}) | {claim.paper} | **{_word(claim, verdict)}** | "
            f"{numbers} |"
        )


def _section(claim, verdict, outcomes, table, rows, preset):
    yield from ("", f"## {claim.name}", "", claim.words, "", f"Paper: {claim.paper}.", "")
    yield from (f"![{claim.name}](figures/{claim.name}.svg)", "")
    yield f"**{_word(claim, verdict)}**" + (f" ({claim.toy})" if claim.toy else "")
    yield from ("", "| test | counts from | verdict | mean | 95 % interval | p | n | points |")
    yield "|---|---|---|---|---|---|---|---|"
    for test, outcome in zip(claim.tests, outcomes, strict=True):
        rule = f"{type(test).__name__} | {test.smallest:g} | {outcome.verdict}"
        if not outcome.contrasts:
            yield f"| {rule} | | | | | |"
        for c in outcome.contrasts:
            points = ", ".join(f"{x:+.2f}" for x in c.differences)
            yield (
                f"| {c.name}: {rule} | {c.mean:+.2f} | {c.low:+.2f} to {c.high:+.2f} | "
                f"{c.p_flip:.3g} | {len(c.differences)} | {points} |"
            )
    notes = [outcome.note for outcome in outcomes if outcome.note]
    yield from ("", *(f"{note[0].upper()}{note[1:]}.  " for note in notes), "")
    yield from _arms_table(claim, table, rows, preset)
    if verdict == "unfinished":
        yield f"Not all of the {claim.seeds} registered seeds are there; this finishes it:"
    command = f"python study.py --preset {preset}"
    yield from ("```", f"{command} --claims {claim.name}")
    yield f'{command} --commands "{claim.arms[-1].name}"   # prints those of one arm, seed 0'
    yield "```"


def _arms_table(claim, table, rows, preset):
    """Every arm with what it cost and what its selection was like."""
    ends = last_rows(rows, preset)
    yield "| arm | validation | test | n | images | multiply-adds | labels right |"
    yield "|---|---|---|---|---|---|---|"
    for arm in claim.arms:
        last = {s: row for s, row in ends.get(arm.name, {}).items() if s < claim.seeds}
        if not last:
            yield f"| {arm.name} | not run | | 0 | | | |"
            continue
        runs = [chain(rows, row) for row in last.values()]
        val, test = (table.column(arm.name, last, subset) for subset in (0, 1))
        images = np.mean([sum(int(row["images"]) for row in steps) for steps in runs])
        work = np.mean([sum(int(row["multiply_adds"]) for row in steps) for steps in runs])
        right = [float(r["labels_right"]) for steps in runs for r in steps if r["labels_right"]]
        yield (
            f"| {arm.name} | {_mean_sd(val)} | {_mean_sd(test)} | {len(last)} | {images:,.0f} | "
            f"{work:.3g} | {f'{np.mean(right):.1f} %' if right else ''} |"
        )
    yield ""


def _mean_sd(numbers):
    return f"{numbers.mean():.2f}" + (f" ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else "")
