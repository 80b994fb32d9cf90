"""What RESULTS.md and README.md say of the study is what results/runs.csv holds."""

import re
from pathlib import Path

import pytest

import claims
from report.rows import read_rows
from report.study_page import write_page

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


def test_what_newer_code_has_repeated_has_the_same_digits():
    by_key = {}
    for row in read_rows(RESULTS / "runs.csv"):
        by_key.setdefault(row["key"], []).append(row)
    repeated = [rows for rows in by_key.values() if len(rows) > 1]
    assert len(repeated) == 15  # RESULTS.md says so
    for rows in repeated:
        found = {tuple(row[n] for n in ("val_top1", "test_top1", "labels_right")) for row in rows}
        assert len(found) == 1


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
