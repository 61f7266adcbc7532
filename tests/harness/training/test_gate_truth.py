"""What gates learn from: queries and keys of every layer, their RoPE, the pooled true map; and how far they are from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, wrap_model
from harness.models.rope import ModelRope
from harness.training.gates import trainer as gate_trainer
from harness.training.gates import training as gate_training
from harness.training.gates.capture import Capture
from harness.training.gates.loss import gate_loss
from harness.training.gates.processes import Processes
from harness.training.gates.recipe import Recipe
from harness.training.gates.target_map import target_map
from harness.training.gates.trainer import GateTrainer
from harness.training.gates.training import Plan, Training
from methods.gates.attn_gate import AttnGate
from methods.parts.rope import rope_apply, rope_undo
from tests.harness.training.test_distill import BLOCK, VOCAB, rows_of, sharp_llama
from tests.methods.support import DIM, HEADS, KV_HEADS, PlainRope
from tests.methods.support import layer as inputs
from tests.methods.test_gate import naive_logits


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


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

    def visit(layer: int, q: Tensor, k: Tensor, scale: float, lse: Tensor | None) -> None:
        if layer == 1:
            cos_sin = ModelRope(model, layer).cos_sin(torch.arange(q.shape[2]))
            seen.update(q_proj=rope_undo(q, *cos_sin), k_proj=rope_undo(k, *cos_sin))

    with Capture(model, visit) as capture:
        capture.run(torch.randint(VOCAB, (1, 200)))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for name in ("q_proj", "k_proj"):
        expected = projected[name].float()
        assert (seen[name] - expected).abs().max() < tolerance * expected.abs().max()


def test_rope_of_gemma_differs_by_layer() -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
    )
    model = Gemma3ForCausalLM(config).eval()
    positions = torch.arange(40)
    for layer, kind in enumerate(config.layer_types):
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions[None], kind)
        own = ModelRope(model, layer).cos_sin(positions)
        assert torch.equal(own[0], cos[0])
        assert torch.equal(own[1], sin[0])
    seen: list[tuple[int, int]] = []
    with Capture(model, lambda layer, q, k, *_: seen.append((layer, q.shape[2]))) as capture:
        capture.run(torch.randint(VOCAB, (1, 30)))
        capture.run(torch.randint(VOCAB, (1, 40)))
    assert seen == [(0, 30), (1, 30), (1, 40)]  # past its window, a sliding layer has nothing to choose


def test_interleaved_rope_is_refused() -> None:
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
    )
    with pytest.raises(UserError, match="RoPE of GlmForCausalLM is not the rotate-half kind"):
        ModelRope(GlmForCausalLM(config), 0)


def test_capture_leaves_the_model_as_it_was(loaded: LoadedModel) -> None:
    tokens = rows_of(1, seed=3)[0]
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
    tokens = rows_of(1, seed=3)[0]
    mask = torch.ones_like(tokens)
    mask[:, 0] = 0
    with Capture(loaded.model, lambda *_: None), pytest.raises(UserError, match="padding in the prompt"):
        loaded.model(tokens, attention_mask=mask)


# -- the loss --------------------------------------------------------------------------------------------------------


def naive_target(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The normalised max-pooled map by way of the whole attention matrix, one head at a time."""
    heads, length = q.shape[1], q.shape[2]
    blocks = -(-length // BLOCK)
    out = torch.zeros(1, heads, blocks, blocks, dtype=q.dtype)
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
        torch.nn.functional.kl_div(logits[0, h, i, : i + 1].log_softmax(-1), target[0, h, i, : i + 1], reduction="sum")
        for h in range(4)
        for i in range(5)
    ]
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


@pytest.mark.parametrize("given", [{}, {"skip_rows": 0.4}, {"row_weight": "length"}])
def test_the_gradient_is_that_of_the_loss(given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    future = torch.ones(5, 5).triu(1).bool()
    target = torch.rand(1, 2, 5, 5, dtype=torch.float64).masked_fill(future, 0)
    target[0, 0, 2, 1] = 0
    target[0, 1, 3] = 0  # a row without attention to any block
    logits = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gate_loss(target, x.masked_fill(future, -torch.inf), **given), (logits,))


def test_the_loss_keeps_one_map_for_its_gradient() -> None:
    saved: list[int] = []
    logits = torch.randn(1, 2, 50, 50, requires_grad=True)

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        gate_loss(torch.rand(1, 2, 50, 50), logits)
    assert sum(size >= logits.numel() for size in saved) == 1


@pytest.mark.parametrize("q_linear", [False, True])
def test_a_step_is_the_gradient_of_the_papers_formulas(q_linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows in two passes, two layers, against autograd in float64 through the whole maps."""
    rope = PlainRope(DIM, 1.0)
    monkeypatch.setattr(gate_trainer, "ModelRope", lambda *_: rope)
    torch.manual_seed(0)
    gates = [AttnGate(HEADS, KV_HEADS, DIM, block_size=BLOCK, q_linear=q_linear) for _ in range(2)]
    plain = [inputs(89, seed=seed) for seed in (1, 2)]
    cos_sin = rope.cos_sin(torch.arange(89))
    recipe = Recipe(steps=1, block_size=BLOCK, micro_rows=1, skip_rows=0.2)
    wide = [{name: weight.detach().double().requires_grad_() for name, weight in gate.named_parameters()} for gate in gates]
    monkeypatch.setattr(gate_training, "new_gates", lambda *_, **__: gates)
    model: Any = SimpleNamespace(model=None)
    training = Training(Plan(recipe), model, AttnGate, Processes())
    trainer = GateTrainer(model, Processes(), recipe.micro_rows)
    trainer.active, passes = [training], []
    with torch.no_grad():
        for row in trainer.parts(torch.tensor([[0], [1]])):
            x = plain[int(row)]
            for number in (0, 1):
                trainer.visit(number, rope_apply(x.q, *cos_sin), rope_apply(x.k, *cos_sin), 0.7, None)
            passes.append(trainer.end_pass())
    training.finish_step(training.gather_step(torch.stack(passes).sum(0)[0]).tolist(), 178, 0.0)
    (step,) = training.steps
    losses = []
    for weights in wide:
        for x in plain:
            q, k = x.q.double(), x.k.double()
            turned = [rope_apply(tensor, *(wave.double() for wave in cos_sin)) for tensor in (q, k)]
            target = naive_target(*turned, 0.7)[0]
            logits = naive_logits(q[0], k[0], weights["k"], weights.get("q"), rope)
            rows = [
                (target[h, i, : i + 1] * (target[h, i, : i + 1].log() - logits[h, i, : i + 1].log_softmax(-1))).sum()
                for h in range(HEADS)
                for i in range(1, 6)
            ]
            losses.append(torch.stack(rows).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)
    squares = 0.0
    for gate, weights in zip(gates, wide, strict=True):
        for name, weight in gate.named_parameters():
            assert weight.grad is not None and weights[name].grad is not None
            torch.testing.assert_close(weight.grad.double(), weights[name].grad, rtol=1e-3, atol=1e-6)
            squares += float(weights[name].grad.square().sum())
    assert step.grad_norm == pytest.approx(squares**0.5, rel=1e-5)
