"""Runs of the toy model that decode sparsely: rows, densities, the baseline beside them, ids, resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.measure.study_files import board, lines

Command = Callable[..., int]


@pytest.mark.usefixtures("pictures")
def test_dense_prefill_and_sparse_decode_beside_the_baseline(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", *toy, "method=dense", "decode=dense,quest", "decode_kernel=reference", "report=false") == 0
    assert (
        command(
            *toy,
            "method=dense",
            "decode=quest",
            "decode.budget=256",
            "decode.dense_layers=0",
            "latency=true",
            "latency_repeats=1",
        )
        == 0
    )
    study = tmp_path / "results" / "toy"
    rows = [r for r in board(study) if r["task"] == "avg"]
    assert [(r["method"], r["decode"].split(" ")[0]) for r in rows] == [
        ("dense", "full"),
        ("dense", "quest"),
        ("dense", "quest"),
    ]
    full, all_layers, no_layer = rows  # by density at decode
    assert full["decode_density"] == "" and full["dense_accuracy"] == ""
    # two layers, both dense by default; then both sparse, with 16 of about 60 blocks
    assert float(no_layer["decode_density"]) == 1.0 and float(all_layers["decode_density"]) == pytest.approx(0.27, abs=0.02)
    assert no_layer["dense_accuracy"] != "" and no_layer["density"] == "1" and no_layer["block_size"] == ""
    assert all_layers["decode"] == ("quest block_size=16 budget=256 dense_layers=0 shared=False (sparse reference)")
    assert all_layers["total_ms"] == "" and full["total_ms"] != "", "prefill is dense: timed with the baseline"
    assert len(lines(study, "samples")) == 2 * 3, "the baseline ran once"
    assert {s["decode_density"] for s in lines(study, "samples") if s["decode_kernels"] == ["sdpa"]} == {None, 1.0}
    assert "decode" in capsys.readouterr().out
    assert (study / "pareto.png").stat().st_size > 10_000


def test_with_a_method_of_prefill_and_again(command: Command, toy: list[str], finished: Path) -> None:
    arguments = [*toy, "decode=oracle", "decode.sparsity=0.75", "batch_tokens=100000", "latency=true", "latency_repeats=1"]
    assert command(*arguments) == 0
    before = lines(finished, "samples")
    assert command(*arguments) == 0 and lines(finished, "samples") == before
    rows = {r["decode"].split(" ")[0]: r for r in board(finished) if r["task"] == "avg" and r["method"] == "block_topk"}
    assert set(rows) == {"full", "oracle"}
    assert rows["full"]["density"] == rows["oracle"]["density"]
    assert float(rows["oracle"]["decode_density"]) == pytest.approx(0.25, abs=0.01)
    assert rows["oracle"]["total_ms"] != "", "its prefill is sparse, and timed"
    cells = {c["cell"]: c["identity"] for c in lines(finished, "cells")}
    assert sum("decode" in identity for identity in cells.values()) == 1 and len(cells) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["decode=quests"], "decode=quests is not known (did you mean quest?); choose one of: dense, oracle, quest, "),
        (["decode=quest", "decode.budgt=5"], "unknown setting 'decode.budgt' (did you mean decode.budget?)"),
        (
            ["decode.budget=5"],
            "unknown setting 'decode.budget' for this decode; it belongs to oracle, quest, random, seer_r, streaming",
        ),
        (["decode=quest", "decode.budget=5"], "budget=5: must hold at least one block of 16 tokens"),
        (["decode=quest", "decode.budget=many"], "decode method quest, budget=many: must be a whole number or null"),
        (["decode=quest", "decode_kernel=fast"], "kernel=fast is not known; choose one of: auto, reference, triton"),
        (["decode=quest", "job=latency"], "job=latency measures prefill, which decode=quest does not change"),
        (["decode=seer_r"], "job=distill decode=seer_r model=hf model.path="),
    ],
)
def test_bad_input_is_one_line(
    command: Command, toy: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert command(*toy, *arguments) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1


def test_one_budget_for_several_methods(command: Command, toy: list[str], tmp_path: Path) -> None:
    """Hydra first composes a sweep without what is swept over, where a knob of one value would have no place."""
    assert command("-m", *toy, "method=dense", "decode=streaming,random", "samples=1", "checks=false", "decode.budget=64") == 0
    assert [r["decode"].split(" ")[0] for r in board(tmp_path / "results" / "toy") if r["task"] == "avg"].count("random") == 1
