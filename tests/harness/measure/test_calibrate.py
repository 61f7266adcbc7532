"""A native knob found for a sparsity: bisection, what is recorded, and that a resumed command takes it from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.arms import calibration
from harness.arms.calibration import bisect
from methods.parts.base import Knob

FALLING = Knob("threshold", low=1e-9, high=1.0, rising=False, log=True)
RISING = Knob("budget", low=0.0, high=8.0, rising=True)


@pytest.mark.parametrize("target", [0.05, 0.1, 0.5, 0.9])
def test_a_smooth_knob_is_found(target: float) -> None:
    value, tried = bisect(lambda x: 1 - x / 8, Knob("x", 0.0, 8.0, rising=False), target)
    assert 1 - value / 8 == pytest.approx(target, abs=calibration.CLOSE_ENOUGH) and tried < calibration.MAX_TRIES
    value, _ = bisect(lambda x: x / 8, RISING, target)
    assert value / 8 == pytest.approx(target, abs=calibration.CLOSE_ENOUGH)
    value, _ = bisect(lambda x: 1 / (1 + 1e4 * x), FALLING, target)
    assert 1 / (1 + 1e4 * value) == pytest.approx(target, abs=calibration.CLOSE_ENOUGH)


def test_flat_steps_give_the_nearest() -> None:
    value, tried = bisect(lambda x: 0.25 * int(x), RISING, 0.55)
    assert 2 <= value < 3 and tried == calibration.MAX_TRIES


def test_a_target_out_of_reach_gives_the_nearest() -> None:
    value, _ = bisect(lambda x: 0.3 + 0.05 * x, RISING, 0.05)
    assert value < 0.001
    value, _ = bisect(lambda x: 0.3 + 0.05 * x, RISING, 0.99)
    assert value > 7.999


@pytest.fixture(scope="module")
def arguments() -> list[str]:
    return [
        "model=bundled",
        "device=cpu",
        "method=seer",
        "method.selection=threshold",
        "length=1024",
        "samples=1",
        "checks=false",
        "report=false",
        "task.tasks=[niah_single_1,niah_multikey_2]",
        "latency=false",
        "study=calibrated",
        "block_size=32",
    ]


def records(tmp_path: Path, kind: str) -> list[dict[str, object]]:
    path = tmp_path / "results" / "calibrated" / "records" / f"{kind}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_seers_threshold_is_found_recorded_and_taken_again(
    command: Callable[..., int], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*arguments, "sparsity=0.7") == 0
    (record,) = records(tmp_path, "calibrations")
    assert (record["knob"], record["target"]) == ("threshold", pytest.approx(0.3))
    assert record["density"] == pytest.approx(0.3, abs=calibration.TOLERANCE)
    assert len(record["layers"]) == 6  # type: ignore[arg-type]
    assert sum(record["layers"]) / 6 == pytest.approx(record["density"])  # type: ignore[arg-type]
    samples = [s for s in records(tmp_path, "samples") if s["density"] != 1.0]
    assert len(samples) == 2
    assert all(s["density"] == pytest.approx(0.3, abs=0.06) for s in samples), "other prompts, much the same density"
    cells = {str(c["identity"]["knobs"]["threshold"]) for c in records(tmp_path, "cells") if c["knobs"]}  # type: ignore[index]
    assert cells == {str(record["value"])}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr(calibration, "calibrate", never)
    assert command(*arguments, "sparsity=0.7", "samples=2") == 0
    assert len(records(tmp_path, "samples")) == 8
    with pytest.raises(AssertionError, match="calibrated again"):
        command(*arguments, "sparsity=0.5")


def test_a_given_threshold_needs_no_calibration(command: Callable[..., int], arguments: list[str], tmp_path: Path) -> None:
    assert command(*arguments, "sparsity=null", "method.threshold=2e-3", "samples=1") == 0
    assert not records(tmp_path, "calibrations")
    assert {s["status"] for s in records(tmp_path, "samples")} == {"ok"}


def test_both_are_refused(command: Callable[..., int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments, "sparsity=0.9", "method.threshold=2e-3") == 2
    assert "sparsity=0.9 and threshold=0.002: give one of them" in capsys.readouterr().err
