"""A study after its runs: reports made again, what is lost, what is newer than its records, what gates a cell."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.measure.latency import record as latency_record
from harness.models import bridge as bridge_module
from harness.study.schema import RunRecord
from harness.study.store import Store
from tests.harness.measure.study_files import board, lines

Command = Callable[..., int]


def test_without_a_report_there_are_records_alone(command: Command, toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "report=false") == 0
    study = tmp_path / "results" / "toy"
    assert [p.name for p in study.iterdir()] == ["records"] and lines(study, "samples")
    assert command("job=report", "study=toy") == 0
    assert (study / "leaderboard.csv").is_file()


@pytest.mark.usefixtures("pictures")
def test_report_makes_everything_again(command: Command, finished: Path) -> None:
    study = finished
    before = (study / "leaderboard.csv").read_text()
    (study / "leaderboard.csv").unlink()
    (study / "pareto.png").unlink()
    assert command("job=report", "study=toy") == 0
    assert (study / "leaderboard.csv").read_text() == before
    assert (study / "pareto.png").exists()


@pytest.mark.parametrize("kind", ["cells", "samples"])
def test_what_is_lost_stops_a_report_and_is_measured_again(
    command: Command, toy: list[str], finished: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    before = (finished / "leaderboard.csv").read_text()
    others = {path: path.read_bytes() for path in (finished / "records").iterdir() if path.stem != kind}
    (finished / "records" / f"{kind}.jsonl").unlink()
    assert command("job=report", "study=toy") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{kind}.jsonl" in line and "restore that file" in line and "or measure again: python -m harness" in line
    assert (finished / "leaderboard.csv").read_text() == before
    assert {path: path.read_bytes() for path in others} == others
    assert command(*toy) == 0
    assert "no leaderboard can be written as yet" in capsys.readouterr().out
    after = {row["task"]: row["accuracy"] for row in board(finished)}
    assert after == {row["task"]: row["accuracy"] for row in csv.DictReader(before.splitlines())}


def test_a_self_check_that_is_lost_is_said_and_made_again(
    command: Command, toy: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = finished / "records" / "checks.jsonl"
    before = [check["check"] for check in lines(finished, "checks")]
    checks.unlink()
    assert command("job=report", "study=toy") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is not in {checks.relative_to(Path.cwd())}" in line and "or measure again: python -m harness" in line
    assert command(*toy) == 0
    assert [check["check"] for check in lines(finished, "checks")] == before
    capsys.readouterr()
    assert command("job=report", "study=toy") == 0
    assert not capsys.readouterr().err


def test_a_study_of_training_steps_alone_has_no_leaderboard(command: Command, tmp_path: Path) -> None:
    store = Store(tmp_path / "results" / "gates")
    store.runs.append(
        RunRecord("r1", "2026-01-01T00:00:00+00:00", "python -m harness job=distill", "c0ffee", {}, "cpu (x)", "cpu", 1)
    )
    assert command("job=report", "study=gates") == 0
    assert not (tmp_path / "results" / "gates" / "leaderboard.csv").exists()


def test_a_study_of_kept_mass_alone_has_one(command: Command, toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "job=kept_mass", "report=false") == 0
    study = tmp_path / "results" / "toy"
    (study / "leaderboard.csv").unlink(missing_ok=True)
    assert command("job=report", "study=toy") == 0
    assert [row["method"] for row in board(study)] == ["block_topk"]


def test_knobs_newer_than_records_do_not_make_another_arm(command: Command, toy: list[str], tmp_path: Path) -> None:
    """What is recorded of the oracle counts, whatever its config has learnt since."""
    assert command(*toy, "samples=1", "checks=false", "report=false", "method=oracle") == 0
    assert command(*toy, "samples=1", "checks=false", "report=false", "method=oracle", "method.selection=nz_ratio") == 0
    cells = [c["identity"] for c in lines(tmp_path / "results" / "toy", "cells")]
    knobs = {json.dumps(identity["knobs"], sort_keys=True) for identity in cells if identity["method"] == "oracle"}
    whole = [f'{{"blocks": {n}, "nz_ratio": 0.5, "pool": "max", "selection": "nz_ratio"}}' for n in (4, 5)]
    assert knobs == {'{"pool": "max"}', *whole}


def test_an_archived_study_reports_and_resumes(command: Command, toy: list[str], finished: Path) -> None:
    study = finished
    before = (study / "leaderboard.csv").read_text()
    assert command("job=archive", "study=toy") == 0
    for kind in ("samples", "cells"):
        assert (study / "records" / f"{kind}.jsonl").read_bytes() == b""
        (study / "records" / f"{kind}.jsonl").unlink()
    assert command("job=report", "study=toy") == 0
    assert command(*toy) == 0
    assert (study / "leaderboard.csv").read_text() == before
    assert not (study / "records" / "samples.jsonl").exists(), "nothing ran again"


def test_logits_that_are_not_finite_fail_the_cell(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = bridge_module.attend

    def broken(*args: Any, **options: Any) -> Any:
        out, ran = attend(*args, **options)
        return out * float("nan"), ran

    monkeypatch.setattr(bridge_module, "attend", broken)
    assert command(*toy) == 1
    rows = {r["method"]: r for r in board(tmp_path / "results" / "toy") if r["task"] != "avg"}
    assert (rows["dense"]["status"], rows["block_topk"]["status"]) == ("ok", "failed")
    assert "2 of 2 samples: logits are NaN or infinite" in rows["block_topk"]["reason"]


def test_timings_of_another_commit_are_taken_again_and_the_last_count(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, study = [*toy, "job=latency", "latency_repeats=1"], tmp_path / "results" / "toy"
    for name in ("one", "two", "two"):
        monkeypatch.setattr(latency_record, "commit", lambda name=name: name)
        assert command(*arguments) == 0
    timed = lines(study, "latency")
    assert len(timed) == 4, "two arms, two commits"
    assert all(record["dense_ttft_ms"] > 0 for record in timed)
    last = next(record for record in reversed(timed) if record["identity"]["method"] == "block_topk")
    (row,) = (r for r in board(study) if r["method"] == "block_topk")
    assert float(row["total_ms"]) == pytest.approx(last["total_ms"], rel=1e-5)


def test_decode_kernels_are_named(finished: Path) -> None:
    assert {r["decode"] for r in board(finished)} == {"full (sdpa)"}


def test_the_share_of_time_in_the_model_is_recorded(command: Command, toy: list[str], finished: Path) -> None:
    assert command(*toy, "samples=3") == 0
    shares = [c["summary"]["model_share"] for c in lines(finished, "cells") if c["status"] == "ok"]
    assert len(shares) == 4 and all(0 < share < 1 for share in shares)
