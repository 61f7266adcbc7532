"""The study of kernels, small and on a CPU: rows, resuming, failures, indices, pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import row_budget
from matplotlib.image import imread
from rich.console import Console

import methods
from harness.__main__ import main
from harness.measure.kernel_speed.inputs import Work
from harness.report.kernel_rows import kernel_rows
from harness.study.columns import COLUMNS, KERNEL_COLUMNS
from harness.study.store import Store
from methods.parts.base import LayerInputs
from tests.harness.measure.kernel_study import DECODE, ONE, SMALL, Command, records, sparse_records, study
from tests.harness.measure.study_files import board


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the command SMALL ran; to be read, not written into."""
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(list(SMALL)) == 0
    return folder / "results" / "speed"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of what SMALL left, where the command looks for it."""
    return Path(shutil.copytree(finished, tmp_path / "results" / "speed"))


def test_rows_hold_the_times_and_what_they_are_of(finished: Path) -> None:
    rows = board(finished)
    assert tuple(rows[0]) == KERNEL_COLUMNS and set(COLUMNS) < set(KERNEL_COLUMNS)
    assert [r["op"] for r in rows].count("sparse") == 2 * 2 * 2 and len(rows) == 2 * (1 + 2 * (1 + 2))
    for row in (r for r in rows if r["op"] == "sparse"):
        n = int(row["length"])
        budget = row_budget(1 - float(row["sparsity"]), n, n, 64, 64)
        rows_of_blocks = -(-n // 64)
        assert float(row["density"]) == pytest.approx(sum(budget) / (rows_of_blocks * (rows_of_blocks + 1) / 2), rel=1e-5)
        dense, total, attention = (float(row[c]) for c in ("dense_ms", "total_ms", "attention_ms"))
        assert float(row["speedup"]) == pytest.approx(dense / total, rel=1e-4)
        assert float(row["attention_speedup"]) == pytest.approx(dense / attention, rel=1e-4)
        assert float(row["pct_ideal"]) == pytest.approx(100 * dense * float(row["density"]) / total, rel=1e-4)
        flop = 4 * 64 * 4 * sum(budget) * 64 * 64
        assert float(row["tflops"]) == pytest.approx(flop / (attention * 1e9), rel=1e-4)
        assert float(row["error"]) < 1e-5 and float(row["selection_ms"]) > 0
        assert (row["selection"], row["index"], row["shared"], row["k_block"]) == ("block_topk", "uniform", "False", "64")
        for column in ("kernel", "dense_kernel", "commit", "command", "torch", "device", "date", "total_low", "repeats"):
            assert row[column] != "", column
    dense_rows = {r["length"]: r for r in rows if r["op"] == "full"}
    paired = {record["identity"]["op"] for record in records(finished) if record["paired"]}
    assert paired == {"full", "sparse"} == {r["op"] for r in rows if r["speedup"]}
    assert all(r["dense_ms"] == dense_rows[r["length"]]["total_ms"] for r in rows if r["op"] != "sparse")
    (selection, *_) = [r for r in rows if r["op"] == "selection"]
    assert selection["selection_ms"] and not selection["total_ms"] and not selection["speedup"]
    height, width = imread(finished / "time_by_length.png").shape[:2]
    assert width > height > 500
    assert (finished / "share_of_ideal.png").exists()


def test_the_same_settings_time_nothing_twice_and_more_is_added(copied: Path) -> None:
    before = records(copied)
    assert study(copied) == 0
    assert records(copied) == before and len(records(copied, "runs")) == 1
    assert study(copied, lengths=[192, 300, 100]) == 0
    after = records(copied)
    assert after[: len(before)] == before
    assert {r["identity"]["length"] for r in after[len(before) :]} == {100}


def test_report_makes_csv_and_pictures_again(command: Command, copied: Path, finished: Path) -> None:
    names = {"leaderboard.csv", "time_by_length.png", "share_of_ideal.png"}
    assert {path.name for path in copied.iterdir() if path.is_file()} == names
    for name in names:
        (copied / name).unlink()
    assert command("job=report", "study=speed") == 0
    assert {path.name for path in copied.iterdir() if path.is_file()} == names
    assert (copied / "leaderboard.csv").read_bytes() == (finished / "leaderboard.csv").read_bytes()


def test_a_failed_kernel_is_recorded_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Work.sparse
    console = Console(file=StringIO(), width=200)

    def breaks(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        def call() -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        return call if kernel == "reference" else real(self, kernel, index)

    with monkeypatch.context() as patched:
        patched.setattr(Work, "sparse", breaks)
        assert study(tmp_path, console, **ONE) == 1
        assert "failed: reference: OutOfMemoryError: CUDA out of memory" in console.file.getvalue()  # type: ignore[attr-defined]
        states = sparse_records(tmp_path)
        assert (states["sdpa"]["status"], states["reference"]["status"]) == ("ok", "failed")
        assert "out of memory" in states["reference"]["reason"] and states["reference"]["times"] == {}
        failures = [r for r in records(tmp_path) if r["status"] == "failed"]
        assert study(tmp_path, **ONE) == 1
        assert [r for r in records(tmp_path) if r["status"] == "failed"] == failures, "the same failure is written once"
    assert study(tmp_path, **ONE) == 0
    assert {r["status"] for r in {r["case"]: r for r in records(tmp_path)}.values()} == {"ok"}


def test_what_a_kernel_refuses_is_final(command: Command, tmp_path: Path) -> None:
    options = {"lengths": [192], "kernels": ["sdpa", "hopper"], "dense_kernels": ["sdpa", "fa3"]}
    folder = tmp_path / "results" / "speed"
    assert command(*SMALL, "job.lengths=[192]", "job.kernels=[sdpa,hopper]", "job.dense_kernels=[sdpa,fa3]") == 0
    rows = {(r["op"], r["kernel"]): r for r in board(folder)}
    assert rows["sparse", "hopper"]["status"] == rows["full", "fa3"]["status"] == "failed"
    assert "Hopper" in rows["sparse", "hopper"]["reason"] and "compute capability" in rows["full", "fa3"]["reason"]
    assert rows["sparse", "hopper"]["total_ms"] == ""
    before = records(folder)
    assert study(folder, **options) == 0
    assert records(folder) == before


@pytest.mark.parametrize(("factor", "says"), [(1.1, "relative error 0.1 "), (float("nan"), "the output, or its error, is not")])
def test_a_wrong_answer_is_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, says: str) -> None:
    real = Work.sparse

    def off(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        call = real(self, kernel, index)
        return (lambda: call() * factor) if kernel == "reference" else call

    monkeypatch.setattr(Work, "sparse", off)
    assert study(tmp_path, **ONE) == 1
    states = sparse_records(tmp_path)
    assert (states["sdpa"]["status"], states["reference"]["status"]) == ("ok", "gated")
    assert states["reference"]["reason"].startswith(says)


def test_attention_is_timed_where_the_selection_fails(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, x: LayerInputs) -> BlockIndex:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(methods.get("block_topk"), "select", fails)
    assert command(*SMALL, "job.lengths=[192]", "job.sparsities=[0.5]", "job.kernels=[sdpa]") == 1
    (row,) = (r for r in board(tmp_path / "results" / "speed") if r["op"] == "sparse")
    assert (row["status"], row["total_ms"], row["speedup"]) == ("failed", "", "")
    assert float(row["attention_ms"]) > 0 and "the selection failed: RuntimeError: out of memory" in row["reason"]


def test_full_last_rows_are_timed_beside_none(tmp_path: Path) -> None:
    """In turns, at the same density; rows without them keep the identity that older ones have."""
    options = {"lengths": [640], "sparsities": [0.5], "kernels": ["sdpa"], "selections": ["seer"]}
    assert study(tmp_path, last=[0, 2], **options) == 0
    none, some = (row for row in kernel_rows(Store(tmp_path)) if row.op == "sparse")
    assert (none.full_rows, some.full_rows) == (None, 1), "half of the budget pays for one"
    assert none.density == pytest.approx(some.density, rel=0.02) and max(none.error or 1, some.error or 1) < 1e-5
    assert (none.index_name, some.index_name) == ("uniform", "uniform (last 1)")
    assert "last 0" in none.selection and "last 0" not in some.selection
    assert "job.last=[2]" in some.settings and not any("last" in setting for setting in none.settings)
    identities = {r["identity"].get("last"): r for r in records(tmp_path) if r["identity"]["op"] == "sparse"}
    assert set(identities) == {None, 2} and identities[2]["about"]["full_rows"] == "sdpa"
    assert study(tmp_path, **options) == 0
    assert len([r for r in records(tmp_path) if r["identity"]["op"] == "sparse"]) == 2, "what is recorded counts"


def test_decode(command: Command, tmp_path: Path) -> None:
    assert command(*DECODE) == 0
    folder = tmp_path / "results" / "speed"
    rows = [r for r in board(folder) if r["op"] == "sparse"]
    assert {(r["phase"], r["batch"], r["index"]) for r in rows} == {
        ("decode", batch, index) for batch in "12" for index in ("uniform", "uniform_shared")
    }
    for row in rows:
        assert row["selection_ms"] == row["selection"] == "" and row["total_ms"] == row["attention_ms"]
        blocks = round(float(row["density"]) * -(-int(row["length"]) // 64))
        read = blocks * 64 * 2 * 2 * 64 * 4 * int(row["batch"])  # K and V of both KV heads, four bytes an element
        if row["shared"] == "True":
            assert float(row["gb_s"]) == pytest.approx(read / (float(row["attention_ms"]) * 1e6), rel=1e-3)
        else:
            assert row["gb_s"] == ""
    assert (folder / "decode.png").stat().st_size > 10_000


def test_a_study_of_other_measurements_is_left_alone(
    command: Command, toy: list[str], copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, "study=speed") == 2
    assert "study=speed is a study of kernels" in capsys.readouterr().err
    cells = tmp_path / "results" / "toy" / "records" / "cells.jsonl"
    cells.parent.mkdir(parents=True)
    cells.touch()
    assert command(*SMALL, "study=toy") == 2
    assert "study=toy holds other measurements" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_indices_of_a_model(command: Command, tmp_path: Path) -> None:
    arguments = ["job.lengths=[300]", "job.indices=[seer,seer_shared]", "job.selections=[seer]", "job.kernels=[sdpa]"]
    assert command(*SMALL, *arguments) == 0
    rows = [r for r in board(tmp_path / "results" / "speed") if r["op"] == "sparse"]
    assert [(r["method"], r["shared"]) for r in rows] == 2 * [("seer", "False"), ("seer", "True")]
    assert {r["status"] for r in rows} == {"ok"}
    budgets = [sum(row_budget(1 - s, 300, 300, 64, 64)) / 15 for s in (0.5, 0.5, 0.8, 0.8)]
    assert [float(r["density"]) for r in rows] == pytest.approx(budgets, rel=1e-5)
    assert rows[0]["selection"] == "seer (topk, last 0, weights drawn at random: time only)" and rows[0]["haystack"].startswith(
        "pydoc"
    )
    about = [r["about"] for r in records(tmp_path / "results" / "speed") if r["identity"]["op"] == "sparse"]
    assert {a["model"] for a in about} == {"bundled"}


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_shorter_context_fails_those_rows_alone(toy_folder: Path, tmp_path: Path) -> None:
    model = {"name": "toy", "path": str(toy_folder), "chat_template": False}
    options = {"indices": ["uniform", "block_topk"], "lengths": [2112], "sparsities": [0.8], "kernels": ["sdpa"]}
    assert study(tmp_path, settings={"model": model}, **options) == 0
    states = sparse_records(tmp_path, by="index")
    assert (states["uniform"]["status"], states["block_topk"]["status"]) == ("ok", "failed")
    assert "toy has a context of 2048 tokens" in states["block_topk"]["reason"]


def test_a_cut_run_has_the_first_sparsity_whole_and_every_call_three_times(command: Command, tmp_path: Path) -> None:
    arguments = [
        "job.lengths=[192]",
        "job.sparsities=[0.8,0.5]",
        "job.blocks=[64,32]",
        "job.kernels=[sdpa]",
        "latency_repeats=5",
    ]
    assert command(*SMALL, *arguments, "job.block_map=reference", "latency_seconds=0.000001") == 0
    cases = records(tmp_path / "results" / "speed")
    order = [(r["identity"]["op"], r["identity"]["sparsity"], r["identity"]["block"]) for r in cases]
    assert [o for o in order if o[0] == "sparse"] == [("sparse", s, b) for s in (0.8, 0.5) for b in (64, 32)]
    assert [o[0] for o in order[-2:]] == ["block_map", "block_map"]
    assert {values[3] for r in cases if r["identity"]["op"] in ("full", "sparse") for values in r["times"].values()} == {3}
    maps = [r for r in board(tmp_path / "results" / "speed") if r["op"] == "block_map"]
    assert len(maps) == 2 and all(r["total_ms"] and not r["speedup"] and not r["pct_ideal"] for r in maps)
