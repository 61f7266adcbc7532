"""Distilling gates from a tiny random Llama: the loss, recall, what is saved, and that nothing else changes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

import methods
from harness.bridge import Bridge
from harness.errors import UserError
from harness.models import LoadedModel, wrap_model
from harness.rope import ModelRope
from harness.training.checkpoint import Step
from harness.training.distill import Distilled, distill, new_gates, progress_bar
from harness.training.gate_report import chance, gate_recall, mean_recall, recall_rows
from harness.training.gate_truth import Capture, gate_loss, target_map
from harness.training.recipe import Recipe
from kernels.block_index import BlockIndex, causal_blocks
from kernels.selection import row_budget
from methods.base import LayerInputs
from methods.gate import AttnGate
from methods.rope import rope_undo

BLOCK, LENGTH, VOCAB = 16, 600, 64


def sharp_llama(**config: object) -> LlamaForCausalLM:
    """A random Llama whose attention is far from uniform, so that there is something to learn."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, **config,
        )
    )  # fmt: skip
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


def train(loaded: LoadedModel, tokens: Iterator[Tensor], *, out: Path, **given: Any) -> Distilled:
    """`distill`, with the recipe's settings among its own."""
    names = {field.name for field in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in given.items() if name in names})
    return distill(loaded, tokens, recipe, out=out, **{name: value for name, value in given.items() if name not in names})


