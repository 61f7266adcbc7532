"""A knob's value that was found before is taken with its sparsity: nothing is searched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ARGUMENTS = (
    *("model=bundled", "device=cpu", "method=seer", "length=512", "sparsity=0.7", "block_size=32", "task=niah_single_1"),
    *("samples=1", "checks=false", "report=false", "latency=false", "study=given"),
)


def test_a_value_is_taken_with_its_sparsity(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row is that of a search which found it: at its sparsity, with as many full rows as that pays."""
    assert command(*ARGUMENTS, "knob_value=0.0123") == 0
    folder = tmp_path / "results" / "given" / "records"
    assert not (folder / "calibrations.jsonl").exists()
    identity = json.loads((folder / "cells.jsonl").read_text().splitlines()[-1])["identity"]
    assert (identity["sparsity"], identity["knobs"]["threshold"]) == (0.7, 0.0123)
    capsys.readouterr()
    for arguments, message in (
        (["knob_value=2"], "knob_value=2: threshold of seer lies between 1e-09 and 1"),
        (["knob_value=0.5", "method.selection=topk"], "knob_value=0.5: seer needs none at sparsity=0.7: leave it out"),
        (["knob_value=much"], "knob_value=much: must be null or a finite number"),
    ):
        assert command(*ARGUMENTS, *arguments) == 2
        assert message in capsys.readouterr().err
