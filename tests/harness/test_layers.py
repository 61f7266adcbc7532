"""Nothing imports upwards, and the harness names no method."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import methods
import methods.decode
from harness.tasks.names import GROUPS, TASKS

ROOT = Path(__file__).resolve().parents[2]
ABOVE = {"kernels": ("methods", "harness"), "methods": ("harness",)}
"""What a package must not import."""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, by absolute name; imports inside functions too."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ".".join([*package[: -node.level], node.module or ""]) if node.level else str(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


@pytest.mark.parametrize("package", ABOVE)
def test_nothing_imports_upwards(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        upwards = [name for name in imports(path) if name.split(".")[0] in ABOVE[package]]
        assert not upwards, f"{path.relative_to(ROOT)} imports {upwards}"


@pytest.mark.parametrize("package", ["kernels", "methods", "harness"])
def test_triton_is_imported_late(package: str) -> None:
    """Only kernel files, themselves imported late, may import triton at the top: a machine without it must run."""
    for path in (ROOT / package).rglob("*.py"):
        top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        found = [n for n in top if "triton" in ast.unparse(n).split()[1].split(".")[0]]
        assert not found or path.stem.endswith("_kernel"), path


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the string nodes that stand alone as statements."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def test_the_harness_names_no_method() -> None:
    """Adding one must need no edit here."""
    names = {*methods.names(), *methods.decode.names()}
    for path in sorted((ROOT / "harness").rglob("*.py")):
        tree = ast.parse(path.read_text())
        free = docstrings(tree)
        found = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in free and node.value in names
        }
        assert not found, path.relative_to(ROOT)


def test_the_core_names_no_task() -> None:
    own = set(TASKS) | set(GROUPS)
    for path in (p for p in (ROOT / "harness").glob("*.py")):
        tree = ast.parse(path.read_text())
        free = docstrings(tree)
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in free}
        assert not strings & own, path.name
