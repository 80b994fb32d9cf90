"""What damage does: every artefact of a run with a flipped bit or a cut.

    python benchmarks/faults.py --json docs/results/faults.json   # 300 cases
    python benchmarks/faults.py --cases 60 --seed 1

Sweep    one file of a small demo run is damaged, half of the cases by a flipped bit at a random
         place, half by a cut at a random length; then the program that reads it runs:
         noticed     refused, exit code 1 or 2, the error names the file
         harmless    it ends with the same bytes as with the whole file
         unnamed     refused by an error that names another thing
         silent      it ends, with other results
         traceback   anything else

The pool is the digits that are held out and a folder of pictures, which is decoded into the cache.
TensorBoard's pictures are left out: to draw them takes longer than all the rest.
Writes   with --json FILE: {"sweep": {artefact: {outcome: cases}}, ...}
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

import cv2
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

import export
import main as training_program
import make_sample_data
import predict
import report.__main__ as report
import student_train
from files import write_json
from stages import flags, program, scoring, training
from stages.folder import read_records
from stages.prepare import versions

SMALL = ["--preset", "demo", "--input-size", "8"]
SHORT = ["--epochs", "3", "--passes", "1"]
CHUNKS = ["--batch-size", "100"]  # of the pool, so that there are moments between them
STEPS = {
    "teacher": (training_program.main, [*SMALL, *SHORT]),
    "samples": (make_sample_data.main, ["--k", "20", *CHUNKS, "--unlabeled", "heldout"]),
    "student": (student_train.main, SHORT),
    "finetuned": (training_program.main, ["--student-network", "True", *SHORT]),
}
pool = []  # a folder of pictures beside the held-out digits, see `pictures`
OUTCOMES = ("noticed", "harmless", "unnamed", "silent", "traceback")
TIMES = ("seconds", "images_per_second")


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", type=flags.number(int, 1), default=300, metavar="N", help="default 300")
    add("--seed", type=flags.number(int, 0), default=0, metavar="N", help="default 0")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def step(stage, base, *more):
    """Run a step in the folder `base`; -> its exit code, what it printed, and the errors."""
    program, own = STEPS[stage]
    own = [*own, *pool] if stage == "samples" else own
    where = ["--run-dir", base / "run", "--data-dir", base / "data", "--device", "cpu"]
    return call(program, *own, *where, *more)


def call(program, *arguments):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            program(list(map(str, arguments)))
            code = 0
        except SystemExit as stop:
            code = stop.code
        except Exception as broken:
            code = f"{type(broken).__name__}: {broken}"
    return code, out.getvalue(), error.getvalue()


def pictures(folder):
    """Make the folder of pictures that is in the pool from now on."""
    random_pixels = np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        pixels = random_pixels.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    pool[:] = [folder]


def contents(folder):
    """{name: bytes} of a stage's files that two runs share: no times, nothing of TensorBoard's."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    found = {name: x for name, x in found.items() if not name.startswith(("events.", "projector_"))}
    for name in ("result.json", "config.json"):  # times, places, and the hashes of both
        found.pop(name, None)
    if "metrics.jsonl" in found:
        lines = map(json.loads, found["metrics.jsonl"].splitlines())
        lines = [{name: x for name, x in line.items() if name not in TIMES} for line in lines]
        found["metrics.jsonl"] = lines
    return found


def targets(base):
    """artefact -> (its file in the folder of a case, what reads it, what it gives)."""
    found, children = {}, dict(zip(STEPS, list(STEPS)[1:], strict=False))
    for stage, child in children.items():
        for name in ("model.pt", "selection.csv", "config.json", "result.json"):
            if (base / "run" / stage / name).exists():
                found[f"{stage}/{name}, next step"] = f"run/{stage}/{name}", stage_reader(child)
    for file in ("teacher/metrics.jsonl", "samples/scores.npz", "samples/skipped.csv"):
        found[f"{file}, --resume"] = f"run/{file}", stage_reader(file.split("/")[0], "--resume")
    for file in ("run/finetuned/model.pt", "lone.pt", next(base.glob("out/*.pth"))):
        relative = Path(base, file).relative_to(base).as_posix()
        found[f"{Path(file).name}, predict.py"] = relative, predicted(relative)
    for name in ("model.pt", "config.json", "result.json"):
        found[f"finetuned/{name}, export.py"] = f"run/finetuned/{name}", exported
    for file in ("student/metrics.jsonl", "finetuned/predictions.npz", "samples/scores.npz"):
        found[f"{file}, report"] = f"run/{file}", reported
    for file in ("samples/skipped.csv", "samples/selection.csv", "teacher/config.json"):
        found[f"{file}, report"] = f"run/{file}", reported
    for name in ("config.json", "result.json"):
        found[f"finetuned/{name}, study.py"] = f"run/finetuned/{name}", taken_for_a_row
    for path in sorted((base / "data" / "cache").rglob("*")):
        if path.is_file():
            kind = path.parent.name if path.suffix == ".json" and path.stem != "meta" else path.name
            found[f"cache, {kind}"] = path.relative_to(base).as_posix(), stage_reader("samples")
    for stage, own in (("teacher", "metrics.jsonl"), ("samples", "scores-0.bin")):
        for name in ("resume.pt", "config.json", own):
            file = f"half-{stage}/run/{stage}/{name}"
            found[f"unfinished {stage}/{name}"] = file, half_reader(stage)
    return found


