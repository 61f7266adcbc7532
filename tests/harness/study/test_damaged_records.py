"""Damaged records: one line that says where, and nothing that was written changes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from harness.core.errors import UserError
from harness.jobs.notebook import read_rows
from harness.jobs.studies import OpenStudy
from harness.report import figures
from harness.report.figures import kept_mass
from harness.study.store import Store
from tests.harness.settings import composed
from tests.harness.study.damages import CASES, Case, edit_line
from tests.harness.study.whole_study import record_kernels, record_models


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two studies that are as they should be, each with a leaderboard."""
    folder = tmp_path_factory.mktemp("sound")
    for store in (record_models(folder / "models"), record_kernels(folder / "kernels")):
        (store.folder / "leaderboard.csv").write_text("old\n")
    return folder


@pytest.fixture
def records(sound: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a study, and returns the folder of its records."""
    return lambda study: Path(shutil.copytree(sound / study, tmp_path / study)) / "records"


def report(records: Path) -> str:
    """Make the report of a study as job=report does, and return what was printed."""
    study, console = OpenStudy(Store(records.parent), 0.02), Console(file=io.StringIO(), width=1000)
    study.check_has_records(composed())
    study.write_report(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def content(folder: Path) -> dict[Path, bytes | str]:
    """Return all files of a folder, links and whatever else is not a file by their kind."""
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    return {path: path.read_bytes() if path.is_file() else str(path.lstat().st_mode) for path in paths}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "write_figures", lambda rows, folder: [])
    monkeypatch.setattr(kept_mass, "write", lambda rows, folder: [])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_damage_is_one_line_and_changes_nothing(case: Case, records: Callable[[str], Path]) -> None:
    folder = records(case.study)
    case.damage(folder)
    before = content(folder.parent)
    with pytest.raises(UserError) as caught:
        report(folder)
    line = str(caught.value)
    assert case.place in line and case.says in line and "\n" not in line and len(line) < 800
    assert content(folder.parent) == before


def test_sound_records_are_reported(records: Callable[[str], Path]) -> None:
    for study in ("models", "kernels"):
        folder = records(study)
        assert "warning" not in report(folder)
        assert (folder.parent / "leaderboard.csv").read_text() != "old\n"


@pytest.mark.parametrize("kind", ["cells", "checks", "latency"])
def test_a_line_that_a_kill_left_is_said(kind: str, records: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = records("models")
    path = folder / f"{kind}.jsonl"
    line = path.read_bytes().count(b"\n") + 1
    with path.open("ab") as file:
        file.write(b'{"arm":"x","ru')
    before = path.read_bytes()
    said = f"{path}:{line}: left out: an unfinished last line, as a kill leaves it; the command that measured it brings it back"
    report(folder)
    assert capsys.readouterr().err == f"warning: {said}\n"
    with pytest.warns(UserWarning) as warned:
        read_rows(folder.parent.name, folder.parents[1])
    assert [str(warning.message) for warning in warned] == [said]
    assert path.read_bytes() == before


def test_a_plan_from_a_study_says_what_it_goes_without(
    records: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = records("models")
    with (folder / "cells.jsonl").open("ab") as file:
        file.write(b'{"cell":"x"')
    study = OpenStudy(Store(folder.parent), 0.02)
    study.check_whole()
    study.check_whole()
    assert capsys.readouterr().err.count("left out: an unfinished last line") == 1


def test_a_self_check_that_is_gone_is_said(records: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = records("models")

    def with_check(raw: bytes) -> bytes:
        cell = json.loads(raw)
        return json.dumps(cell | {"summary": cell["summary"] | {"check": "gone"}}).encode()

    finished = [n for n, raw in enumerate((folder / "cells.jsonl").read_bytes().splitlines(), 1) if b'"ok"' in raw]
    edit_line(folder / "cells.jsonl", finished[-1], with_check)
    report(folder)
    place = f"{folder / 'cells.jsonl'}:{finished[-1]}"
    assert f"{place}: the self-check of this cell is not in {folder / 'checks.jsonl'}" in capsys.readouterr().err


def test_what_can_be_measured_again_is_no_error_of_measuring(records: Callable[[str], Path]) -> None:
    folder = records("models")
    (folder / "samples.jsonl").unlink()
    study, console = OpenStudy(Store(folder.parent), 0.02), Console(file=io.StringIO(), width=1000)
    study.check_records(console)
    assert "no leaderboard can be written as yet" in console.file.getvalue()  # type: ignore[attr-defined]
    (folder / "runs.jsonl").unlink()
    with pytest.raises(UserError, match=r"run .r1. is not in .*runs\.jsonl"):
        OpenStudy(Store(folder.parent), 0.02).check_records(console)