def some(n: int, seed: int) -> list[Tensor]:
    stream = topics(seed)
    return [next(stream) for _ in range(n)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


@pytest.fixture(scope="module")
def distilled(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    out = tmp_path_factory.mktemp("gates")
    return train(
        loaded, topics(), out=out, steps=30, warmup=3, lr=1e-2, block_size=BLOCK, held_out=some(2, seed=9)
    )  # fmt: skip


# -- the model's RoPE ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rope_parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pre_rope_equals_the_projections(rope_parameters: dict[str, object], dtype: torch.dtype) -> None:
    model = sharp_llama(rope_parameters=rope_parameters).eval().to(dtype)
    projected: dict[str, Tensor] = {}
    attention = model.model.layers[1].self_attn
    for name in ("q_proj", "k_proj"):
        getattr(attention, name).register_forward_hook(
            lambda _m, _i, out, name=name: projected.update({name: out.unflatten(-1, (-1, 16)).transpose(1, 2)})
        )
    seen: dict[str, Tensor] = {}

    def visit(layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        if layer == 1:
            cos_sin = ModelRope(model, layer).cos_sin(torch.arange(q.shape[2]))
            seen.update(q_proj=rope_undo(q, *cos_sin), k_proj=rope_undo(k, *cos_sin))

    with Capture(model, visit) as capture:
        capture.run(torch.randint(VOCAB, (1, 200)))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for name in ("q_proj", "k_proj"):
        wanted = projected[name].float()
        assert (seen[name] - wanted).abs().max() < tolerance * wanted.abs().max()


def test_rope_of_gemma_differs_by_layer() -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=32, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    positions = torch.arange(40)
    for layer, kind in enumerate(config.layer_types):
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None], kind)
        own = ModelRope(model, layer).cos_sin(positions)
        assert torch.equal(own[0], cos[0])
        assert torch.equal(own[1], sin[0])
    seen: list[tuple[int, int]] = []
    with Capture(model, lambda layer, q, k, scale: seen.append((layer, q.shape[2]))) as capture:
        capture.run(torch.randint(VOCAB, (1, 30)))
        capture.run(torch.randint(VOCAB, (1, 40)))
    assert seen == [(0, 30), (1, 30), (1, 40)]  # past its window, a sliding layer has nothing to choose


def test_interleaved_rope_is_refused() -> None:
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(UserError, match="RoPE of GlmForCausalLM is not the rotate-half kind"):
        ModelRope(GlmForCausalLM(config), 0)


def test_capture_leaves_the_model_as_it_was(loaded: LoadedModel) -> None:
    tokens = some(1, seed=3)[0]
    before = loaded.model(tokens).logits
    implementation = loaded.model.config._attn_implementation
    hidden: list[Tensor] = []
    hook = loaded.model.model.norm.register_forward_hook(lambda _m, _i, out: hidden.append(out))
    with Capture(loaded.model, lambda *_: None) as capture:
        capture.run(tokens)
    hook.remove()
    assert loaded.model.config._attn_implementation == implementation
    torch.testing.assert_close(loaded.model(tokens).logits, before)
    torch.testing.assert_close(loaded.model.lm_head(hidden[0]), before, atol=1e-4, rtol=1e-4)


def test_capture_refuses_padding(loaded: LoadedModel) -> None:
    tokens = some(1, seed=3)[0]
    mask = torch.ones_like(tokens)
    mask[:, 0] = 0
    with Capture(loaded.model, lambda *_: None), pytest.raises(UserError, match="without padding"):
        loaded.model(tokens, attention_mask=mask)


# -- the loss --------------------------------------------------------------------------------------------------------


def naive_target(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The normalised max-pooled map by way of the whole attention matrix, one head at a time."""
    heads, length = q.shape[1], q.shape[2]
    blocks = -(-length // BLOCK)
    out = torch.zeros(1, heads, blocks, blocks)
    for head in range(heads):
        scores = q[0, head] @ k[0, head // (heads // k.shape[1])].T * scale
        probability = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf")).softmax(-1)
        for i in range(blocks):
            for j in range(i + 1):
                out[0, head, i, j] = probability[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK].max()
    return out / out.sum(-1, keepdim=True)


def test_target_and_loss_by_hand() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 70, 8), torch.randn(1, 2, 70, 8)
    target = target_map(q, k, AttnGate(4, 2, 16, block_size=BLOCK), scale=0.5, pool="max")
    torch.testing.assert_close(target, naive_target(q, k, 0.5), atol=1e-6, rtol=1e-4)
    future = torch.ones(5, 5).triu(1).bool()
    logits = torch.randn(1, 4, 5, 5).masked_fill(future, float("-inf")).requires_grad_()
    rows = [
        torch.nn.functional.kl_div(
            logits[0, h, i, : i + 1].log_softmax(-1), target[0, h, i, : i + 1], reduction="sum"
        )
        for h in range(4)
        for i in range(5)
    ]  # fmt: skip
    loss = gate_loss(target, logits)
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    skipped = torch.stack([row for n, row in enumerate(rows) if n % 5 >= 2]).mean()
    torch.testing.assert_close(gate_loss(target, logits, skip_rows=0.4), skipped)
    late = torch.stack([row * (n % 5 + 1) for n, row in enumerate(rows) if n % 5 >= 2]).sum() / (4 * (3 + 4 + 5))
    torch.testing.assert_close(gate_loss(target, logits, skip_rows=0.4, row_weight="length"), late)
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert gate_loss(target, target.log()).abs() < 1e-6


@pytest.mark.parametrize("pool", ["max", "mass", "mean"])
def test_every_target_is_a_distribution_of_its_own(pool: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 70, 8), torch.randn(1, 2, 70, 8)
    target = target_map(q, k, AttnGate(4, 2, 16, block_size=BLOCK), scale=0.5, pool=pool)
    torch.testing.assert_close(target.sum(-1), torch.ones(1, 4, 5))
    by_max = target_map(q, k, AttnGate(4, 2, 16, block_size=BLOCK), scale=0.5, pool="max")
    assert torch.equal(target, by_max) is (pool == "max")


# -- training --------------------------------------------------------------------------------------------------------


def test_loss_falls_all_along_on_one_text(loaded: LoadedModel, tmp_path: Path) -> None:
    text = itertools.repeat(some(1, seed=0)[0])
    result = train(loaded, text, out=tmp_path, steps=30, warmup=3, lr=5e-3, block_size=BLOCK)
    losses = [step.loss for step in result.steps]
    fives = [sum(losses[i : i + 5]) for i in range(0, 30, 5)]
    assert fives == sorted(fives, reverse=True)
    assert len(set(fives)) == 6
    assert losses[-1] < 0.85 * losses[0]


def test_recall_rises_on_text_not_seen(loaded: LoadedModel, distilled: Distilled) -> None:
    before = mean_recall(gate_recall(loaded, new_gates(loaded, block_size=BLOCK), some(2, seed=9)))
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
    "given", [{"pool": "mean"}, {"row_weight": "length"}, {"skip_rows": 0.25}, {"clip": 1e-3}, {"min_lr": 1e-3}]
)
def test_every_setting_makes_other_gates(loaded: LoadedModel, tmp_path: Path, given: dict[str, object]) -> None:
    usual = train(loaded, topics(), out=tmp_path / "usual", steps=3, warmup=1, block_size=BLOCK)
    other = train(loaded, topics(), out=tmp_path / "other", steps=3, warmup=1, block_size=BLOCK, **given)
    # clipping to one norm alone changes little: AdamW takes no heed of a gradient's scale but through its history
    assert not torch.equal(usual.gates[0].state_dict()["k"], other.gates[0].state_dict()["k"])


def test_the_file_says_how_it_was_made(loaded: LoadedModel, distilled: Distilled) -> None:
    assert distilled.path.name == "gates-16.safetensors"
    assert distilled.parameters == 2 * 4 * 48 * 16
    with safe_open(str(distilled.path), framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["block_size"] == 16
    assert metadata["steps"] == 30
    assert metadata["tokens"] == 30 * LENGTH
    assert metadata["seed"] == 0
    assert (metadata["model"], metadata["model_hash"]) == ("tiny", "abc")
    assert metadata["recall"]["0.2"]["recall"] == mean_recall(distilled.recall)[0.2]["recall"]


def test_the_method_runs_with_the_file(loaded: LoadedModel, distilled: Distilled) -> None:
    method = methods.build("seer", sparsity=0.7, block_size=BLOCK)
    shape = {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}
    method.load(load_file(str(distilled.path)), **shape)
    densities = []

    def visit(layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        index = method.select(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=ModelRope(loaded.model, layer)))
        assert index is not None
        densities.append(index.density())

    with Capture(loaded.model, visit) as capture:
        capture.run(some(1, seed=5)[0])
    assert (torch.stack(densities) - 0.3).abs().max() < 0.01


def test_sparsity_0_equals_dense_in_the_bridge(loaded: LoadedModel, distilled: Distilled) -> None:
    tokens = some(1, seed=5)[0]
    shape = {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}
    with torch.no_grad():
        dense = loaded.model(tokens).logits
        for sparsity, same in ((0.0, True), (0.8, False)):
            method = methods.build("seer", sparsity=sparsity, block_size=BLOCK)
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
    with progress_bar(3) as bar:

        def both(step: Step) -> None:
            bar(step)
            seen.append(step)

        train(loaded, topics(), out=tmp_path, steps=3, block_size=BLOCK, warmup=2, q_linear=True, on_step=both)
    assert [step.step for step in seen] == [0, 1, 2]
    assert [step.tokens for step in seen] == [LENGTH, 2 * LENGTH, 3 * LENGTH]
    assert seen[0].lr == pytest.approx(5e-4)
    assert seen[1].lr == pytest.approx(1e-3)
    assert 0 < seen[-1].recall < 1


def test_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [Recipe(steps=100, warmup=20).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19] == rates[20] == 1.0
    assert rates == [*sorted(rates[:20]), *sorted(rates[20:], reverse=True)]
    assert rates[-1] < 0.001


def test_text_that_ends_early(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ended after 2 of 5 steps"):
        train(loaded, iter(some(2, seed=0)), out=tmp_path, steps=5, block_size=BLOCK)
    assert not list(tmp_path.iterdir())
    assert loaded.model.config._attn_implementation != "gate_capture"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"lr": 0.0}, "lr=0.0: must be above 0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"skip_rows": 1.0}, "skip_rows=1.0: must be at least 0 and below 1"),
        ({"pool": "min"}, "pool=min: must be one of max, mass, mean"),
        ({"row_weight": "late"}, "row_weight=late: must be one of equal, length"),
        ({"min_lr": 1.0}, "min_lr=1.0: must be at least 0 and at most lr=0.001"),
        ({"clip": 0.0}, "clip=0.0: must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"micro_rows": 0}, "micro_rows=0: must be at least 1"),
        ({"dtype": "int8"}, "dtype=int8 of the gates' file: must be one of auto, float32, bfloat16"),
    ],
)
def test_settings_are_checked(
    loaded: LoadedModel, tmp_path: Path, settings: dict[str, object], message: str
) -> None:  # fmt: skip
    with pytest.raises(UserError, match=message):
        train(loaded, topics(), out=tmp_path, **{"steps": 1, **settings})  # type: ignore[arg-type]


# -- recall ----------------------------------------------------------------------------------------------------------


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
    grid = {"q_block": 16, "k_block": 16, "q_len": 640, "k_len": 640}
    found = []
    for seed in range(40):
        x = LayerInputs(q=torch.zeros(1, 8, 640, 16), k=torch.zeros(1, 8, 640, 16), layer=0, scale=1.0)
        index = [methods.build("random", sparsity=0.8, block_size=16, seed=s).select(x) for s in (seed, seed + 100)]
        assert isinstance(index[0], BlockIndex)
        assert isinstance(index[1], BlockIndex)
        found.append(recall_rows(index[0], index[1]).mean())
    assert abs(float(torch.stack(found).mean()) - chance(budget, causal)) < 0.005
    assert grid["q_len"] == 640


class Perfect(AttnGate):
    """A gate that knows the answer."""

    def forward(self, q: Tensor, k: Tensor, rope: object) -> Tensor:
        return target_map(q, k, self, scale=q.shape[-1] ** -0.5, pool="mass")


def test_recall_of_a_perfect_gate(loaded: LoadedModel) -> None:
    gates = [Perfect(4, 2, 16, block_size=BLOCK) for _ in range(2)]
    rows = gate_recall(loaded, gates, some(2, seed=4), densities=(0.5, 0.1), pool="mass")
    assert [(row["layer"], row["density"]) for row in rows] == [(0, 0.5), (0, 0.1), (1, 0.5), (1, 0.1)]
    for row in rows:
        assert row["recall"] > 0.999  # blocks that tie may be chosen either way
        assert row["kept_ratio"] == pytest.approx(1.0)
        assert (row["tokens"], row["sequences"]) == (2 * LENGTH, 2)


def test_recall_needs_sequences(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="no sequences"):
        gate_recall(loaded, new_gates(loaded, block_size=BLOCK), [])
