"""``job=finetune`` from the command line: a folder that loads, its gates, its steps; bad input in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.models.loading import ModelConfig, load_model

Command = Callable[..., int]
JOB = (
    "job=finetune",
    "method=seer",
    "method.selection=topk",
    "method.last=0",
    "sparsity=0.5",
    "block_size=16",
    "job.new_gates=true",
    "job.trained_length=256",
    "job.lengths=[128,192]",
    "job.tokens=384",
    "job.steps=3",
    "job.warmup=1",
    "job.lr=1e-3",
    "job.rows=documents",
    "job.held_out=1",
    "job.checkpoint_every=1",
)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    (folder / "a.txt").write_text(" ".join(f"The magic number for apple is: {n * 7919}." for n in range(2000)))
    return folder


class Killed(BaseException):
    pass


def dies(*_: object, **__: object) -> None:
    raise Killed


def test_a_model_is_trained_and_used(
    command: Command,
    toy: list[str],
    tmp_path: Path,
    books: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "made"
    arguments = [*toy, *JOB, f"data.text_dir={books}", f"job.out={out}"]
    with monkeypatch.context() as patch, pytest.raises(Killed):  # everything but the end of it
        patch.setattr("harness.training.finetune.command.write_table", dies)
        command(*arguments)
    assert (out / "finetuning.checkpoint").is_file()
    before = load_file(str(out / "model.safetensors"))
    capsys.readouterr()
    assert command(*arguments) == 0
    said = capsys.readouterr().out
    assert "goes on after step 3 of 3" in said and f"wrote {out}" in said and "held-out rows: " in said
    after = load_file(str(out / "model.safetensors"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in out.iterdir() if "token" not in path.name) == [
        "config.json",
        "finetuning.json",
        "gates-16.safetensors",
        "generation_config.json",
        "model.safetensors",
    ]
    config = json.loads((out / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn" and config["rope_parameters"]["factor"] == 4.0
    assert config["max_position_embeddings"] == 1024
    assert load_model(ModelConfig("made", str(out), device="cpu")).max_length == 1024
    records = tmp_path / "results" / "toy" / "records"
    steps = [json.loads(line) for line in (records / "finetune_steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2] and len({step["training"] for step in steps}) == 1
    assert all(step["gate_loss"] > 0 and 0.4 < step["density"] < 0.7 for step in steps)
    assert steps[0]["about"]["method"] == "seer" and steps[0]["about"]["factor"] == 4.0 and steps[1]["about"] is None
    assert command(*arguments) == 0
    assert "is there, trained with these settings" in capsys.readouterr().out
    assert command(*arguments, "job.lr=1e-4") == 2
    assert "exists: add job.overwrite=true" in capsys.readouterr().err
    used = ["method=seer", "method.selection=topk", "block_size=16", f"model.path={out}", "model.name=made"]
    assert command(*toy, *used, "job=kept_mass", "samples=1", "study=used") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["job.out=null"], "job.out=null: name the folder"),
        (["job.gates_only=true", "method=block_topk"], "job.gates_only=true: method block_topk has no gates"),
        (["job.shard=true"], "job.shard=true: one process has nothing to share"),
        (["job.factor=16"], "factor=16.0: must be from 1"),
        (["job.factor=x"], "job.factor=x: must be a finite number"),
        (["job.trained_length=0"], "job.trained_length=0: must be null or a whole number"),
        (["job.lengths=[2048]"], "job.lengths=[2048] at job.factor=4: toy has a context of 1024 tokens"),
        (["method.selection=threshold"], "has no formula from sparsity=0.5"),
        (["job.new_gates=false"], "no gates to begin with"),
        (["job.new_gates=1"], "job.new_gates=1: must be true or false"),
        (["decode=quest"], "decode=quest: a training"),
        (["dtype=float16"], "dtype=float16: its gradients"),
        (["job.anneal_steps=2", "sparsity=null", "method.threshold=0.1", "method.selection=threshold"], "no sparsity to go to"),
        (["job.pool=most"], "pool=most: must be one of"),
        (["method=seerr"], "seerr"),
    ],
)
def test_bad_input_is_a_line(
    command: Command,
    toy: list[str],
    tmp_path: Path,
    books: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    message: str,
) -> None:
    assert command(*toy, *JOB, f"data.text_dir={books}", f"job.out={tmp_path / 'made'}", *given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made" / "model.safetensors").exists()


def test_the_model_is_not_written_over(
    command: Command,
    toy: list[str],
    brief_folder: Path,
    books: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (*toy, *JOB, f"data.text_dir={books}")
    assert command(*arguments, f"job.out={brief_folder}", "job.overwrite=true") == 2
    assert "is the folder of the model itself" in capsys.readouterr().err
