"""Ids are equal exactly when the numbers must be."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from harness.study.identity import ArmIdentity, Cell, Decoding, Samples, Setting, digest
from harness.study.store import Store

PARTS = (Setting, ArmIdentity, Samples)
RESULTS = Path(__file__).resolve().parents[3] / "results"
SETTING = Setting("tiny", "abc", 4096, 0, "float32", "cpu", "sdpa")
ARM = ArmIdentity(SETTING, "sieve", 0.9, {"width": 3, "sink": 1}, 64, "reference", "w1")
SAMPLES = Samples("one", "1", {"haystack": None}, False)
CELL = Cell(ARM, SAMPLES)


def test_ids_are_stable_and_ignore_order() -> None:
    assert CELL.id == Cell(replace(ARM, knobs={"sink": 1, "width": 3}), SAMPLES).id
    assert len(CELL.id) == 16 and digest({"b": 1, "a": [1.5, None]}) == digest({"a": [1.5, None], "b": 1})
    assert "files" not in CELL.as_dict(), "cells of tasks that read none keep their ids"
    assert "question" not in CELL.as_dict(), "nor does a question that is seen with its context change them"
    assert "sizing" not in CELL.as_dict(), "nor do prompts as long as fits"
    assert "prefill_chunk" not in CELL.as_dict(), "nor those that are prefilled whole"
    assert digest({"a": 1}) == "015abd7f5cc57a2d", "changing this orphans every record there is"


def test_a_cell_makes_its_ids_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample has one, and its pair is compared with every cell of a study."""
    expected, made = [CELL.id, CELL.pair], list[object]()
    monkeypatch.setattr("harness.study.identity.digest", lambda value: made.append(value) or digest(value))
    cell = Cell(ARM, SAMPLES)
    assert [[cell.id, cell.pair] for _ in range(2)] == [expected] * 2 and len(made) == 2


@pytest.mark.parametrize(
    "other",
    [
        Cell(replace(ARM, sparsity=0.8), SAMPLES),
        Cell(replace(ARM, knobs={"width": 4, "sink": 1}), SAMPLES),
        Cell(replace(ARM, block_size=128), SAMPLES),
        Cell(replace(ARM, kernel="triton"), SAMPLES),
        Cell(replace(ARM, weights_hash="w2"), SAMPLES),
        Cell(replace(ARM, method="other"), SAMPLES),
        Cell(replace(ARM, decode=Decoding("net", {"budget": 64}, "reference")), SAMPLES),
    ],
)
def test_methods_differ_but_share_their_pair(other: Cell) -> None:
    assert other.id != CELL.id and other.arm.id != ARM.id and other.pair == CELL.pair


@pytest.mark.parametrize(
    "other",
    [
        *(
            Cell(replace(ARM, setting=replace(SETTING, **{k: v})), SAMPLES)
            for k, v in {
                "model_hash": "x",
                "length": 8192,
                "seed": 1,
                "dtype": "float16",
                "rope_dtype": "float32",
                "prefill_chunk": 8192,
            }.items()
        ),
        Cell(ARM, replace(SAMPLES, task="two")),
        Cell(ARM, replace(SAMPLES, generator="2")),
        Cell(ARM, replace(SAMPLES, data={"haystack": "x"})),
        Cell(ARM, replace(SAMPLES, chat_template=True)),
        Cell(ARM, replace(SAMPLES, files={"squad.json": "squad-1"})),
        Cell(ARM, replace(SAMPLES, question="after")),
        Cell(ARM, replace(SAMPLES, question="reread")),
        Cell(ARM, replace(SAMPLES, sizing="release")),
    ],
)
def test_other_samples_or_numerics_are_another_pair(other: Cell) -> None:
    assert other.id != CELL.id and other.pair != CELL.pair


DECODING = Cell(replace(ARM, decode=Decoding("net", {"budget": 64, "mesh": None}, "reference", "w2")), SAMPLES)


@pytest.mark.parametrize(
    "change", [{"method": "rod"}, {"knobs": {"budget": 128, "mesh": None}}, {"kernel": "triton"}, {"weights_hash": None}]
)
def test_decoding_is_part_of_an_arm_and_of_no_pair(change: dict[str, object]) -> None:
    assert DECODING.arm.decode is not None
    other = Cell(replace(DECODING.arm, decode=replace(DECODING.arm.decode, **change)), SAMPLES)  # type: ignore[arg-type]
    assert other.id != DECODING.id and other.arm.id != DECODING.arm.id and other.pair == DECODING.pair
    assert other.arm.prefill().id == DECODING.arm.prefill().id == ARM.id


@pytest.mark.parametrize("study", ["bundled", "bundled_cpu", "block_sizes"])
def test_committed_cells_keep_their_ids(study: str) -> None:
    """A cell made again from what its record says, with full attention at decode, is the same cell."""
    cells = Store(RESULTS / study).cells.read()
    assert cells
    for record in cells:
        known = record["identity"]
        setting, arm, samples = ({f.name: known[f.name] for f in fields(part) if f.name in known} for part in PARTS)
        cell = Cell(ArmIdentity(Setting(**setting), **arm), Samples(**samples))
        assert (cell.id, cell.arm.id, cell.pair) == (record["cell"], record["arm"], record["pair"])
