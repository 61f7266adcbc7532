"""Rows are what the records say: pairing, averages, gates, failures, times."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods
from harness.core.method_facts import method_facts
from harness.report.common_tasks import comparable
from harness.report.leaderboard import leaderboard_rows
from harness.report.leaderboard_csv import row_columns, write_leaderboard
from harness.stats.scores import wilson_interval
from harness.study.columns import COLUMNS
from harness.study.identity import ArmIdentity, Cell
from harness.study.schema import CellRecord, RunRecord, SampleRecord, Status
from harness.study.store import Store
from tests.harness.report.support import DATE, DENSE, SETTING, SPARSE, cell_of, record_cell, record_times


def rows_by(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """The columns of every row, by method and task."""
    return {(r.method, r.task): row_columns(r) for r in leaderboard_rows(store)}


def test_paired_rows_and_average(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1, 1, 1, 0])
    record_cell(store, SPARSE, "one", [1, 0, 0, 0])
    record_cell(store, DENSE, "two", [1, 1, 1, 1])
    record_cell(store, SPARSE, "two", [1, 1, 0.5, 0])
    record_times(store, SPARSE)
    rows = rows_by(store)
    one = rows["sieve", "one"]
    assert (one["accuracy"], one["dense_accuracy"], one["samples"], one["status"]) == (0.25, 0.75, 4, "ok")
    assert (one["accuracy_low"], one["accuracy_high"]) == wilson_interval(1, 4)
    assert one["p_value"] == pytest.approx(0.5)
    assert (one["density"], one["kernel"], one["knob"], one["haystack"]) == (0.1, "reference", "width=3", "pydoc")
    assert (one["speedup"], one["pct_ideal"], one["dense_kernel"]) == (4.0, pytest.approx(40.0), "sdpa")
    assert one["ttft_ms"] == 900.0, "measured with warm-up, where it was"
    average = rows["sieve", "avg"]
    assert average["accuracy"] == pytest.approx((0.25 + 0.625) / 2)
    assert average["dense_accuracy"] == pytest.approx((0.75 + 1) / 2)
    assert average["samples"] == 8
    dense = rows["full", "one"]
    assert (dense["density"], dense["dense_accuracy"]) == (1.0, None)
    assert dense["ttft_ms"] is None, "the prefill of a sample, without warm-up and perhaps beside other work, is no timing"
    assert (one["decode"], average["tasks"], one["tasks"]) == ("full", 2, None)
    assert average["ttft_ms"] == 900.0
    assert [r.method for r in leaderboard_rows(store)] == ["full"] * 3 + ["sieve"] * 3, "dense first"


def test_token_density_is_of_all_samples_or_of_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1])
    record_cell(store, SPARSE, "one", [1, 0], token_density=0.08)
    record_cell(store, SPARSE, "two", [1, 0], token_density=0.06)
    rows = rows_by(store)
    densities = [rows[key]["token_density"] for key in (("full", "one"), ("sieve", "one"), ("sieve", "two"), ("sieve", "avg"))]
    assert densities == [1.0, pytest.approx(0.08), pytest.approx(0.06), pytest.approx(0.07)]
    record_cell(store, SPARSE, "three", [1])  # a record older than the field
    rows = rows_by(store)
    assert rows["sieve", "three"]["token_density"] is None and rows["sieve", "avg"]["token_density"] is None
    assert rows["sieve", "avg"]["density"] == pytest.approx(0.1)


def test_csv_has_the_columns_and_is_replaced_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1, 0])
    path, _ = write_leaderboard(store)
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert read[0]["study"] == "mine" and read[0]["command"] == "python -m harness" and read[0]["commit"] == "c0ffee"
    assert read[0]["p_value"] == "" and read[0]["accuracy"] == "0.5"
    assert sorted(p.name for p in path.parent.iterdir()) == ["leaderboard.csv", "records"]


def test_above_dense_by_more_than_noise_is_gated(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [0] * 10)
    record_cell(store, SPARSE, "one", [1] * 10)
    rows = rows_by(store)
    assert rows["sieve", "one"]["status"] == "gated"
    assert "above dense by more than noise" in rows["sieve", "one"]["reason"]
    assert rows["sieve", "avg"]["status"] == "gated" and rows["full", "one"]["status"] == "ok"


def test_a_little_above_dense_is_noise(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [0, 0, 1, 1, 1])
    record_cell(store, SPARSE, "one", [1, 1, 1, 1, 1])
    assert rows_by(store)["sieve", "one"]["status"] == "ok"


def test_gated_sample_gates_the_cell(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, SPARSE, "one", [1, 1], sample_status=Status.GATED, sample_reason="the needle is not in the prompt")
    row = rows_by(store)["sieve", "one"]
    assert row["status"] == "gated" and "2 of 2 samples: the needle" in row["reason"]


def test_failed_cell_has_no_accuracy_and_no_average(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, SPARSE, "one", [1, 1])
    record_cell(store, SPARSE, "two", [1], status=Status.FAILED, reason="out of memory")
    rows = rows_by(store)
    assert (rows["sieve", "two"]["status"], rows["sieve", "two"]["accuracy"]) == ("failed", None)
    assert rows["sieve", "two"]["reason"] == "out of memory"
    assert (rows["sieve", "avg"]["status"], rows["sieve", "avg"]["accuracy"]) == ("failed", None)


def test_the_last_finished_state_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, SPARSE, "one", [], status=Status.RUNNING)
    assert leaderboard_rows(store) == [], "begun is no row"
    record_cell(store, SPARSE, "one", [], status=Status.FAILED, reason="out of memory")
    record_cell(store, SPARSE, "one", [1, 0])
    record_cell(store, SPARSE, "one", [], status=Status.RUNNING)
    assert rows_by(store)["sieve", "one"]["status"] == "ok"


def test_only_timed(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    store.runs.append(RunRecord("r1", DATE, "python -m harness", "c0ffee", {"torch": "2"}, "cpu (x)", "cpu", 1))
    record_times(store, SPARSE)
    (row,) = leaderboard_rows(store)
    assert (row.task, row.score, row.total_ms, row.density) == ("", None, 4.0, 0.1)


def test_provenance_names_every_process_that_made_a_sample(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1, 1])
    cell = cell_of(DENSE, "one")
    later = "2026-02-01T00:00:00+00:00"
    store.runs.append(RunRecord("r2", later, "python -m harness samples=3", "beef", {"torch": "3"}, "cpu (x)", "cpu", 1))
    store.samples.append(SampleRecord(cell.id, "r2", 2, "p", ["a"], 1, 40, 1.5, 1.0, ["sdpa"], Status.OK, "", later))
    store.runs.append(RunRecord("r3", later, "another", "f00d", {"torch": "4"}, "cpu (x)", "cpu", 1))
    store.cells.append(CellRecord(cell.id, DENSE.id, cell.pair, "r3", cell.as_dict(), Status.OK, "", later, {}, "pydoc"))
    row = rows_by(store)["full", "one"]
    assert (row["commit"], row["torch"], row["device"]) == ("c0ffee+beef", "2+3", "cpu (x)")
    assert row["command"] == "python -m harness; python -m harness samples=3"


def test_averages_are_compared_over_the_same_tasks(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    for task, score in (("easy", 1.0), ("hard", 0.0)):
        record_cell(store, DENSE, task, [score] * 4)
    record_cell(store, SPARSE, "easy", [1, 1, 1, 0])
    compared, left_out = comparable(leaderboard_rows(store))
    by_method = {r.method: r for r in compared}
    assert not left_out
    assert (by_method["full"].scored.accuracy, by_method["full"].tasks) == (1.0, 1), "dense over the method's one task"
    assert by_method["full"].scored.accuracy_low == pytest.approx(wilson_interval(4, 4)[0])
    assert rows_by(store)["full", "avg"]["accuracy"] == 0.5, "the leaderboard has all of its tasks"
    other = ArmIdentity(SETTING, "sieve", 0.5, {"width": 3}, 64, "reference")
    third = ArmIdentity(SETTING, "sieve", 0.7, {"width": 3}, 64, "reference")
    for arm in (other, third):
        record_cell(store, arm, "easy", [1, 1, 1, 0])
        record_cell(store, arm, "hard", [0, 0, 0, 0])
    compared, left_out = comparable(leaderboard_rows(store))
    assert sorted((r.method, r.sparsity, r.tasks) for r in compared) == [
        ("full", 0.0, 2),
        ("sieve", 0.5, 2),
        ("sieve", 0.7, 2),
    ]
    assert [(r.sparsity, r.tasks) for r in left_out] == [(0.9, 1)]


def test_a_task_of_other_data_is_another_task(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1.0] * 4, text="whole")
    record_cell(store, DENSE, "two", [0.0] * 4, text="whole")
    record_cell(store, DENSE, "one", [0.0] * 4, text="part")
    record_cell(store, SPARSE, "one", [1, 1, 1, 0], text="whole")
    compared, left_out = comparable(leaderboard_rows(store))
    assert [(r.method, r.scored.accuracy) for r in compared] == [("full", 1.0), ("sieve", 0.75)]
    assert [(r.method, r.haystack) for r in left_out] == [("full", "part")]


def cell_with(arm: ArmIdentity, **samples: str) -> Cell:
    """The cell of an arm on the task "one", its prompts made otherwise."""
    return Cell(arm, replace(cell_of(arm, "one").samples, **samples))  # type: ignore[arg-type]


def test_versions_of_prompts_share_no_average_and_no_pair(tmp_path: Path) -> None:
    """Of an arm that has both, the new one counts; an arm that has the earlier one alone is compared with nothing."""
    store = Store(tmp_path / "mine")
    other = replace(SPARSE, sparsity=0.5)
    for arm, old, new in ((DENSE, 1.0, 0.5), (SPARSE, 1.0, 0.25), (other, 1.0, None)):
        record_cell(store, arm, "two", [1.0] * 4)
        record_cell(store, arm, "one", [old] * 4)
        if new is not None:
            record_cell(store, arm, "one", [new] * 4, cell=cell_with(arm, generator="2"))
    rows = leaderboard_rows(store)
    averages = {(r.method, r.sparsity): r.scored.accuracy for r in rows if r.task == "avg"}
    assert averages == {("full", 0.0): 0.75, ("sieve", 0.9): 0.625, ("sieve", 0.5): 1.0}
    earlier = [r for r in rows if r.task == "one" and (r.generator, r.sparsity) == ("1", 0.9)]
    assert [r.reason for r in earlier] == ["an earlier version of its prompts (1): in no average"]
    (pair,) = [r.scored.comparison for r in rows if r.task == "avg" and r.sparsity == 0.9]
    assert pair is not None and pair.difference == -0.125, "over the new prompts of both"
    compared, left_out = comparable(rows)
    assert {len({r.haystack for r in compared}), len(compared) + len(left_out)} == {1, 3} and len(left_out) == 1


def test_sizings_of_prompts_share_no_average(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    for arm, full, released in ((DENSE, 1.0, 0.5), (SPARSE, 1.0, 0.25)):
        record_cell(store, arm, "one", [full] * 4)
        record_cell(store, arm, "one", [released] * 4, cell=cell_with(arm, sizing="release"), text="pydoc sizing=release")
    averages = [(r.method, r.haystack, r.scored.accuracy) for r in leaderboard_rows(store) if r.task == "avg"]
    assert sorted(averages) == [
        ("full", "pydoc", 1.0),
        ("full", "pydoc sizing=release", 0.5),
        ("sieve", "pydoc", 1.0),
        ("sieve", "pydoc sizing=release", 0.25),
    ]
    assert len({r.haystack for r in comparable(leaderboard_rows(store))[0]}) == 1


def test_an_average_above_dense_by_more_than_noise_is_gated(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    for task in ("one", "two", "three"):
        record_cell(store, DENSE, task, [0, 0, 0, 0, 1])
        record_cell(store, SPARSE, task, [1, 1, 1, 0, 1])
    rows = rows_by(store)
    assert {rows["sieve", t]["status"] for t in ("one", "two", "three")} == {"ok"}, "none alone"
    assert (rows["sieve", "avg"]["status"], "above dense" in rows["sieve", "avg"]["reason"]) == ("gated", True)


def test_difference_and_noninferiority_at_a_margin(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_cell(store, DENSE, "one", [1] * 300)
    record_cell(store, SPARSE, "one", [1] * 300)
    record_cell(store, DENSE, "two", [1] * 300)
    record_cell(store, SPARSE, "two", [1] * 270 + [0] * 30)
    rows = rows_by(store)
    assert rows["full", "one"]["difference"] is None and rows["full", "one"]["noninferior"] is None
    one, two, average = (rows["sieve", task] for task in ("one", "two", "avg"))
    assert (one["difference"], one["noninferior"], one["margin"]) == (0, "yes", 0.02)
    assert (two["difference"], two["noninferior"]) == (pytest.approx(-0.1), "no")
    assert two["difference_low"] < -0.1 < two["difference_high"] < 0
    assert average["difference"] == pytest.approx(-0.05) and average["noninferior"] == "no"
    generous = {(r.method, r.task): r for r in leaderboard_rows(store, margin=0.2)}
    assert (generous["sieve", "two"].noninferior, generous["sieve", "two"].margin) == (True, 0.2)


def test_p_values_are_adjusted_within_averages_and_within_tasks(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    arms = [ArmIdentity(SETTING, "sieve", sparsity, {"width": 3}, 64, "reference") for sparsity in (0.5, 0.7, 0.9)]
    for task in ("one", "two"):
        record_cell(store, DENSE, task, [1] * 8)
        for arm in arms:
            record_cell(store, arm, task, [0] * 8)
    for row in leaderboard_rows(store):
        if row.method == "sieve":
            assert row.p_value is not None and row.p_value < 0.1
            assert row.p_holm == pytest.approx((3 if row.task == "avg" else 6) * row.p_value)


def test_a_bound_that_rises_with_fewer_blocks_is_gated(tmp_path: Path) -> None:
    (bound,) = [name for name in methods.names() if method_facts(name).bound]
    dense_first = [1] * 10 + [0] * 10

    def study(name: str, method: str, sparser: list[float], *knobs: dict[str, Any]) -> list[tuple[str, str]]:
        store = Store(tmp_path / name)
        of = knobs or ({}, {})
        for sparsity, density, scores, arm_knobs in zip((0.5, 0.9), (0.5, 0.1), (dense_first, sparser), of, strict=True):
            arm = ArmIdentity(SETTING, method, sparsity, arm_knobs, 64, "reference")
            record_cell(store, arm, "one", list(scores), density=density)
        return [(r.status, r.reason) for r in leaderboard_rows(store) if r.task == "avg"]

    (denser, sparser) = study("rises", bound, [1] * 20)
    assert denser[0] == "ok" and sparser[0] == "gated"
    assert "better at density 0.100 than at 0.500" in sparser[1]
    thresholds = [{"rule": "threshold", "threshold": value} for value in (0.01, 0.2)]
    assert study("found", bound, [1] * 20, *thresholds)[1][0] == "gated", "a number found for each density is still one line"
    rules = [{"rule": "threshold"}, {"rule": "share"}]
    assert {status for status, _ in study("rules", bound, [1] * 20, *rules)} == {"ok"}, "two rules are two lines"
    store = Store(tmp_path / "versions")
    for sparsity, density, scores, version in ((0.5, 0.5, dense_first, "1"), (0.9, 0.1, [1] * 20, "2")):
        arm = ArmIdentity(SETTING, bound, sparsity, {}, 64, "reference")
        record_cell(store, arm, "one", list(scores), density=density, cell=cell_with(arm, generator=version))
    assert {r.status for r in leaderboard_rows(store)} == {"ok"}, "other prompts may be easier"
    assert {status for status, _ in study("noise", bound, [1] * 12 + [0] * 8)} == {"ok"}
    assert {status for status, _ in study("falls", bound, [1] * 4 + [0] * 16)} == {"ok"}
    assert {status for status, _ in study("other", "sieve", [1] * 20)} == {"ok"}, "others may be as they like"
