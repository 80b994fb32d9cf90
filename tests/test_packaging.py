"""What is to be installed is written down for pip and for uv, and both are told the same."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

from stages.prepare import versions

ROOT = Path(__file__).parents[1]
TOOLS = ("tests", "benchmarks")  # need what requirements-dev.txt brings


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


PYPROJECT, LOCK = tomllib.loads(read("pyproject.toml")), tomllib.loads(read("uv.lock"))
PROJECT, DEV = PYPROJECT["project"], PYPROJECT["dependency-groups"]["dev"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOW = read(".github/workflows/ci.yml")


def plain(name):
    """A package's name as indexes compare it."""
    return re.sub("[-_.]+", "-", name).lower()


def wanted(lines):
    """Lines of requirements -> {name: which versions}."""
    lines = (line.split("#")[0].strip() for line in lines)
    lines = (line for line in lines if line and not line.startswith("-r"))
    found = (re.fullmatch(r"([\w.-]+)(?:\[.*\])?(.*)", line).groups() for line in lines)
    return {plain(name): versions for name, versions in found}


@pytest.mark.parametrize(
    "file, ours", [("requirements.txt", PROJECT["dependencies"]), ("requirements-dev.txt", DEV)]
)
def test_pip_and_uv_are_told_to_install_the_same(file, ours):
    assert wanted(read(file).splitlines()) == wanted(ours)


def test_the_lock_was_made_from_this_pyproject():
    """`uv lock` makes it anew."""
    (ours,) = (package for package in LOCK["package"] if package["name"] == PROJECT["name"])
    found = {extra: {} for extra in ("", *EXTRAS)}
    for one in ours["metadata"]["requires-dist"]:
        extra = one.get("marker", "").removeprefix("extra == '").removesuffix("'")
        found[extra][one["name"]] = one.get("specifier", "")
    dev = {one["name"]: one.get("specifier", "") for one in ours["metadata"]["requires-dev"]["dev"]}
    assert found == {name: wanted(lines) for name, lines in EXTRAS.items()} | {
        "": wanted(PROJECT["dependencies"])
    }
    assert dev == wanted(DEV)
    assert (ours["version"], LOCK["requires-python"]) == (
        PROJECT["version"],
        PROJECT["requires-python"],
    )


def test_the_lock_names_pypi_and_no_mirror():
    hosts = set(re.findall(r"\w+://[^/\"]+", read("uv.lock")))
    assert hosts == {"https://pypi.org", "https://files.pythonhosted.org"}


def imported(files):
    """The packages that Python files import, anywhere in them."""
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.split(".")[0]


def test_every_package_that_is_imported_is_asked_for_by_name():
    """Programs: as a dependency or in an extra.  Tests and benchmarks: in the dev group, too."""
    rooms = {path.parent for path in ROOT.glob("[a-z]*/*.py")}
    files = [*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    ours = {path.stem for path in files} | {room.name for room in rooms}
    programs = [path for path in files if path.relative_to(ROOT).parts[0] not in TOOLS]
    # Either package has the module cv2; an environment may have the one that we do not name.
    where = packages_distributions() | {"cv2": ["opencv-python-headless"]}
    absent = set()
    for among, tools in ((programs, []), (files, DEV)):
        named = set().union(*map(wanted, (PROJECT["dependencies"], *EXTRAS.values(), tools)))
        for name in set(imported(among)) - sys.stdlib_module_names - ours:
            if not {plain(package) for package in (name, *where.get(name, ()))} & named:
                absent.add(name)
    assert not absent, f"imported, and in no list of pyproject.toml: {sorted(absent)}"


def test_a_version_is_the_same_wherever_it_is_written():
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.M)[1] == PROJECT["version"]
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)[1] == PROJECT["version"]


def test_the_workflow_and_the_contributors_page_name_what_there_is():
    """The make targets and the Python files that they name exist."""
    text = WORKFLOW + read("CONTRIBUTING.md")
    targets = set(re.findall(r"\bmake ([a-z][\w-]*)", text))
    files = set(re.findall(r"\b[\w/-]+\.(?:py|md|csv|txt)\b", text))
    rules = re.findall(r"^([a-z][\w -]*):", read("Makefile"), re.M)
    assert len(targets) > 2 and targets <= set(" ".join(rules).split())
    assert len(files) > 5 and not {file for file in files if not (ROOT / file).exists()}


def test_config_json_records_the_packages_that_numbers_come_from():
    found = versions()
    for package in ("numpy", "scikit-learn", "torchvision"):
        assert found[package] == version(package)
    assert {"timm", "opencv-python"} <= found.keys()  # None where it is not installed
