"""Data flows one way: kernels < methods < harness, a room imports only rooms before it, no module takes part in a circle.

Imports inside functions, under TYPE_CHECKING, relative ones and modules named in strings count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import methods
import methods.decode
from harness.tasks.names import GROUPS, TASKS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"attention_kernels": ROOT / "kernels", "methods": ROOT, "harness": ROOT}
"""The import packages, lowest first, each with the folder that it is imported from."""
ROOMS = ("core", "stats", "study", "tasks", "models", "arms", "measure", "report", "training", "lm_eval", "jobs")
"""The packages of harness/, lowest first."""
HALL = {"__init__.py", "__main__.py", "bundled", *ROOMS}
"""What may lie in harness/ itself."""
LEVELS = ("attention_kernels", "methods", *(f"harness.{room}" for room in ROOMS), "harness")
"""Packages in the order of their imports: each may import only those before it. The last is the hall."""


def sources() -> dict[str, str]:
    """Return the source of every module of the three packages, by its import name."""
    modules = {}
    for package, folder in FOLDERS.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join(parts)] = path.read_text(encoding="utf-8")
    return modules


@cache
def candidates(name: str, source: str) -> tuple[str, ...]:
    """Return the dotted names that a module's source may import by, relative ones made absolute."""
    package = name.split(".")[:-1]
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            names.append(node.value)
    return tuple(names)


def _module_of(dotted: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Yield the module that holds `dotted`: itself, its package, or the module it is an attribute of."""
    attribute_of = dotted.rpartition(".")[0]
    for module in (dotted, f"{dotted}.__init__", attribute_of, f"{attribute_of}.__init__"):
        if module in modules:
            yield module
            return


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Return what every module imports, itself left out."""
    edges: dict[str, set[str]] = {}
    for name, source in modules.items():
        imported = {module for dotted in candidates(name, source) for module in _module_of(dotted, modules)}
        edges[name] = imported - {name}
    return edges


def level(module: str) -> int:
    """Return the place of a module's package in LEVELS."""
    parts = module.split(".")
    package = ".".join(parts[:2]) if parts[0] == "harness" and parts[1] in ROOMS else parts[0]
    return LEVELS.index(package)


def upward(modules: Mapping[str, str]) -> list[str]:
    """Return the imports of a package that comes later in LEVELS, as "importer -> imported"."""
    edges = graph(modules)
    return [f"{name} -> {other}" for name in edges for other in sorted(edges[name]) if level(other) > level(name)]


def circle(modules: Mapping[str, str]) -> list[str]:
    """Return the modules of one circle of imports, [] where there is none."""
    try:
        TopologicalSorter(graph(modules)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_goes_down() -> None:
    modules = sources()
    assert len(modules) > 200
    assert upward(modules) == []


def test_no_module_takes_part_in_a_circle() -> None:
    assert circle(sources()) == []


def test_nothing_lies_in_the_hall() -> None:
    assert {path.name for path in (ROOT / "harness").iterdir() if path.name != "__pycache__"} == HALL


def test_the_folder_of_the_kernels_is_no_package() -> None:
    """Otherwise it would hide Hugging Face's package of the name `kernels`."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attention_kernels.planted", "def late():\n    from methods.parts import base"),
        ("attention_kernels.planted", "import harness"),
        ("methods.parts.planted", "from harness.core.errors import UserError"),
        ("methods.planted", 'NAME = "harness.core.errors"'),
        *((f"harness.{below}.planted", f"from ..{above} import planted_too") for below, above in pairwise(ROOMS)),
        ("harness.core.planted", "if TYPE_CHECKING:\n    from harness.study.store import Store"),
    ],
)
def test_a_planted_import_upwards_is_seen(module: str, source: str) -> None:
    modules = sources()
    planted = {f"harness.{room}.planted_too": "" for room in ROOMS} | {module: source}
    (edge,) = upward(modules | planted)
    assert edge.startswith(f"{module} -> ")


@pytest.mark.parametrize("package", ["attention_kernels", "methods", *(f"harness.{room}" for room in ROOMS)])
def test_a_planted_circle_is_seen(package: str) -> None:
    planted = {f"{package}.one": "def late():\n    from . import two", f"{package}.two": f"from {package}.one import late"}
    assert set(circle(sources() | planted)) == set(planted)


@pytest.mark.parametrize("package", FOLDERS)
def test_triton_is_imported_late(package: str) -> None:
    """Only kernel files, themselves imported late, may import triton at the top: a machine without it must run."""
    for path in (FOLDERS[package] / package).rglob("*.py"):
        if "triton" not in (source := path.read_text()):
            continue  # parsing takes most of the time
        top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        of_triton = [node for node in top if "triton" in ast.unparse(node).split()[1].split(".")[0]]
        assert not of_triton or path.stem.endswith("_kernel"), path


@cache
def strings(path: Path) -> set[object]:
    """Return the constants of a file that aren't docstrings."""
    tree = ast.parse(path.read_text())
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings}


def test_the_harness_names_no_method() -> None:
    """Adding one must need no edit here."""
    names = {*methods.names(), *methods.decode.names()}
    for path in sorted((ROOT / "harness").rglob("*.py")):
        assert not strings(path) & names, path.relative_to(ROOT)


def test_only_the_tasks_and_what_trains_on_them_name_a_task() -> None:
    names = set(TASKS) | set(GROUPS)
    for path in (p for p in (ROOT / "harness").rglob("*.py") if not {"tasks", "training"} & set(p.parts)):
        assert not strings(path) & names, path.relative_to(ROOT)
