"""Gates for decoding: what they learn from, that they learn it, and that the command trains and runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from harness.models.loading import LoadedModel, wrap_model
from harness.training.gates.recall import gate_recall, mean_recall
from harness.training.gates.target_map import target_map
from harness.training.gates.weights import new_gates
from methods.decode import build
from methods.gates.decode_gate import DecodeGate
from tests.harness.training.distilling import train
from tests.harness.training.test_distill import BLOCK, rows_of, sharp_llama, topics

Command = Callable[..., int]
FILE = "decode-gates-{block_size}.safetensors"


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


def naive_target(q: Tensor, k: Tensor, scale: float, rows: list[int]) -> Tensor:
    """q [4,N,D], k [2,N,D] -> [2,rows,Nk] float64: each row by itself, as the paper says it."""
    blocks = -(-k.shape[1] // BLOCK)
    out = torch.zeros(2, len(rows), blocks, dtype=torch.float64)
    for i, row in enumerate(rows):
        for head in range(4):
            probs = (q[head, row].double() @ k[head // 2, : row + 1].double().T * scale).softmax(-1)
            for j in range(row // BLOCK):  # its own block is left out
                best = probs[j * BLOCK : (j + 1) * BLOCK].max()
                out[head // 2, i, j] = torch.maximum(out[head // 2, i, j], best)
    return out / out.sum(-1, keepdim=True)


def test_target_by_hand() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 75, 8), torch.randn(1, 2, 75, 8)
    gate = DecodeGate(4, 2, 8, block_size=BLOCK)
    target = target_map(gate.learns_from(q), k, gate, scale=0.5, pool="max")
    torch.testing.assert_close(target[0].double(), naive_target(q[0], k[0], 0.5, list(range(37, 75))), atol=1e-6, rtol=1e-4)


def test_gates_learn(loaded: LoadedModel, tmp_path: Path) -> None:
    done = train(
        loaded,
        topics(),
        out=tmp_path,
        steps=40,
        warmup=3,
        lr=1e-2,
        block_size=BLOCK,
        held_out=rows_of(2, seed=9),
        kind=DecodeGate,
        file=FILE,
    )
    assert done.path == tmp_path / "decode-gates-16.safetensors" and done.path.is_file()
    assert done.steps[-1].loss < 0.75 * done.steps[0].loss
    before = mean_recall(gate_recall(loaded, new_gates(loaded, DecodeGate, block_size=BLOCK), rows_of(2, seed=9)))
    after = mean_recall(done.recall)
    assert after[0.1]["recall"] > after[0.1]["chance"] + 0.03
    assert after[0.1]["kept_ratio"] > before[0.1]["kept_ratio"] + 0.1
    from safetensors.torch import load_file

    seer = build("seer_r", block_size=BLOCK, budget=64)
    seer.load(load_file(str(done.path)), layers=2, heads=4, kv_heads=2, head_dim=16)


def test_a_text_too_short_for_the_density_is_measured(loaded: LoadedModel) -> None:
    """Each row has room for its own block alone, which is none of what the gate predicts."""
    (row, _) = gate_recall(
        loaded, new_gates(loaded, DecodeGate, block_size=BLOCK), [next(topics())[0, : 6 * BLOCK]], densities=(0.01,)
    )
    assert row["oracle_mass"] == row["kept_mass"] == 0 and row["kept_ratio"] == 1


@pytest.mark.usefixtures("blank_pictures")
def test_the_command_trains_and_runs_them(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*toy, "method=dense", "decode=seer_r", "decode.block_size=32", "task=fwe"]
    assert command(*arguments) == 2
    assert "job=distill decode=seer_r model=hf" in capsys.readouterr().err
    job = ["job=distill", "job.steps=2", "job.lengths=[512]", "job.tokens=512", "job.recall_sequences=1", "job.rows=samples"]
    assert command(*arguments, *job, f"job.out={tmp_path / 'made'}") == 0
    assert (tmp_path / "made" / "decode-gates-32.safetensors").is_file()
    study = tmp_path / "results" / "toy"
    assert (study / "gate_steps_decode-gates-32.csv").is_file()
    assert command(*arguments, f"model.gates={tmp_path / 'made'}", "decode.budget=128") == 0
    rows = pd.read_csv(study / "leaderboard.csv")
    sparse = rows[rows["decode"].str.startswith("seer_r")]
    assert len(sparse) == 2 and set(sparse["status"]) == {"ok"} and bool(sparse["decode_density"].between(0.05, 0.5).all())


def test_a_decode_method_without_gates_is_told_which_have_them(
    command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, "job=distill", "decode=quest") == 2
    assert "decode method quest has no gates to train; choose one of: seer_r" in capsys.readouterr().err
