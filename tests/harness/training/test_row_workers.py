"""Rows drawn by worker processes, and passes replayed as CUDA graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, cycle, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.utils import import_utils

from harness.core import devices
from harness.core.errors import UserError
from harness.models import rope
from harness.models.loading import wrap_model
from harness.models.rope import TABLE_STEP, ModelRope, rope_tables
from harness.training.gates.capture import Capture
from harness.training.gates.distill import distill
from harness.training.gates.recipe import Recipe
from harness.training.gates.row_workers import WORKER_SEEDS, batches, drawn_by_workers
from harness.training.gates.rows import Rows
from harness.training.gates.step_graph import PassGraphs
from harness.training.gates.training import Plan
from tests.harness.training.distilling import train
from tests.harness.training.test_distill import VOCAB, sharp_llama, topics


def numbers(seed: int) -> Rows:
    """Return a source of rows that tell which seed drew them."""
    rng = random.Random(seed)
    return lambda length: torch.tensor([rng.randrange(1 << 30) for _ in range(length)])


def test_workers_take_turns_each_with_a_seed_of_its_own() -> None:
    drawn = list(islice(drawn_by_workers(numbers, [4, 6, 8], 12, workers=2, seed=5), 6))
    assert [tuple(batch.shape) for batch in drawn] == [(3, 4), (2, 6), (1, 8)] * 2
    first, second = batches(numbers(5), [4, 8, 6], 12), batches(numbers(5 + WORKER_SEEDS), [6, 4, 8], 12)
    expected = [next(source) for _ in range(3) for source in (first, second)]
    assert all(torch.equal(batch, own) for batch, own in zip(drawn, expected, strict=True))


def test_graphs_are_refused_where_they_cannot_be() -> None:
    def one_pass(tokens: Tensor) -> Tensor:
        return tokens

    with pytest.raises(UserError, match=r"job.cuda_graph=true needs a CUDA device, not cpu"):
        PassGraphs(one_pass, lambda: 1.0, wrap_model(sharp_llama(), None, name="toy"))


def test_a_pass_that_is_captured_shows_the_same_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Tensor] = []
    with Capture(sharp_llama().eval(), lambda layer, q, k, *_: shown.extend((q, k))) as capture:
        tokens = torch.randint(VOCAB, (2, 100), generator=torch.Generator().manual_seed(0))
        capture.run(tokens)
        monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)  # as transformers sees it
        monkeypatch.setattr(devices, "is_capturing", lambda: True)
        capture.run(tokens)
    assert len(shown) == 8
    assert all(torch.equal(one, other) for one, other in zip(shown[:4], shown[4:], strict=True))


@pytest.mark.gpu
def test_replayed_passes_train_the_same_gates(tmp_path: Path) -> None:
    loaded = wrap_model(sharp_llama(), None, name="toy", device="cuda")
    options = {"steps": 8, "block_size": 16, "warmup": 2}
    eager = train(loaded, topics(), out=tmp_path / "eager", **options)
    graph = train(loaded, topics(), out=tmp_path / "graph", cuda_graph=True, **options)
    assert [step.loss for step in graph.steps] == pytest.approx([step.loss for step in eager.steps], rel=1e-4)
    for ours, theirs in zip(graph.gates, eager.gates, strict=True):
        torch.testing.assert_close(ours.state_dict()["k"], theirs.state_dict()["k"], rtol=1e-3, atol=1e-4)


def test_the_tables_of_a_model_can_be_held() -> None:
    """A longer text replaces them, while what was captured goes on reading them."""
    model = sharp_llama()
    turned = ModelRope(model, 0)
    assert rope_tables(model) == []
    cos, sin = turned.table(100, torch.device("cpu"))
    tables = rope_tables(model)
    assert [table.data_ptr() for table in tables] == [cos.data_ptr(), sin.data_ptr()]
    longer = turned.table(TABLE_STEP + 1, torch.device("cpu"))
    assert [table.data_ptr() for table in rope_tables(model)] == [wave.data_ptr() for wave in longer]
    assert torch.equal(tables[0][:100], cos)


@pytest.mark.gpu
def test_replayed_passes_of_several_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length and each set of trainings has graphs of its own, which share their memory. The longest text comes when others
    are captured, and has longer tables of RoPE made."""
    monkeypatch.setattr(rope, "TABLE_STEP", 64)
    loaded = wrap_model(sharp_llama(), None, name="toy", device="cuda")
    recipe = Recipe(steps=20, block_size=16, warmup=2)
    plans = [
        Plan(recipe, file="gates-{block_size}-whole.safetensors"),
        Plan(replace(recipe, steps=5, seed=1), file="gates-{block_size}-first.safetensors"),
        Plan(replace(recipe, steps=6, lr=3e-3, pool="mass"), first_step=9, file="gates-{block_size}-last.safetensors"),
    ]

    def texts() -> Iterator[Tensor]:
        for row, length in zip(topics(), chain((350,) * 4, cycle((600, 350))), strict=False):
            yield row[:, :length]

    eager, graph = (
        {
            distilled.path.name: distilled
            for distilled in distill(loaded, texts(), plans, out=tmp_path / str(replayed), cuda_graph=replayed)
        }
        for replayed in (False, True)
    )
    for name, expected in eager.items():
        assert [step.loss for step in graph[name].steps] == pytest.approx([step.loss for step in expected.steps], rel=1e-4)
        for ours, theirs in zip(graph[name].gates, expected.gates, strict=True):
            torch.testing.assert_close(ours.state_dict()["k"], theirs.state_dict()["k"], rtol=1e-3, atol=1e-4)