def stage_reader(stage, *more):
    def read(base):
        if not more:
            for later in list(STEPS)[list(STEPS).index(stage) :]:
                shutil.rmtree(base / "run" / later, ignore_errors=True)
        code, _, error = step(stage, base, *more)
        return code, error, contents(base / "run" / stage) if code == 0 else None

    return read


def half_reader(stage):
    def read(base):
        half = base / f"half-{stage}"
        code, _, error = step(stage, half, "--resume")
        return code, error, contents(half / "run" / stage) if code == 0 else None

    return read


def predicted(file):
    def read(base):
        images = base / "picture.png"
        return ended(call(predict.main, images, "--json", "--checkpoint", base / file), base)

    return read


def exported(base):
    code, _, error = call(export.main, base / "run/finetuned", base / "new")
    return code, error, {path.name: path.read_bytes() for path in base.glob("new/*")}


def reported(base):
    page = base / "page.html"
    code, _, error = call(report.main, base / "run", "--output", page)
    return code, error, page.read_bytes() if code == 0 else None


def taken_for_a_row(base):
    """As `trials.runs.Run.result` reads a run's stage."""
    try:
        config, result = read_records(base / "run/finetuned")
    except (OSError, ValueError) as error:
        return 2, str(error), None
    return 0, "", (dict(config), dict(result))


def ended(answer, base):
    code, out, error = answer
    return code, error, out.replace(str(base), "")


def damage(path, chance, cut):
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def prepare(base):
    """The whole run, two unfinished stages, an exported file and a lone one."""
    for stage in STEPS:
        code, _, error = step(stage, base)
        assert code == 0, error
    for stage in ("teacher", "samples"):
        half = base / f"half-{stage}"
        shutil.copytree(base / "data", half / "data")
        if stage == "samples":
            shutil.copytree(base / "run" / "teacher", half / "run" / "teacher")
        asked = iter([None] * 3 + [15] * 9)
        before, program.interruption = program.interruption, lambda asked=asked: next(asked)
        code, _, error = step(stage, half)
        assert code == 143, (stage, code, error)
        program.interruption = before
    assert call(export.main, base / "run/finetuned", base / "out")[0] == 0
    shutil.copyfile(base / "run/finetuned/model.pt", base / "lone.pt")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(base / "picture.png"), noise)


def sweep(folder, cases, chance):
    """{artefact: {outcome: cases}}, and what went wrong: [str]."""
    whole, case = folder / "whole", folder / "case"
    whole.mkdir()
    pictures(folder / "pictures")
    prepare(whole)
    found, faults, expected = {}, [], {}
    wanted = targets(whole)
    for name, number in ((name, n) for n in range(-(-cases // len(wanted))) for name in wanted):
        file, reader = wanted[name]
        shutil.copytree(whole, case)
        damage(case / file, chance, cut=number % 2)
        code, error, result = reader(case)
        shutil.rmtree(case)
        if code == 0:
            if name not in expected:
                shutil.copytree(whole, case)
                expected[name] = reader(case)[2]
                shutil.rmtree(case)
            outcome = "harmless" if result == expected[name] else "silent"
        elif code in (1, 2):
            outcome = "noticed" if Path(file).name in error else "unnamed"
        else:
            outcome = "traceback"
        if outcome in OUTCOMES[2:]:
            faults.append(f"{name}, {'cut' if number % 2 else 'flip'}: {outcome} {code} {error}")
        counts = found.setdefault(name, dict.fromkeys(OUTCOMES, 0))
        counts[outcome] += 1
        print(f"{name}: {outcome}", flush=True)
    return found, faults


def print_table(rows):
    columns = list(next(iter(rows.values())))
    print(f"\n{'':36}", *(f"{name:>10}" for name in columns))
    for name, row in rows.items():
        print(f"{name:36}", *(f"{row[column]:10}" for column in columns))
    print(f"{'all':36}", *(f"{sum(row[column] for row in rows.values()):10}" for column in columns))


def quick():
    """One thread, state saved after every step and every chunk, no pictures."""
    torch.set_num_threads(1)
    training.LOOK_SECONDS = training.SAVE_SECONDS = scoring.SAVE_SECONDS = -1
    for name in ("add_figure", "add_pr_curve", "add_embedding"):
        setattr(SummaryWriter, name, lambda *arguments, **options: None)


def write_part(path, name, rows, seed):
    """Put one part of the figures into a JSON file, beside the others that it has."""
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, result | {name: rows, "seed": seed, "versions": versions()})


def main(argv=None):
    args = parse(argv)
    quick()
    with tempfile.TemporaryDirectory() as folder:
        rows, faults = sweep(Path(folder), args.cases, random.Random(args.seed))
    print_table(rows)
    print(*faults, sep="\n")
    if args.json:
        write_part(args.json, "sweep", rows, args.seed)


if __name__ == "__main__":
    main()
