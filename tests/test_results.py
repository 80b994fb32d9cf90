"""What RESULTS.md and README.md say of the study is what results/runs.csv holds."""

import re
from pathlib import Path

import pytest

import claims
from trials.arms import Planner
from trials.page import judge, parts, write_page
from trials.rows import accuracies, read_rows
from trials.statistics import Contrast, holm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FOLDERS = {path.parent for path in RESULTS.rglob("runs.csv")}  # one a preset
# In the texts the study's numbers stand between these lines.
STUDY = re.compile(r"<!-- study -->(.*?)<!-- end of study -->", re.DOTALL)


# What the texts compare besides the tests: preset, arms, and 1 for test images, 0 for validation.
ALSO = (
    ("study", "pipeline", "labels alone, 1 x pipeline", 1),
    ("cifar10", "labels alone, 1 x pipeline", "labels alone, 0.5 x pipeline", 1),
    ("cifar10", "pipeline", "pipeline before fine-tuning", 0),
    ("cifar10", "selection random-in-class", "labels alone, 1 x pipeline, fine-tuned", 1),
)


def also():
    """The numbers of these comparisons, over the seeds that both arms have."""
    for preset, ours, rival, subset in ALSO:
        path = RESULTS / ("" if preset == "study" else preset) / "runs.csv"
        found = accuracies(read_rows(path), preset)
        seeds = sorted(found[ours].keys() & found[rival].keys())
        sides = ([found[arm][seed][subset] for seed in seeds] for arm in (ours, rival))
        contrast = Contrast.of("", *sides)
        yield f"{contrast.mean:.2f} {contrast.low:.2f} {contrast.high:.2f}"


def numbers(text):
    """Those with two decimals, as every accuracy and difference of the study is written."""
    return set(re.findall(r"\d+\.\d\d\b", text))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{folder: (what write_page returns, the page's text)}, made anew from the rows"""
    made = {}
    for folder in FOLDERS:
        rows, place = read_rows(folder / "runs.csv"), tmp_path_factory.mktemp("page")
        preset = rows[0]["preset"]
        judged = write_page(place, preset, claims.claims(preset), rows, claims.TUNING)
        made[folder] = judged, (place / "verdicts.md").read_text(encoding="utf-8")
    return made


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_the_committed_verdicts_are_those_of_the_committed_rows(pages, folder):
    assert pages[folder][1] == (folder / "verdicts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_row_keeps_its_place(folder):
    """Whatever is renamed or added: no row becomes one of an arm that nobody asks for."""
    rows = read_rows(folder / "runs.csv")
    (preset,) = {row["preset"] for row in rows}
    arms = {arm.name: arm for claim in claims.claims(preset) for arm in claim.arms}
    planner = Planner(preset, claims.base(preset), arms)
    seeds = {int(row["seed"]) for row in rows}
    lasts = (planner.run(arm, seed) for arm in arms for seed in seeds)
    keys = {run.key for last in lasts for run in last.chain()}
    assert {row["key"] for row in rows} <= keys
    assert len({(row["key"], row["precision"]) for row in rows}) == len(rows)
    assert len(rows) >= {"study": 300, "cifar10": 164}.get(preset, 1)  # of the first two machines


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_every_number_of_the_study_is_that_of_a_verdict_or_a_run(name):
    parts = STUDY.findall((ROOT / name).read_text(encoding="utf-8"))
    files = (folder / name for folder in FOLDERS for name in ("verdicts.md", "runs.csv"))
    texts = [*(file.read_text(encoding="utf-8") for file in files), *also()]
    backed = set().union(*map(numbers, texts))
    said = numbers("".join(parts))
    assert said and said <= backed, f"neither a verdict nor a run: {sorted(said - backed)}"


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_claim_of_the_study_is_linked_from_the_results(folder):
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    preset = "study" if folder == RESULTS else folder.name
    for claim in claims.claims(preset):
        assert f"{folder.relative_to(ROOT)}/verdicts.md#{claim.name}" in text, claim.name


# --- the page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    """-> ({name: Claim}, rows) of the preset study"""
    return {claim.name: claim for claim in claims.claims("study")}, read_rows(RESULTS / "runs.csv")


def judged(study, name, rows):
    return judge(study[0][name], rows, "study", claims.TUNING)


def elsewhere(rows, **changes):
    """The same runs from another machine."""
    return [row | changes for row in rows]


def test_the_labels_of_a_second_round_are_those_of_its_second_selection(study, pages):
    right = [float(row["labels_right"]) for row in study[1] if row["step"] == "samples again"]
    assert right == [34.14, 34.815, 33.775]
    assert re.search(r"\| second round \|.*\| 34\.2 % \|", pages[RESULTS][1])


def test_a_contrast_of_two_precisions_is_refused_and_names_its_arms(study):
    rows = [
        row | {"precision": "unknown"} if row["arms"] == "soft labels" else row for row in study[1]
    ]
    one = judged(study, "soft-labels", rows)
    assert [outcome.verdict for outcome in one.outcomes] == ["not comparable"]
    assert "bfloat16: pipeline; unknown: soft labels" in one.notes[-1]


def test_a_second_machine_replaces_no_verdict(study):
    """Its rows stand beside the others; the first whole set counts, in whatever order they are."""
    first = judged(study, "soft-labels", study[1])
    other = elsewhere(study[1], precision="float32", started="2026-12-01", test_top1="50.0")
    for rows in (study[1] + other, other + study[1]):
        assert judged(study, "soft-labels", rows).outcomes == first.outcomes
    soft = [row for row in other if "soft labels" not in row["arms"]]
    assert judged(study, "soft-labels", soft + study[1]).outcomes == first.outcomes


def test_different_cpus_are_named_under_the_verdict(study):
    rows = [row | {"cpu": "B"} if row["arms"] == "soft labels" else row for row in study[1]]
    one = judged(study, "soft-labels", rows)
    assert one.outcomes[0].verdict == "inconclusive"
    assert one.notes and one.notes[0].startswith("CPUs: ") and "B: soft labels" in one.notes[0]
    assert not judged(study, "soft-labels", study[1]).notes


def test_p_values_are_corrected_over_all_parts_but_the_primary_ones(pages):
    found, page = pages[RESULTS]
    ps = [o.p for one in found if not one.claim.primary for o in one.outcomes if o.p is not None]
    (fine_tuning,) = (one.outcomes[0] for one in found if one.claim.name == "fine-tuning")
    after = holm(ps)[ps.index(fine_tuning.p)]
    assert f"| {fine_tuning.p:.3g} | {after:.3g} |" in page
    (primary,) = (one for one in found if one.claim.primary)
    assert f"| {primary.outcomes[0].p:.3g} | primary |" in page


def test_the_first_table_of_the_results_has_every_part_with_its_verdict(pages):
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8").partition("\n## ")[0]
    for judged, _ in pages.values():
        for one in judged:
            for part in parts(one) if not one.claim.bears.startswith("no:") else ():
                assert "unfinished" in part or part in text, (one.claim.name, part)
