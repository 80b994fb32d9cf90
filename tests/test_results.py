"""What RESULTS.md and README.md say of the study is what results/runs.csv holds."""

import re
from pathlib import Path

import pytest

import claims
from report.study_page import write_page
from trials.arms import Planner
from trials.rows import read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FOLDERS = {path.parent for path in RESULTS.rglob("runs.csv")}  # one a preset
# In the texts the study's numbers stand between these lines.
STUDY = re.compile(r"<!-- study -->(.*?)<!-- end of study -->", re.DOTALL)


def numbers(text):
    """Those with two decimals, as every accuracy and difference of the study is written."""
    return set(re.findall(r"\d+\.\d\d\b", text))


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_the_committed_verdicts_are_those_of_the_committed_rows(tmp_path, folder):
    rows = read_rows(folder / "runs.csv")
    (preset,) = {row["preset"] for row in rows}
    write_page(tmp_path, preset, claims.claims(preset), rows, claims.TUNING)
    made = (tmp_path / "verdicts.md").read_text(encoding="utf-8")
    assert made == (folder / "verdicts.md").read_text(encoding="utf-8")


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
    assert len(rows) >= {"study": 300, "cifar10": 164}[preset]  # those of the first two machines


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_every_number_of_the_study_is_that_of_a_verdict_or_a_run(name):
    parts = STUDY.findall((ROOT / name).read_text(encoding="utf-8"))
    files = (folder / name for folder in FOLDERS for name in ("verdicts.md", "runs.csv"))
    backed = set().union(*(numbers(file.read_text(encoding="utf-8")) for file in files))
    said = numbers("".join(parts))
    assert said and said <= backed, f"neither a verdict nor a run: {sorted(said - backed)}"


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_every_claim_of_the_study_is_linked_from_the_results(folder):
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    preset = "study" if folder == RESULTS else folder.name
    for claim in claims.claims(preset):
        assert f"{folder.relative_to(ROOT)}/verdicts.md#{claim.name}" in text, claim.name
