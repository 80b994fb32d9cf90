"""The house keeps its plan: who may import whom, and nothing happens at import."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = {"engine", "ranking", "topk", "data", "models", "presets", "distributed", "files"}
SCRIPTS = {"main", "make_sample_data", "student_train", "predict", "export", "study"}
SCRIPTS |= {"report.__main__", "lab.__main__"}
# Every module and room of the house, and which others it may import.
PLAN = {script: LIBRARY | {"stages", "report"} for script in SCRIPTS} | {
    "study": {"claims", "stages", "trials"},
    "claims": {"presets", "trials"},
    "trials": LIBRARY | {"stages"},
    "lab.__main__": {"lab", "stages"},
    "hubconf": {"models"},
    "lab": LIBRARY | SCRIPTS | {"stages", "report"},
    "stages": LIBRARY,
    "report": LIBRARY,
    "ranking": {"topk"},
    "topk": set(),
    "engine": {"distributed", "models"},  # of models only the matrix products
    "data": {"distributed", "files", "models"},  # of models only the downloader, see below
    "models": set(),
    "presets": set(),
    "distributed": set(),
    "files": set(),
}
TOOLS = {"tests", "benchmarks"}  # may import everything
NOT_OURS = {"datasets", "runs"}


def files_of(module):
    """Those of a room without its `__main__`, which is a script."""
    path = ROOT / module.replace(".", "/")
    if not path.is_dir():
        return [path.with_suffix(".py")]
    return sorted(file for file in path.rglob("*.py") if file.stem != "__main__")


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
    names = {name.split(".")[0] for path in files_of(module) for name in absolute_imports(path)}
    return (names & PLAN.keys()) - {module}


def test_every_python_file_has_its_place_in_the_plan():
    found = {path.stem for path in ROOT.glob("*.py")}
    found |= {path.parent.name for path in ROOT.glob("[a-z]*/*.py")} - NOT_OURS
    found |= {f"{path.parent.name}.__main__" for path in ROOT.glob("[a-z]*/__main__.py")}
    assert found == PLAN.keys() | TOOLS
    assert imports_of("main") >= {"report", "stages"}  # also `from report.board import ...`


@pytest.mark.parametrize("module", sorted(PLAN))
def test_a_module_imports_what_the_plan_allows(module):
    assert imports_of(module) <= PLAN[module]


def test_data_takes_the_downloader_from_models_and_nothing_else():
    names = {name for path in files_of("data") for name in absolute_imports(path)}
    names = {name for name in names if name.split(".")[0] == "models"}
    assert names and all(name.startswith("models.download.") for name in names)


def test_modules_import_each_other_without_cycles():
    tuple(graphlib.TopologicalSorter({name: imports_of(name) for name in PLAN}).static_order())


def test_the_modules_of_models_import_each_other_without_cycles():
    imports = {}
    for path in files_of("models"):
        nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
        local = [node for node in nodes if node.level]
        imports[path.stem] = {node.module or alias.name for node in local for alias in node.names}
    assert len(tuple(graphlib.TopologicalSorter(imports).static_order())) == len(imports)
    assert imports["__init__"] == set() and imports["hub"] > {"weights"}


@pytest.mark.parametrize("module", sorted(PLAN.keys() - SCRIPTS))
def test_only_the_command_line_knows_flags(module):
    for path in files_of(module):
        flags = path == ROOT / "stages" / "flags.py"
        assert ("argparse" in set(absolute_imports(path))) == flags, path


@pytest.mark.parametrize(
    "file", ["engine.py", "ranking.py", "topk.py", "presets.py", "report/figures.py"]
)
def test_numbers_stay_away_from_the_disk(file):
    used = {node.id for node in ast.walk(tree(ROOT / file)) if isinstance(node, ast.Name)}
    names = {name.split(".")[0] for name in absolute_imports(ROOT / file)}
    assert not used & {"open", "Path"}
    assert not names & {"pathlib", "shutil", "tempfile", "json", "csv"}


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_every_script_is_a_program_and_a_function(script):
    body = tree(*files_of(script)).body
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
        [sys.executable, "-c", IMPORT_ALL, *sorted(PLAN)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
    assert before is None or set(tracked()) == before


PICKLED = {"data/workers.py"}  # a pipe between a process and its own child
SAFE = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}


def test_no_file_of_the_project_runs_what_a_file_says():
    paths = [path for module in sorted(PLAN) for path in files_of(module)]
    for path in [*paths, *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(tree(path)):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert SAFE.get(name, "") in ast.unparse(node), (path, node.lineno)
        unsafe = {"pickle", "shelve", "marshal", "dill", "joblib"} & set(absolute_imports(path))
        assert not unsafe or path.relative_to(ROOT).as_posix() in PICKLED, path


ROOMS = ("data", "models", "stages", "trials", "report", "report/page", "lab")


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_of_a_room_names_every_file_in_it(room):
    text = ast.get_docstring(tree(ROOT / room / "__init__.py"))
    named = set(re.findall(r"^(\w+)  +\S", text, re.M))
    files = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    assert files - {"__main__"} == named - {"__main__"}


def test_the_readme_names_every_script_and_room():
    house = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The house")[2]
    named = set(re.findall(r"^(\w+)(?:\.py|/) ", house, re.M)) | set(re.findall(r"  (\w+)/", house))
    rooms = {path.parent.name for path in ROOT.glob("[a-z]*/*.py")} - NOT_OURS
    assert {path.stem for path in ROOT.glob("*.py")} | rooms <= named
