"""``job=distill`` from the command line: gates that seer then runs with, their curve and their recall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

Command = Callable[..., int]
JOB = ("job=distill", "job.steps=3", "job.lengths=[256,384]", "job.tokens=512", "job.recall_sequences=1", "block_size=32")


def test_gates_are_trained_and_used(command: Command, toy: list[str], tmp_path: Path) -> None:
    text = tmp_path / "books"
    text.mkdir()
    (text / "a.txt").write_text("The grass is green and the sky is blue today. " * 3000)
    gates = tmp_path / "made"
    assert command(*toy, *JOB, f"job.out={gates}", f"data.text_dir={text}") == 0
    assert (gates / "gates-32.safetensors").is_file()
    study = tmp_path / "results" / "toy"
    assert len(pd.read_csv(study / "gate_steps_32.csv")) == 3
    recall = pd.read_csv(study / "gate_recall_32.csv")
    assert set(recall["layer"]) == {0, 1} and recall["recall"].between(0, 1).all()
    assert (study / "gates_32.png").stat().st_size > 10_000
    assert command(*toy, "method=seer", "block_size=32", f"model.gates={gates}") == 0
    rows = pd.read_csv(study / "leaderboard.csv")
    assert set(rows[rows["method"] == "seer"]["status"]) == {"ok"}


def test_without_text_generated_samples_are_used(command: Command, toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, *JOB, "job.lengths=[2048]", "job.tokens=2048", f"job.out={tmp_path / 'made'}") == 0
    assert (tmp_path / "made" / "gates-32.safetensors").is_file()


def test_lengths_beyond_the_context(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, *JOB, "job.lengths=[4096]") == 2
    assert "context of 2048 tokens" in capsys.readouterr().err
