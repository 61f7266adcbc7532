"""How long measurements take, from the dates of recorded ones: by task, arm and length, and nothing that was not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.study.planned import SAMPLES, TIMINGS, Planned, merged, with_recorded
from harness.study.rates import Rates, estimate, rates_for
from harness.study.schema import CellRecord, RunRecord, SampleRecord
from harness.study.store import Store

DENSE = {"dense_kernel": "sdpa", "knobs": {}, "block_size": None, "kernel": None, "weights_hash": None}
DEVICE = "cpu (any, 1 threads)"


def identity(method: str, task: str, sparsity: float = 0.0, length: int = 1024) -> dict[str, Any]:
    """The identity of a cell of a model "toy"."""
    of_arm = {"model": "toy", "model_hash": "h", "length": length, "seed": 0, "dtype": "float32", "device_type": "cpu"}
    block = {} if method == "dense" else {"block_size": 64, "kernel": "sdpa"}
    of_cell = {"task": task, "generator": "1", "data": {}, "chat_template": False}
    return {**of_arm, **DENSE, **block, "method": method, "sparsity": sparsity, **of_cell}


def measured(
    folder: Path, run: str, about: dict[str, Any], seconds: list[int], *, device: str = DEVICE, ends: int = 59
) -> Store:
    """A study in which a process recorded samples of a cell at these seconds, after it had begun it at second 0."""
    store = Store(folder)
    cell = f"{about['method']}-{about['sparsity']}-{about['task']}-{about['length']}"
    store.runs.append(RunRecord(run, date(0), "python -m harness", "c", {}, device, "cpu", 1))
    states = [("running", 0, {}), *([("ok", ends, {"samples": len(seconds)})] if ends else [])]
    for status, second, summary in states:
        store.cells.append(CellRecord(cell, "arm", "pair", run, about, status, "", date(second), summary=summary))
    store.samples.append_all(
        SampleRecord(cell, run, index, "", [], 1.0, 1000, 0.1, 1.0, ["sdpa"], "ok", "", date(second))
        for index, second in enumerate(seconds)
    )
    return store


def date(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}+00:00"


def planned(method: str, task: str, sparsity: float = 0.0, length: int = 1024, count: int = 10) -> Planned:
    return Planned(SAMPLES, "toy", {"length": length, "method": method, "sparsity": sparsity}, task=task, count=count)


def seconds_of(rates: Rates, wanted: Planned) -> float | None:
    """What one unit takes; None where that is not known."""
    expected = estimate([(wanted, 1)], rates)
    return None if expected.unknown else expected.seconds


def test_a_rate_is_of_the_nearest_that_was_measured(tmp_path: Path) -> None:
    store = measured(tmp_path / "own", "r1", identity("sparse", "a", 0.5), [2, 4, 8, 8])
    measured(tmp_path / "own", "r2", identity("sparse", "b", 0.5), [30, 30], ends=0)
    measured(tmp_path / "own", "r3", identity("dense", "a"), [20, 40], device="another")
    rates = rates_for([], store, [], DEVICE, by_sample=True)
    assert seconds_of(rates, planned("sparse", "a", 0.5)) == 2.0
    assert seconds_of(rates, planned("sparse", "b", 0.5)) == 15.0, "it was interrupted: its samples tell"
    assert seconds_of(rates, planned("sparse", "c", 0.5)) == seconds_of(rates, planned("sparse", "a", 0.9)) == 38 / 6
    assert seconds_of(rates, planned("dense", "a")) == 38 / 6, "on this device, at this length"
    assert seconds_of(rates, planned("dense", "a", length=2048)) is None
    assert seconds_of(rates_for([], store, [], "another", by_sample=True), planned("dense", "a")) == 20.0
    left = [(planned("sparse", "a", 0.5), 10), (planned("sparse", "c", 0.5), 3), (planned("dense", "a", length=2048), 1)]
    expected = estimate(left, rates)
    assert expected.seconds == 20 + 3 * 38 / 6 and expected.studies == {"own": 6} and len(expected.unknown) == 1


def test_others_count_where_the_study_knows_too_little(tmp_path: Path) -> None:
    own = measured(tmp_path / "own", "r1", identity("sparse", "a", 0.5), [5, 10])
    other = measured(tmp_path / "other", "r2", identity("dense", "a"), [20, 40], ends=50)
    damaged = Store(tmp_path / "damaged")
    (damaged.folder / "records").mkdir(parents=True)
    (damaged.folder / "records" / "runs.jsonl").write_text("{}\n")
    known, unknown = [planned("sparse", "a", 0.5)], [planned("dense", "a")]
    assert seconds_of(rates_for(known, own, [damaged, other], DEVICE, by_sample=False), unknown[0]) == 59 / 2
    rates = rates_for(unknown, own, [damaged, other], DEVICE, by_sample=False)
    assert seconds_of(rates, unknown[0]) == 25.0 and seconds_of(rates, known[0]) == 59 / 2


def test_what_is_recorded_of_a_plan(tmp_path: Path) -> None:
    store = measured(tmp_path, "r1", identity("sparse", "a", 0.5), [2, 4, 8])
    plan = merged([planned("sparse", "a", 0.5, count=2), planned("sparse", "a", 0.5, count=5), planned("sparse", "a", 0.9)])
    assert [(p.count, p.recorded) for p in with_recorded(plan, store, DEVICE)] == [(5, 3), (10, 0)]
    same = planned("sparse", "a", 0.5)
    for change in (
        {"knobs": {"last": 2}},
        {"decode": "other"},
        {"released": True},
        {"model": "other"},
        {"arm": same.arm | {"question": "after"}},
        {"arm": same.arm | {"prefill_chunk": 512}},
        {"arm": same.arm | {"device_type": "cuda"}},
        {"kind": TIMINGS, "task": ""},
    ):
        assert with_recorded([replace(same, **change)], store, DEVICE)[0].recorded == 0, change
    assert with_recorded([replace(same, arm=same.arm | {"question": "seen", "sizing": "full"})], store, None)[0].left == 7
