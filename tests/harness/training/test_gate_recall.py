"""Recall of gates: of known pairs, of a perfect gate, what chance reaches, and the sample of it that training shows."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_blocks
from attention_kernels.selection import row_budget, select_topk
from torch import Tensor

import methods
from harness.core.errors import UserError
from harness.models.loading import LoadedModel, wrap_model
from harness.training.gates import recall
from harness.training.gates.recall import chance, gate_recall, recall_rows, sampled_recall
from harness.training.gates.target_map import target_map
from harness.training.gates.weights import new_gates
from methods.gates.attn_gate import AttnGate
from methods.parts.base import Grid, LayerInputs
from tests.harness.training.test_distill import BLOCK, LENGTH, rows_of, sharp_llama


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


def test_recall_of_a_known_pair() -> None:
    grid = {"q_block": 16, "k_block": 16, "q_len": 64, "k_len": 64}
    truth = torch.eye(4).bool()
    guess = truth.clone()
    truth[3, 0] = truth[2, 0] = guess[3, 1] = guess[2, 0] = True
    index = [BlockIndex.from_mask(mask[None, None], **grid) for mask in (truth, guess)]
    torch.testing.assert_close(recall_rows(*index)[0, 0], torch.tensor([1.0, 1.0, 1.0, 0.5]))


def test_chance_is_what_random_blocks_reach() -> None:
    causal = causal_blocks(640, 640, 16, 16)
    budget = row_budget(0.2, 640, 640, 16, 16)
    reached = []
    for seed in range(40):
        x = LayerInputs(q=torch.zeros(1, 8, 640, 16), k=torch.zeros(1, 8, 640, 16), layer=0, scale=1.0)
        index = [methods.build("random", sparsity=0.8, block_size=16, seed=s).select(x) for s in (seed, seed + 100)]
        assert isinstance(index[0], BlockIndex)
        assert isinstance(index[1], BlockIndex)
        reached.append(recall_rows(index[0], index[1]).mean())
    assert abs(float(torch.stack(reached).mean()) - chance(budget, causal)) < 0.005


class Perfect(AttnGate):
    """A gate that knows the answer."""

    def forward(self, q: Tensor, k: Tensor, rope: object) -> Tensor:
        return target_map(q, k, self, scale=q.shape[-1] ** -0.5, pool="mass")


def test_recall_of_a_perfect_gate(loaded: LoadedModel) -> None:
    gates = [Perfect(4, 2, 16, block_size=BLOCK) for _ in range(2)]
    rows = gate_recall(loaded, gates, rows_of(2, seed=4), densities=(0.5, 0.1), pool="mass")
    assert [(row["layer"], row["density"]) for row in rows] == [(0, 0.5), (0, 0.1), (1, 0.5), (1, 0.1)]
    for row in rows:
        assert row["recall"] > 0.999  # blocks that tie may be chosen either way
        assert row["kept_ratio"] == pytest.approx(1.0)
        assert (row["tokens"], row["sequences"]) == (2 * LENGTH, 2)
        assert len(row["heads"]) == 4 and min(row["heads"]) > 0.999 and row["heads_kept"] == pytest.approx([1.0] * 4)


def test_a_head_that_knows_nothing_stands_out(loaded: LoadedModel) -> None:
    class Blind(Perfect):
        def forward(self, q: Tensor, k: Tensor, rope: object) -> Tensor:
            logits = super().forward(q, k, rope)
            logits[:, 2] = torch.rand(logits[:, 2].shape, generator=torch.Generator().manual_seed(0)) * (logits[:, 2] > 0)
            return logits

    (row, _) = gate_recall(
        loaded, [Blind(4, 2, 16, block_size=BLOCK) for _ in range(2)], rows_of(2, seed=4), densities=(0.1,), pool="mass"
    )
    assert min(row["heads"]) == row["heads"][2] < 0.8
    assert row["heads_kept"][2] < 0.98
    assert row["recall"] == pytest.approx(sum(row["heads"]) / 4)


def test_many_heads_are_measured_as_one_by_one(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = new_gates(loaded, block_size=BLOCK)
    at_once = gate_recall(loaded, gates, rows_of(1, seed=4), densities=(0.3, 0.1))
    monkeypatch.setattr(recall, "PART", 3 * 38 * 38)  # three heads, then one
    parts = gate_recall(loaded, gates, rows_of(1, seed=4), densities=(0.3, 0.1))
    for part, row in zip(parts, at_once, strict=True):
        for name, value in row.items():
            assert part[name] == pytest.approx(value, rel=1e-6)  # type: ignore[literal-required]


def test_recall_needs_sequences(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="no sequences"):
        gate_recall(loaded, new_gates(loaded, block_size=BLOCK), [])


GRIDS = [
    Grid(q_block=16, k_block=16, q_len=640, k_len=640),
    Grid(q_block=16, k_block=16, q_len=150, k_len=235),
    Grid(q_block=1, k_block=16, q_len=70, k_len=140),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("most", [256, 7])
def test_the_recall_shown_while_training_is_that_of_evenly_spaced_rows(
    grid: Grid, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "SAMPLED_ROWS", most)
    generator = torch.Generator().manual_seed(0)
    rows, columns = -(-grid["q_len"] // grid["q_block"]), -(-grid["k_len"] // grid["k_block"])
    truth, guess = (torch.randn(2, 3, rows, columns, generator=generator) for _ in range(2))
    budget = row_budget(0.3, **grid)
    every = recall_rows(select_topk(truth, budget, **grid), select_topk(guess, budget, **grid))
    count = min(most, rows)
    picked = every[:, :, [(i + 1) * rows // count - 1 for i in range(count)]]
    before = truth.clone(), guess.clone()
    torch.testing.assert_close(sampled_recall(truth, guess, 0.3, grid), picked.mean())
    assert 0.2 < float(picked.mean()) < 0.9
    assert torch.equal(truth, before[0]) and torch.equal(guess, before[1])  # the loss needs them yet
