"""The package as a stranger gets it: dependencies, lock, wheel, and nothing of a build machine in it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {
    "harness": "harness",
    "methods": "methods",
    "attention_kernels": "kernels/attention_kernels",
    "hydra_plugins": "hydra_plugins",
}
"""Import names, which are also the folders in the wheel, and the folders in the repository."""
EXTRAS = PROJECT["project"]["optional-dependencies"]
RUNTIME = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
ALL = [*RUNTIME, *(Requirement(text) for texts in EXTRAS.values() for text in texts)]
BUNDLED_LIMIT = 16 * 2**20
"""Bytes of weights that may ship with the package."""
GATES_LIMIT = 20 * 10**6
"""Bytes of one file of gates of a model that does not ship."""

# In pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile("/wo" + "rk/|/ro" + "ot/|/ho" + "me/|/op" + "t/(?:wheels|pypi)|/t" + "mp/dev")


def lock() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


def files() -> list[Path]:
    """What git tracks or would track; without git, every file outside hidden and generated folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):
        hidden = (".git", ".venv", ".cache", "__pycache__", "build", "dist")
        return [p for p in ROOT.rglob("*") if p.is_file() and not set(p.relative_to(ROOT).parts) & set(hidden)]


@pytest.mark.parametrize("requirement", [pytest.param(r, id=r.name) for r in ALL])
def test_dependency_is_locked_in_a_release_it_allows(requirement: Requirement) -> None:
    pins = lock()
    name = canonicalize_name(requirement.name)
    assert name in pins, f"{name} is not in requirements.lock: run .ci/lock"
    assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement} but locked {pins[name]}"


@pytest.mark.parametrize("requirement", [pytest.param(r, id=r.name) for r in RUNTIME])
def test_runtime_dependency_has_a_floor(requirement: Requirement) -> None:
    assert {s.operator for s in requirement.specifier} & {">=", "=="}


def test_lock_is_sorted_and_names_public_releases_only() -> None:
    pins = lock()
    assert list(pins) == sorted(pins)
    assert all(name == canonicalize_name(name) for name in pins)
    assert not [name for name, version in pins.items() if version.local], "a local build cannot be installed elsewhere"


def test_every_import_is_of_a_declared_dependency() -> None:
    """Runtime code imports nothing that is there by chance, as the dependency of a dependency."""
    declared = {canonicalize_name(r.name) for r in [*RUNTIME, *map(Requirement, EXTRAS["cuda"] + EXTRAS["page"])]}
    optional = {"flash_attn", "flash_attn_interface"}  # modules of the cuda extra, which need not be installed
    owners = metadata.packages_distributions()
    for path in (p for folder in PACKAGES.values() for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""] if node.level == 0 else []
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for top in {module.partition(".")[0] for module in modules}:
                if top in PACKAGES or top in sys.stdlib_module_names or top in optional:
                    continue
                known = {canonicalize_name(name) for name in owners.get(top, [])}
                assert known & declared, f"{path.relative_to(ROOT)} imports {top}, not in pyproject.toml"


def test_wheel_carries_configs_and_bundled_model_and_nothing_else(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("conf/"):
            assert f"harness/{name}" in inside
        for package, folder in PACKAGES.items():
            if name.startswith(f"{folder}/"):
                assert package + name.removeprefix(folder) in inside
    assert {name.partition("/")[0] for name in inside if ".dist-info/" not in name} == set(PACKAGES)
    assert [name for name in inside if name.endswith("licenses/LICENSE")]


def test_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = "import harness, runpy; print(harness.__file__); runpy.run_module('harness', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "python -m harness method=seer" in done.stdout
    assert not list(empty.iterdir())


def test_weights_are_small() -> None:
    weights = [p for p in files() if p.suffix == ".safetensors"]
    shipped = [p for p in weights if p.is_relative_to(ROOT / "harness" / "bundled")]
    assert sum(p.stat().st_size for p in shipped) <= BUNDLED_LIMIT  # all of these are in the wheel
    apart = [p for p in weights if p not in shipped]
    assert {p.relative_to(ROOT).parts[0] for p in apart} <= {"gates"}
    assert all(p.stat().st_size <= GATES_LIMIT for p in apart)


def test_no_path_of_a_build_machine() -> None:
    hits = []
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        hits += [f"{path.relative_to(ROOT)}: {hit}" for hit in sorted(set(MACHINE_PATHS.findall(text)))]
    assert not hits


def test_version_is_the_newest_in_the_changelog() -> None:
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == PROJECT["project"]["version"]
