"""The study of kernels, small and on a CPU: rows, resuming, failures, indices, pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import row_budget
from matplotlib.image import imread

import methods
from harness.measure.kernel_speed.inputs import Work
from harness.study.columns import COLUMNS, KERNEL_COLUMNS
from methods.parts.base import LayerInputs

Command = Callable[..., int]
CPU = torch.device("cpu")
SMALL = [
    "job=kernel_speed",
    "study=speed",
    "device=cpu",
    "latency_repeats=1",
    "latency_seconds=1",
    "job.shape=bundled",
    "job.lengths=[192,300]",
    "job.sparsities=[0.5,0.8]",
    "job.blocks=[64]",
    "job.kernels=[sdpa,reference]",
    "job.indices=[uniform]",
    "job.selections=[block_topk]",
    "job.block_map=null",
]
DECODE = [
    *SMALL[:-4],
    "job.phase=decode",
    "job.batches=[1,2]",
    "job.kernels=[reference]",
    "job.indices=[uniform,uniform_shared]",
]


def records(folder: Path, kind: str = "kernels") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / f"{kind}.jsonl").read_text().splitlines()]


def board(folder: Path) -> list[dict[str, str]]:
    with open(folder / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_hold_the_times_and_what_they_are_of(command: Command, tmp_path: Path) -> None:
    assert command(*SMALL) == 0
    folder = tmp_path / "results" / "speed"
    rows = board(folder)
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
    assert all(r["dense_ms"] == dense_rows[r["length"]]["total_ms"] for r in rows)
    (selection, *_) = [r for r in rows if r["op"] == "selection"]
    assert selection["selection_ms"] and not selection["total_ms"] and not selection["speedup"]
    height, width = imread(folder / "time_by_length.png").shape[:2]
    assert width > height > 500
    assert (folder / "share_of_ideal.png").exists()


def test_the_same_command_times_nothing_twice_and_more_is_added(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "speed"
    assert command(*SMALL, "job.lengths=[192]") == 0
    before = records(folder)
    assert command(*SMALL, "job.lengths=[192]") == 0
    assert records(folder) == before and len(records(folder, "runs")) == 1
    assert command(*SMALL) == 0
    after = records(folder)
    assert after[: len(before)] == before
    assert {r["identity"]["length"] for r in after[len(before) :]} == {300}


def test_report_makes_csv_and_pictures_again(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "speed"
    assert command(*SMALL) == 0
    made = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for name in made:
        (folder / name).unlink()
    assert command("job=report", "study=speed") == 0
    assert (
        {p.name for p in folder.iterdir() if p.is_file()}
        == set(made)
        == {
            "leaderboard.csv",
            "time_by_length.png",
            "share_of_ideal.png",
        }
    )
    assert (folder / "leaderboard.csv").read_bytes() == made["leaderboard.csv"]


def test_a_failed_kernel_is_recorded_and_tried_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Work.sparse

    def breaks(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        def call() -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        return call if kernel == "reference" else real(self, kernel, index)

    small = [*SMALL, "job.lengths=[192]", "job.sparsities=[0.5]"]
    folder = tmp_path / "results" / "speed"
    with monkeypatch.context() as patched:
        patched.setattr(Work, "sparse", breaks)
        assert command(*small) == 1
        assert "failed: reference: OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out
        found = {r["kernel"]: r for r in board(folder) if r["op"] == "sparse"}
        assert (found["sdpa"]["status"], found["reference"]["status"]) == ("ok", "failed")
        assert "out of memory" in found["reference"]["reason"] and found["reference"]["total_ms"] == ""
        lines = [r for r in records(folder) if r["status"] == "failed"]
        assert command(*small) == 1
        assert [r for r in records(folder) if r["status"] == "failed"] == lines, "the same failure is written once"
    assert command(*small) == 0
    assert {r["status"] for r in board(folder)} == {"ok"}


def test_what_a_kernel_refuses_is_final(command: Command, tmp_path: Path) -> None:
    small = [*SMALL, "job.lengths=[192]", "job.kernels=[sdpa,hopper]", "job.dense_kernels=[sdpa,fa3]"]
    folder = tmp_path / "results" / "speed"
    assert command(*small) == 0
    rows = {(r["op"], r["kernel"]): r for r in board(folder)}
    assert rows["sparse", "hopper"]["status"] == rows["full", "fa3"]["status"] == "failed"
    assert "Hopper" in rows["sparse", "hopper"]["reason"] and "compute capability" in rows["full", "fa3"]["reason"]
    before = records(folder)
    assert command(*small) == 0
    assert records(folder) == before


@pytest.mark.parametrize(("factor", "says"), [(1.1, "relative error 0.1 "), (float("nan"), "the output, or its error, is not")])
def test_a_wrong_answer_is_held_back(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, says: str
) -> None:
    real = Work.sparse

    def off(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        call = real(self, kernel, index)
        return (lambda: call() * factor) if kernel == "reference" else call

    monkeypatch.setattr(Work, "sparse", off)
    assert command(*SMALL, "job.lengths=[192]", "job.sparsities=[0.5]") == 1
    rows = {r["kernel"]: r for r in board(tmp_path / "results" / "speed") if r["op"] == "sparse"}
    assert (rows["sdpa"]["status"], rows["reference"]["status"]) == ("ok", "gated")
    assert rows["reference"]["reason"].startswith(says)


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job.kernels=[fast]"], "job.kernels: fast is not known; choose from: reference, sdpa, triton"),
        (["job.dense_kernels=[fa9]"], "job.dense_kernels: fa9 is not known; choose from: sdpa_flash, "),
        (["job.shape=gpt"], "job.shape: gpt is not known; choose from: llama3_8b, "),
        (["job.indices=[seer,best]"], "job.indices: best is not known; choose from: uniform, uniform_shared, block_topk, "),
        (["job.indices=[dense]"], "job.indices: dense is not known"),
        (["job.selections=[none]"], "job.selections: none is not known; choose from: block_topk, "),
        (["job.selections=[blasst]"], "job.selections: blasst is not known; choose from: block_topk, "),  # it selects nothing
        (["job.indices=[blasst]"], "job.indices: blasst is not known"),
        (["job.phase=train"], "job.phase: train is not known; choose from: prefill, decode"),
        (
            ["job.phase=decode", "job.kernels=[reference]", "job.indices=[seer]"],
            "job.indices: seer is not known; choose from: uniform, uniform_shared",
        ),
        (["job.block_map=fast"], "job.block_map: fast is not known; choose from: null, auto, reference, triton"),
        (["job.lengths=[]"], "job.lengths=[]: must be one or more whole numbers of at least 16"),
        (["job.sparsities=[0.5,1]"], "job.sparsities=[0.5, 1]: must be one or more shares in [0, 1)"),
        (["job.blocks=[24]"], "block_size=24: must be a multiple of 16"),
        (["job.length=[64]"], "unknown setting 'job.length' (did you mean job.lengths?)"),
        (["job.indices=[seer]", "job.blocks=[80]"], "no weights of seer for bundled at block size 80"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert command(*SMALL, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and len(err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_study_of_other_measurements_is_left_alone(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*SMALL, "job.lengths=[192]") == 0
    assert command(*toy, "study=speed") == 2
    assert "study=speed is a study of kernels" in capsys.readouterr().err
    assert command(*toy, "samples=1") == 0
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
    assert rows[0]["selection"] == "seer (weights drawn at random: time only)" and rows[0]["haystack"].startswith("pydoc")
    about = [r["about"] for r in records(tmp_path / "results" / "speed") if r["identity"]["op"] == "sparse"]
    assert {a["model"] for a in about} == {"bundled"}


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_shorter_context_fails_those_rows_alone(command: Command, toy_folder: Path, tmp_path: Path) -> None:
    model = ["model=hf", f"model.path={toy_folder}", "model.name=toy", "job.indices=[uniform,block_topk]"]
    assert command(*SMALL, *model, "job.lengths=[2112]", "job.sparsities=[0.8]", "job.kernels=[sdpa]") == 0
    rows = {r["index"]: r for r in board(tmp_path / "results" / "speed") if r["op"] == "sparse"}
    assert (rows["uniform"]["status"], rows["block_topk"]["status"]) == ("ok", "failed")
    assert "toy has a context of 2048 tokens" in rows["block_topk"]["reason"]


def test_a_cut_run_has_the_first_sparsity_whole_and_every_call_three_times(command: Command, tmp_path: Path) -> None:
    arguments = [
        "job.lengths=[192]",
        "job.sparsities=[0.8,0.5]",
        "job.blocks=[64,32]",
        "job.kernels=[sdpa]",
        "latency_repeats=5",
    ]
    assert command(*SMALL, *arguments, "job.block_map=reference", "latency_seconds=0.000001") == 0
    made = records(tmp_path / "results" / "speed")
    order = [(r["identity"]["op"], r["identity"]["sparsity"], r["identity"]["block"]) for r in made]
    assert [o for o in order if o[0] == "sparse"] == [("sparse", s, b) for s in (0.8, 0.5) for b in (64, 32)]
    assert [o[0] for o in order[-2:]] == ["block_map", "block_map"]
    assert {values[3] for r in made if r["identity"]["op"] in ("full", "sparse") for values in r["times"].values()} == {3}
    maps = [r for r in board(tmp_path / "results" / "speed") if r["op"] == "block_map"]
    assert len(maps) == 2 and all(r["total_ms"] and not r["speedup"] and not r["pct_ideal"] for r in maps)


@pytest.mark.gpu
def test_a_kernel_that_writes_nothing_is_held_back(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Work.sparse

    def idle(self: Work, kernel: str, index: BlockIndex) -> Callable[[], Any]:
        return (lambda: torch.empty_like(self.q)) if kernel == "sdpa" else real(self, kernel, index)

    monkeypatch.setattr(Work, "sparse", idle)
    arguments = [
        "device=cuda",
        "job.shape=llama3_8b",
        "job.kernels=[triton,sdpa]",
        "job.lengths=[2048]",
        "job.sparsities=[0.5]",
    ]
    assert command(*SMALL, *arguments) == 1
    rows = {r["kernel"]: r["status"] for r in board(tmp_path / "results" / "speed") if r["op"] == "sparse"}
    assert rows == {"triton": "ok", "sdpa": "gated"}


@pytest.mark.gpu
def test_calls_of_decoding_are_replayed_as_graphs(command: Command, tmp_path: Path) -> None:
    arguments = ["device=cuda", "job.shape=llama3_8b", "job.kernels=[triton]", "job.lengths=[4096]"]
    assert command(*DECODE, *arguments) == 0
    rows = [r for r in board(tmp_path / "results" / "speed") if r["status"] == "ok"]
    assert {r["op"] for r in rows} == {"full", "sparse"} and {r["timing"] for r in rows} == {"graph"}


@pytest.mark.gpu
def test_every_kernel_of_a_gpu_answers_right(command: Command, tmp_path: Path) -> None:
    arguments = ["device=cuda", "job.shape=llama3_8b", "job.kernels=auto", "job.lengths=[2048]", "job.blocks=[64,128]"]
    assert command(*SMALL, *arguments, "job.selections=[seer]", "job.indices=[uniform,uniform_shared,seer]") == 0
    rows = board(tmp_path / "results" / "speed")
    assert {r["status"] for r in rows if r["kernel"] == "triton"} == {"ok"}
    assert not [r["reason"] for r in rows if r["status"] == "gated"]
