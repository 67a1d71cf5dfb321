"""The rules of the house that can be read off the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BACKEND = ROOT / "backend" / "clickmask"
ADAPTERS = ROOT / "adapters" / "clickmask_adapters"
MODULES = sorted([*BACKEND.rglob("*.py"), *ADAPTERS.rglob("*.py")])
TOP_LEVEL = set("pyproject.toml backend adapters tests docker-compose.yml Dockerfile README.md".split())
TORCH_MAY_LIVE_IN = ("segmenters", "training")
USUAL = set("LICENSE CHANGELOG.md CONTRIBUTING.md SECURITY.md Makefile constraints.txt".split())
FLOORS = [  # each imports from its own floor's folder and from the floors below it, never upward or sideways
    line.split()
    for line in """
        __init__ files caches errors types plugins
        masks images metrics
        labels inference weights_builtin
        segmenters models store
        annotators datasets
        ingest reports training
        workbench
    """.strip().splitlines()
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def from_root(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "clickmask":
                yield from (f"clickmask.{alias.name}" for alias in node.names)


def imported_roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_the_guide_names_files_that_exist() -> None:
    page = (ADAPTERS / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`", page.replace("tests/test_architecture.py", ""))
    assert len(named) > 30
    assert not [name for name in named if not any((root / name).exists() for root in (BACKEND, ADAPTERS))]


@pytest.mark.parametrize("path", MODULES, ids=from_root)
def test_imports_follow_the_rules_of_the_house(path: Path) -> None:
    roots = imported_roots(path)
    if path.is_relative_to(BACKEND):
        assert not roots & {"clickmask_adapters", "fastapi", "pydantic", "starlette", "typer"}
    if not any(path.is_relative_to(BACKEND / folder) for folder in TORCH_MAY_LIVE_IN):
        assert not roots & {"torch", "segment_anything", "torchvision"}


def room_of(path: Path) -> str:
    return path.relative_to(BACKEND).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(BACKEND.rglob("*.py")), ids=from_root)
def test_no_room_imports_from_a_higher_floor(path: Path) -> None:
    own = room_of(path)
    for name in imports(path):
        package, _, inside = name.partition(".")
        room = inside.partition(".")[0] or "__init__"
        if package == "clickmask" and room != own:
            beside = (
                FLOOR[own] == FLOOR[room] == 0
            )  # errors, types and their like are one floor in rooms of one file
            assert FLOOR[room] < FLOOR[own] or beside, f"{own} imports {name}"


def test_only_the_ground_floor_lies_directly_in_the_core() -> None:
    files = {path.stem for path in BACKEND.glob("*.py")}
    assert files <= set("__init__ types errors plugins workbench files caches".split())


@pytest.mark.parametrize("path", sorted((ADAPTERS / "tools").rglob("*.py")), ids=from_root)
def test_tools_never_import_each_other(path: Path) -> None:
    own = path.relative_to(ADAPTERS / "tools").parts[0].removesuffix(".py")
    for name in imports(path):
        match = re.match(r"clickmask_adapters\.tools\.(\w+)", name)
        assert match is None or match[1] == own or match[1].startswith("_")  # what both share


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("*ports/*.py")), ids=from_root)
def test_exports_and_imports_know_no_tool(path: Path) -> None:
    assert not any(name.startswith("clickmask_adapters.tools") for name in imports(path))


def test_adapters_speak_to_the_workbench_and_not_through_it() -> None:
    """`home.py` alone, which makes them, knows what a workbench is made of."""
    for path in set(ADAPTERS.rglob("*.py")) - {ADAPTERS / "home.py"}:
        assert not re.search(r"workbench\.(store|inbox|images)\b", path.read_text()), path


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {canonicalize_name(Requirement(line).name) for line in lines} | {"flask"}  # by label-studio-ml
    found = packages_distributions()
    roots = set().union(*map(imported_roots, MODULES)) - {BACKEND.name, ADAPTERS.name}
    for root in roots - sys.stdlib_module_names:
        assert {canonicalize_name(name) for name in found.get(root, [root])} & declared, root


def test_the_environment_is_read_in_one_place() -> None:
    readers = {path for path in MODULES if re.search(r"os\.(environ|getenv)", path.read_text())}
    assert readers <= {ADAPTERS / "settings.py"}


@pytest.mark.parametrize("name", ["prompts.py", "answers.py", "clicks.py", "shapes.py", "label_config.py"])
def test_translators_are_pure(name: str) -> None:
    for path in (ADAPTERS / "tools").rglob(name):
        assert not imported_roots(path) & {"fastapi", "requests", "sqlite3", "threading"}, path


def test_no_module_holds_mutable_state() -> None:
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(
                node.value, ast.List | ast.Set | ast.ListComp | ast.SetComp
            ):
                pytest.fail(f"{path}: {ast.unparse(node)}")


def test_the_top_level_is_fixed() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in listing.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL | USUAL
