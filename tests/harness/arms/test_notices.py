"""What is said of an arm before it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., int]
SHORT = ("samples=1", "block_size=16", "checks=false", "report=false")


@pytest.mark.parametrize("name", ["minference", "kascade"])
def test_a_method_that_goes_without_its_search_says_so(
    name: str, command: Command, toy: list[str], toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*toy, *SHORT, f"method={name}", "calibration_prompts=1"]
    assert command(*run) == 0
    said = capsys.readouterr().out
    assert said.count("is not there, so toy's heads count as not searched") == 1 and str(toy_folder) in said
    assert f"job=search_heads method={name} model=hf model.path={toy_folder}`" in said
    assert command(*run, "job=search_heads", f"job.out={tmp_path / 'found'}", "job.prompts=1") == 0
    capsys.readouterr()
    assert command(*run, f"model.gates={tmp_path / 'found'}", "study=found") == 0
    assert "not there" not in capsys.readouterr().out


def test_a_fallback_that_was_asked_for_is_no_news(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, *SHORT, "method=minference", "method.patterns=fallback", "calibration_prompts=1") == 0
    assert "not there" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparsity": 0.95, "block_size": 64}, "density 0.05 is out of reach at 1024 tokens in blocks of 64: every row"),
        ({"sparsity": 0.95, "block_size": 16}, None),
        ({"sparsity": 0.5, "block_size": 64}, None),
    ],
)
def test_a_sparsity_out_of_reach_is_told(
    change: dict[str, float], said: str | None, command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, *SHORT, *(f"{name}={value}" for name, value in change.items())) == 0
    out = capsys.readouterr().out
    assert "out of reach" not in out if said is None else out.count(said) == 1


def test_a_missing_file_says_where_to_look(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, "method=seer") == 2
    assert (
        "gates-64.safetensors is missing; name the folder that has them (model.gates=FOLDER), or train"
        in capsys.readouterr().err
    )
    assert command(*toy, "method=duo_attention") == 2
    assert "heads.json is missing; name the folder that has it (model.gates=FOLDER), or search" in capsys.readouterr().err
