"""The attention mass that a method keeps: what is measured, recorded, drawn."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.kept_mass import ROWS
from matplotlib.image import imread

from harness.measure import kept_mass
from harness.measure.kept_mass import keep
from harness.models.bridge import Bridge
from harness.report.figures import kept_mass as figure
from harness.report.figures.kept_mass import QUERY_BLOCKS, draw
from harness.report.mass_rows import LayerMass, MassRow
from tests.harness.report.support import make_row
from tests.harness.tiny import Fixed, load, tokens

Command = Callable[..., int]


def attention(family: str, ids: list[int]) -> dict[int, torch.Tensor]:
    """The causal attention probabilities of every global layer, [Hq,N,N] float64."""
    loaded = load(family)
    maps: dict[int, torch.Tensor] = {}

    def observe(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = (q.double() @ k.double().mT * scale)[0]
        maps[layer] = scores.masked_fill(torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1), -torch.inf).softmax(-1)

    with torch.inference_mode(), Bridge(loaded, None, observer=observe):
        loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    return maps


def test_it_is_the_share_of_the_true_attention_on_the_kept_blocks() -> None:
    prompts = [tokens(64, seed=seed).tolist() for seed in (1, 2)]  # four rows of blocks: all are looked at
    measured = keep(load("llama"), Fixed(keep="ends"), prompts)
    block = torch.arange(64) // 16
    kept_keys = (block[None] == 0) | (block[None] == block[:, None])
    for layer in (0, 1):
        expected = torch.stack([(attention("llama", ids)[layer] * kept_keys).sum(-1).mean(-1) for ids in prompts]).mean(0)
        assert measured.by_head()[layer] == pytest.approx(expected.tolist(), abs=1e-5)
    assert measured.by_layer() == pytest.approx([7 / 10] * 2)


def test_a_method_that_asks_for_dense_attention_keeps_all() -> None:
    measured = keep(load("llama"), Fixed(keep="none"), [tokens(48).tolist()])
    assert measured.by_head() == [[1.0] * 4] * 2 and measured.by_layer() == [1.0, 1.0]


def test_layers_of_a_sliding_window_have_none() -> None:
    assert sorted(keep(load("gemma3"), Fixed(), [tokens(64).tolist()]).mass) == [1]


def study(tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[dict[str, str]]]:
    folder = tmp_path / "results" / "toy"
    records = [json.loads(line) for line in (folder / "records" / "mass.jsonl").read_text().splitlines()]
    board, table = (list(csv.DictReader((folder / name).open())) for name in ("leaderboard.csv", "kept_mass.csv"))
    return records, board, table


def test_recorded_once_with_a_csv_and_pictures(command: Command, toy: list[str], tmp_path: Path) -> None:
    arguments = [*toy, "job=kept_mass", "task.tasks=[niah_single_1,niah_single_2]", "samples=3"]
    assert command(*arguments) == 0
    records, board, table = study(tmp_path)
    (record,) = records
    assert (record["prompts"], record["layers"], len(record["kept"][0])) == (3, [0, 1], 4)
    (row,) = board
    assert float(row["kept_mass"]) == pytest.approx(sum(map(sum, record["kept"])) / 8, rel=1e-5)
    assert float(row["density"]) == pytest.approx(0.5, abs=0.05) and row["accuracy"] == row["total_ms"] == ""
    assert [line["layer"] for line in table] == ["0", "1"]
    lowest = min(range(4), key=record["kept"][0].__getitem__)
    assert (table[0]["lowest_head"], float(table[0]["lowest_kept_mass"])) == (
        str(lowest),
        pytest.approx(record["kept"][0][lowest], rel=1e-5),
    )
    assert table[0]["command"].startswith("python -m harness") and table[0]["commit"]
    assert (tmp_path / "results" / "toy" / "kept_mass.png").is_file()
    assert command(*arguments) == 0
    assert len(study(tmp_path)[0]) == 1, "what is recorded is not measured again"
    assert command(*arguments, "sparsity=0.8") == 0
    records, board, _ = study(tmp_path)
    assert len(records) == len(board) == 2


def test_mass_of_prompts_replaces_that_of_the_one_that_was_timed(command: Command, toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "job=latency", "latency_repeats=1") == 0
    timed = {r["method"]: r["kept_mass"] for r in csv.DictReader((tmp_path / "results/toy/leaderboard.csv").open())}
    assert command(*toy, "job=kept_mass") == 0
    records, board, _ = study(tmp_path)
    (row,) = (r for r in board if r["method"] == "block_topk")
    assert row["kept_mass"] != timed["block_topk"] and row["total_ms"] != ""
    assert float(row["kept_mass"]) == pytest.approx(sum(map(sum, records[0]["kept"])) / 8, rel=1e-5)


def test_a_failure_is_said_and_tried_again(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(kept_mass, "keep", broken)
        assert command(*toy, "job=kept_mass") == 1
    assert "failed: mass kept by block_topk: RuntimeError: out of memory" in capsys.readouterr().out
    assert command(*toy, "job=kept_mass") == 0
    assert len(study(tmp_path)[0]) == 1


def test_methods_stand_by_the_mass_they_keep(tmp_path: Path) -> None:
    rows = [
        MassRow(
            make_row(name, 0.9, length, None),
            [LayerMass(0, [mass, mass], 0.1), LayerMass(1, [mass, 1.0], 0.1)],
            prompts=2,
        )
        for length in (1024, 2048)
        for name, mass in (("worse", 0.2), ("better", 0.6))
    ]
    drawn = draw(rows, "title", "cpu")
    first, second = drawn.axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["better", "worse"]
    assert {"60", "80", "70", ".10"} <= {t.get_text() for t in second.texts}
    drawn.savefig(tmp_path / "x.png")
    assert imread(tmp_path / "x.png").shape[1] > 400


def test_a_picture_has_one_set_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods on other prompts than most have stand in a picture of their own."""
    drawn: dict[str, set[str]] = {}
    monkeypatch.setattr(figure, "draw", lambda rows, *_: {mass.row.method for mass in rows})
    monkeypatch.setattr(figure.style, "save", lambda methods, path, **_: drawn.update({path.name: methods}))
    places = (("one", 2, "a"), ("two", 2, "a"), ("three", 2, "b"), ("four", 3, "c"), ("five", 2, "d"))
    figure.write([MassRow(make_row(name, 0.9, 1024, None), [], prompts, seen) for name, prompts, seen in places], tmp_path)
    apart = {"kept_mass_2-prompts.png": {"three"}, "kept_mass_2-prompts-2.png": {"five"}, "kept_mass_3-prompts.png": {"four"}}
    assert drawn == {"kept_mass.png": {"one", "two"}} | apart


def test_the_picture_says_how_many_query_blocks_are_measured() -> None:
    assert QUERY_BLOCKS == ROWS
