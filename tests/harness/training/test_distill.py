"""Distilling gates from a tiny random Llama: that they learn, what is saved, and that nothing else changes."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import methods
from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel, wrap_model
from harness.models.rope import ModelRope
from harness.training.gates.capture import Capture
from harness.training.gates.checkpoint import Step
from harness.training.gates.recall import gate_recall, mean_recall
from harness.training.gates.recipe import Recipe
from harness.training.gates.step_progress import step_progress
from harness.training.gates.training import Distilled
from harness.training.gates.weights import new_gates
from methods.gates.attn_gate import AttnGate
from methods.parts.base import LayerInputs
from tests.harness.training.distilling import train

BLOCK, LENGTH, VOCAB = 16, 600, 64


def sharp_llama(**config: object) -> LlamaForCausalLM:
    """A random Llama whose attention is far from uniform, so that there is something to learn."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=1024,
            **config,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(50)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(12)
            layer.self_attn.k_proj.weight.mul_(12)
    return model


def topics(seed: int = 0) -> Iterator[Tensor]:
    """Token rows in which stretches of text use few tokens each, as prose does: blocks differ."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        stretches = torch.randint(VOCAB, (1, LENGTH // 25 + 1, 3), generator=generator)
        pick = torch.randint(3, (1, LENGTH), generator=generator)
        yield stretches.repeat_interleave(25, dim=1)[:, :LENGTH].gather(2, pick[..., None])[..., 0]


def rows_of(n: int, seed: int) -> list[Tensor]:
    stream = topics(seed)
    return [next(stream) for _ in range(n)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


@pytest.fixture(scope="module")
def distilled(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    out = tmp_path_factory.mktemp("gates")
    return train(loaded, topics(), out=out, steps=22, warmup=3, lr=1e-2, block_size=BLOCK, held_out=rows_of(2, seed=9))


@pytest.fixture(scope="module")
def usual(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    """Gates of three steps by the usual settings."""
    return train(loaded, topics(), out=tmp_path_factory.mktemp("usual"), steps=3, warmup=1, block_size=BLOCK)


def test_loss_falls_all_along_on_one_text(loaded: LoadedModel, tmp_path: Path) -> None:
    text = itertools.repeat(rows_of(1, seed=0)[0])
    result = train(loaded, text, out=tmp_path, steps=20, warmup=2, lr=8e-3, block_size=BLOCK)
    losses = [step.loss for step in result.steps]
    fives = [sum(losses[i : i + 5]) for i in range(0, 20, 5)]
    assert fives == sorted(fives, reverse=True)
    assert len(set(fives)) == 4
    assert losses[-1] < 0.85 * losses[0]


def test_recall_rises_on_text_not_seen(loaded: LoadedModel, distilled: Distilled) -> None:
    before = mean_recall(gate_recall(loaded, new_gates(loaded, block_size=BLOCK), rows_of(2, seed=9)))
    after = mean_recall(distilled.recall)
    for density in (0.3, 0.2):
        assert abs(before[density]["recall"] - before[density]["chance"]) < 0.03
        assert after[density]["recall"] > before[density]["recall"] + 0.05
        assert after[density]["kept_ratio"] > before[density]["kept_ratio"] + 0.1


def test_only_the_gates_change(tmp_path: Path) -> None:
    model = sharp_llama()
    loaded = wrap_model(model, None, name="tiny")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    result = train(loaded, topics(), out=tmp_path, steps=2, block_size=BLOCK)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    untrained = new_gates(loaded, block_size=BLOCK)
    assert all(not torch.equal(a.k, b.k) for a, b in zip(result.gates, untrained, strict=True))


@pytest.mark.parametrize(
    "given",
    [{"pool": "mean"}, {"row_weight": "length"}, {"skip_rows": 0.25}, {"clip": 1e-3}, {"min_lr": 1e-3}, {"weight_decay": 0.5}],
)
def test_every_setting_makes_other_gates(
    loaded: LoadedModel, usual: Distilled, tmp_path: Path, given: dict[str, object]
) -> None:
    other = train(loaded, topics(), out=tmp_path / "other", steps=3, warmup=1, block_size=BLOCK, **given)
    # clipping to one norm alone changes little: AdamW takes no heed of a gradient's scale but through its history
    assert not torch.equal(usual.gates[0].state_dict()["k"], other.gates[0].state_dict()["k"])


def test_the_file_says_how_it_was_made(loaded: LoadedModel, distilled: Distilled) -> None:
    assert distilled.path.name == "gates-16.safetensors"
    assert distilled.parameters == 2 * 4 * 48 * 16
    with safe_open(str(distilled.path), framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["block_size"] == 16
    assert metadata["steps"] == 22
    assert metadata["tokens"] == 22 * LENGTH
    assert metadata["seed"] == 0
    assert (metadata["model"], metadata["model_hash"]) == ("tiny", "abc")
    assert metadata["recall"]["0.2"]["recall"] == mean_recall(distilled.recall)[0.2]["recall"]


def test_the_method_runs_with_the_file(loaded: LoadedModel, distilled: Distilled) -> None:
    method = methods.build("seer", sparsity=0.7, selection="topk", last=0, block_size=BLOCK)
    shape = {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}
    method.load(load_file(str(distilled.path)), **shape)
    densities = []

    def visit(layer: int, q: Tensor, k: Tensor, scale: float, lse: Tensor | None) -> None:
        index = method.select(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=ModelRope(loaded.model, layer)))
        assert index is not None
        densities.append(index.density())

    with Capture(loaded.model, visit) as capture:
        capture.run(rows_of(1, seed=5)[0])
    assert (torch.stack(densities) - 0.3).abs().max() < 0.01


def test_sparsity_0_equals_dense_in_the_bridge(loaded: LoadedModel, distilled: Distilled) -> None:
    tokens = rows_of(1, seed=5)[0]
    shape = {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}
    with torch.no_grad():
        dense = loaded.model(tokens).logits
        for sparsity, same in ((0.0, True), (0.8, False)):
            method = methods.build("seer", sparsity=sparsity, selection="topk", block_size=BLOCK)
            method.load(load_file(str(distilled.path)), **shape)
            with Bridge(loaded, method) as bridge:
                logits = loaded.model(tokens).logits
            assert torch.allclose(logits, dense, atol=1e-4) is same
            assert bridge.prefill_densities() == pytest.approx([1 - sparsity], abs=0.01)


def test_the_same_seed_gives_the_same_gates(loaded: LoadedModel, tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = train(loaded, topics(), out=tmp_path / name, steps=2, block_size=BLOCK, seed=seed)
        files.append(load_file(str(result.path)))
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert not torch.equal(files[0]["layers.0.gate.k"], files[2]["layers.0.gate.k"])


def test_the_file_has_the_dtype_asked_for(loaded: LoadedModel, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        done = train(loaded, topics(), out=tmp_path / dtype, steps=1, block_size=BLOCK, dtype=dtype)
        state = load_file(str(done.path))
        assert {str(weight.dtype) for weight in state.values()} == {f"torch.{dtype}"}
        assert torch.equal(state["layers.0.gate.k"].float(), done.gates[0].state_dict()["k"])  # recall is of the file


def test_steps_are_reported(loaded: LoadedModel, tmp_path: Path) -> None:
    seen: list[Step] = []
    shown = Console(file=io.StringIO(), width=120)
    with step_progress({"64": (3, 0)}, shown) as show:

        def both(step: Step) -> None:
            show("64", step)
            seen.append(step)

        train(loaded, topics(), out=tmp_path, steps=3, block_size=BLOCK, warmup=2, q_linear=True, on_step=both)
    assert [step.step for step in seen] == [0, 1, 2]
    assert [step.tokens for step in seen] == [LENGTH, 2 * LENGTH, 3 * LENGTH]
    assert seen[0].lr == pytest.approx(5e-4)
    assert seen[1].lr == pytest.approx(1e-3)
    assert 0 < seen[-1].recall < 1
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [f"step {s.step + 1} of 3: KL {s.loss:.4f}  recall {s.recall:.1%}" for s in seen]


def test_a_bar_has_no_numbers_before_the_first_step() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with step_progress({"64": (3, 1)}, terminal):
        pass
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "no step is done yet" in text and "1/3" in text and "nan" not in text


def test_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [Recipe(steps=100, warmup=20).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19] == rates[20] == 1.0
    assert rates == [*sorted(rates[:20]), *sorted(rates[20:], reverse=True)]
    assert rates[-1] < 0.001


def test_no_more_text_is_drawn_than_is_trained_on(loaded: LoadedModel, tmp_path: Path) -> None:
    done = train(loaded, iter(rows_of(3, seed=0)), out=tmp_path, steps=3, block_size=BLOCK)
    assert len(done.steps) == 3


class Broken(AttnGate):
    """A finite loss with a gradient that is not."""

    def forward(self, q: Tensor, k: Tensor, rope: Any) -> Tensor:
        return super().forward(q, k, rope) + (0 * self.k.sum()).sqrt()


def test_a_gradient_that_is_not_finite_stops_the_training(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "gates-16.safetensors").write_text("good ones")
    message = r"step 1 of 2: the loss of the gates is \d.*, the norm of its gradient nan; probably .*: lower lr"
    with pytest.raises(UserError, match=message):
        train(loaded, topics(), out=tmp_path, steps=2, block_size=BLOCK, kind=Broken)
    assert (tmp_path / "gates-16.safetensors").read_text() == "good ones"


def test_a_model_that_is_not_finite_is_blamed(tmp_path: Path) -> None:
    model = sharp_llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    broken = wrap_model(model, None, name="tiny", revision="abc")
    with pytest.raises(UserError, match=r"step 1 of 2: .* is nan.*the queries or keys of tiny are not finite in float32"):
        train(broken, topics(), out=tmp_path, steps=2, block_size=BLOCK)
    assert not list(tmp_path.iterdir())


def test_others_may_read_the_file(loaded: LoadedModel, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        done = train(loaded, topics(), out=tmp_path, steps=1, block_size=BLOCK)
    finally:
        os.umask(before)
    assert done.path.stat().st_mode & 0o777 == 0o644


def test_text_that_ends_early(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended after 2 of 5 steps"):
        train(loaded, iter(rows_of(2, seed=0)), out=tmp_path, steps=5, block_size=BLOCK)
    assert not list(tmp_path.iterdir())
    assert loaded.model.config._attn_implementation != "gate_capture"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"lr": 0.0}, "lr=0.0: must be above 0"),
        ({"lr": 1e38}, r"lr=1e\+38: must be above 0 and at most 1000"),
        ({"warmup": -1}, "warmup=-1"),
        ({"skip_rows": 1.0}, "skip_rows=1.0: must be at least 0 and below 1"),
        ({"pool": "min"}, "pool=min: must be one of max, mass, mean"),
        ({"row_weight": "late"}, "row_weight=late: must be one of equal, length"),
        ({"min_lr": 1.0}, "min_lr=1.0: must be at least 0 and at most lr=0.001"),
        ({"clip": 0.0}, "clip=0.0: must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"weight_decay": 1e300}, r"weight_decay=1e\+300: must be at least 0 and at most 1000"),
        ({"micro_rows": 0}, "micro_rows=0: must be at least 1"),
        ({"dtype": "int8"}, "dtype=int8 of the gates' file: must be one of auto, float32, bfloat16"),
    ],
)
def test_settings_are_checked(loaded: LoadedModel, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(loaded, topics(), out=tmp_path, **{"steps": 1, **settings})  # type: ignore[arg-type]
