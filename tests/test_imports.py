"""Rooms of the library import downwards only, and no two modules import each other around a circle."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jaxreid

PACKAGE = Path(jaxreid.__file__).parent
# From the top down; a room imports rooms further down, or its own level, where circles are refused.
LEVELS = (
    ("cli",),
    ("tools", "main", "contrib"),
    ("footage", "embedder"),
    ("report",),
    ("training",),
    ("evaluation",),
    ("run",),
    ("methods",),
    ("augment", "geometry", "optimizers", "layers", "losses", "memory"),
    ("backbones", "retrieval", "devices"),
    ("arrays",),
    ("data", "dataset_info"),
    ("config", "overlays", "values", "errors", "files", "shapes", "jaxreid"),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def imports(path, known):
    """(line, module) for every module of the package that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxreid":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "jaxreid")


@pytest.fixture(scope="module")
def graph():
    """module → [(line, imported module)]"""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[1] in ("configs", "data_builders"):  # as an installed wheel has them
            continue
        modules[".".join(parts).removesuffix(".__init__")] = path
    del modules["jaxreid"]  # lazy: see test_the_package_imports_nothing
    return {name: list(imports(path, {*modules, "jaxreid"})) for name, path in modules.items()}


def room(module):
    return module.split(".")[1] if "." in module else module


def test_every_room_has_its_level(graph):
    assert {room(module) for module in graph} == set(LEVEL) - {"jaxreid"}


def test_no_arrow_points_up(graph):
    up = [
        f"{module}:{line} imports {target}"
        for module, targets in graph.items()
        for line, target in targets
        if LEVEL[room(target)] < LEVEL[room(module)]
    ]
    assert up == []


def test_there_is_no_circle(graph):
    try:
        TopologicalSorter({module: {target for _, target in targets} for module, targets in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_the_package_imports_nothing():
    line = "import sys, jaxreid; sys.exit(', '.join(sorted(n for n in sys.modules if n.startswith('jaxreid.'))))"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False).stderr == "\n"


@pytest.mark.parametrize("name", ["data", "dataset_info", "config", "errors", "files"])
def test_data_never_imports_jax(name):
    place = PACKAGE / name
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"jax", "flax", "optax", "orbax"}, path
