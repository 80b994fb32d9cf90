"""The house keeps its plan: who may import whom, and nothing happens at import."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {path.stem: [path] for path in ROOT.glob("*.py")}
FILES |= {name: sorted((ROOT / name).glob("*.py")) for name in ("data", "models")}
SCRIPTS = sorted({"main", "make_sample_data", "student_train", "predict", "export"} & FILES.keys())
PURE = ("engine", "ranking", "presets", "data", "models")


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def absolute_imports(path):
    """The full names that a file imports, at its top or anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(module):
    """The project's modules that a module imports."""
    names = {name.split(".")[0] for path in FILES[module] for name in absolute_imports(path)}
    return (names & FILES.keys()) - {module}


def test_the_plan_is_looked_at_on_real_files():
    assert {"main", "make_sample_data", "student_train"} <= set(SCRIPTS)
    assert {"cli", "checkpoint", "runlog", *PURE} <= FILES.keys()
    assert imports_of("main") >= {"cli", "data", "models"}  # also `from models.hub import ...`


def test_modules_import_each_other_without_cycles():
    tuple(graphlib.TopologicalSorter({name: imports_of(name) for name in FILES}).static_order())


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_module_imports_a_script(module):
    if module != "study":  # it runs the scripts' main(argv)
        assert not imports_of(module) & set(SCRIPTS)


@pytest.mark.parametrize("module", PURE)
def test_the_parts_know_nothing_of_each_other_but_that_there_may_be_several_processes(module):
    assert imports_of(module) <= {"distributed"}


@pytest.mark.parametrize("module", sorted({"checkpoint", "hubconf"} & FILES.keys()))
def test_checkpoints_and_hub_know_networks_only(module):
    assert imports_of(module) <= {"models"}


@pytest.mark.parametrize("module", ["checkpoint", "runlog", "figures", *PURE])
def test_only_the_command_line_knows_flags(module):
    if module in FILES:
        assert "cli" not in imports_of(module)
        names = {name.split(".")[0] for path in FILES[module] for name in absolute_imports(path)}
        assert "argparse" not in names


@pytest.mark.parametrize("module", ["engine", "ranking", "presets", "figures"])
def test_numbers_stay_away_from_the_disk(module):
    used = {node.id for node in ast.walk(tree(FILES[module][0])) if isinstance(node, ast.Name)}
    names = {name.split(".")[0] for name in absolute_imports(FILES[module][0])}
    assert not used & {"open", "Path"}
    assert not names & {"pathlib", "shutil", "tempfile", "json", "csv"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_is_a_program_and_a_function(script):
    body = tree(FILES[script][0]).body
    (function,) = (n for n in body if isinstance(n, ast.FunctionDef) and n.name == "main")
    assert [argument.arg for argument in function.args.args] == ["argv"]
    assert [ast.literal_eval(default) for default in function.args.defaults] == [None]
    assert ast.unparse(body[-1]).startswith("if __name__ == '__main__':")


IMPORT_ALL = """
import signal, sys
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
for name in sys.argv[1:]:
    __import__(name)
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
"""


@pytest.mark.slow
def test_importing_prints_nothing_and_creates_nothing(tmp_path):
    def tracked():
        skipped = (".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis")
        for folder, folders, files in os.walk(ROOT):
            folders[:] = [name for name in folders if name not in (*skipped, "datasets", "runs")]
            yield from (os.path.join(folder, name) for name in folders + files)

    before = set(tracked()) if not os.environ.get("PYTEST_XDIST_WORKER") else None
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *sorted(FILES)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
    assert before is None or set(tracked()) == before
