"""What the tests of measuring share: no pictures, and one finished run that tests begin from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.report import figures
from tests.harness.settings import toy_arguments


@pytest.fixture
def pictures() -> None:
    """Asked for by the tests that look at pictures: see `no_pictures`."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the leaderboard's pictures for tests alone that look at them; the others have no use for them."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(figures, "write_figures", lambda rows, folder: [])


@pytest.fixture(scope="session")
def finished_study(brief_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study in which `toy` ran once: records, leaderboard, and pictures."""
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(toy_arguments(brief_folder)) == 0
    finally:
        os.chdir(before)
    return folder / "results" / "toy"


@pytest.fixture
def finished(finished_study: Path, tmp_path: Path) -> Path:
    """A copy of the finished study where the next command finds it."""
    return Path(shutil.copytree(finished_study, tmp_path / "results" / "toy"))
