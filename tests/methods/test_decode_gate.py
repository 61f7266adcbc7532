"""SeerAttention-R's gate against a second formulation: loops over heads, rows and blocks, from pre-RoPE inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from methods.gates.decode_gate import DecodeGate
from methods.gates.weights import gate_state
from methods.parts.rope import rope_apply
from tests.methods.decode_support import ready, shape, step
from tests.methods.support import DIM, HEADS, KV_HEADS, PlainRope

BLOCK = 16


def weights(block_size: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights for all layers, the norms' too."""
    generator = torch.Generator().manual_seed(seed)
    layer_gates = [DecodeGate(HEADS, KV_HEADS, DIM, block_size=block_size) for _ in range(shape()["layers"])]
    return {
        name: torch.randn(weight.shape, generator=generator) + (1.0 if name.endswith("norm") else 0.0)
        for name, weight in gate_state(layer_gates).items()
    }


def naive_logits(q: Tensor, k: Tensor, w: dict[str, Tensor], rope: PlainRope) -> Tensor:
    """PRE-RoPE q [Hq,Q,D], k [Hkv,K,D], float64 -> logits [Hkv,Q,Nk], -inf from a query's own block on."""
    q_len, k_len = q.shape[1], k.shape[1]
    out = torch.full((KV_HEADS, q_len, -(-k_len // BLOCK)), float("-inf"), dtype=torch.float64)
    group = HEADS // KV_HEADS

    def turn(vector: Tensor, position: int) -> Tensor:
        cos, sin = rope.cos_sin(torch.tensor([position]))
        return rope_apply(vector[None], cos.double(), sin.double())[0]

    def norm(vector: Tensor, weight: Tensor) -> Tensor:
        return vector / (vector.square().mean() + 1e-6).sqrt() * weight

    for head in range(KV_HEADS):
        for i in range(q_len):
            position = i + k_len - q_len
            query = sum(q[head * group + g, i] @ w["q"][head, g] for g in range(group))
            query = turn(norm(query, w["q_norm"]), position)  # type: ignore[arg-type]
            for j in range(position // BLOCK):
                block = k[head, j * BLOCK : (j + 1) * BLOCK]
                pooled = torch.cat((block.max(0).values, block.min(0).values, block.mean(0)))
                key = turn(norm(pooled @ w["k"][head], w["k_norm"]), j * BLOCK)
                out[head, i, j] = query @ key / DIM**0.5
    return out


@pytest.mark.parametrize(("q_len", "k_len"), [(50, 89), (33, 96), (1, 70)])
@pytest.mark.parametrize(("rotary", "scaling"), [(16, 1.0), (8, 1.3)])
def test_equals_the_naive_formulation(q_len: int, k_len: int, rotary: int, scaling: float) -> None:
    rope = PlainRope(rotary, scaling)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, HEADS, q_len, DIM, generator=generator, dtype=torch.float64)
    k = torch.randn(1, KV_HEADS, k_len, DIM, generator=generator, dtype=torch.float64)
    seer = ready("seer_r", block_size=BLOCK, budget=32)
    gate: DecodeGate = seer.gates[1]  # type: ignore[attr-defined]
    w = {name: weight.double() for name, weight in gate.state_dict().items()}
    expected = naive_logits(q[0], k[0], w, rope)
    post_q = rope_apply(q, *rope.cos_sin(torch.arange(k_len - q_len, k_len)))
    post_k = rope_apply(k, *rope.cos_sin(torch.arange(k_len)))
    torch.testing.assert_close(gate(post_q, post_k, rope)[0].double(), expected, atol=1e-4, rtol=1e-4)
    x = replace(step(k_len), q=post_q[:, :, -1:].float(), k=post_k.float(), rope=rope, layer=1)
    step_logits = seer.scores(x, seer.start(x))[0].double()  # type: ignore[attr-defined]
    own = (k_len - 1) // BLOCK
    torch.testing.assert_close(step_logits[:, :own], expected[:, -1, :own], atol=1e-4, rtol=1e-4)


def test_a_block_completed_while_decoding_is_turned_by_its_first_token() -> None:
    """As one that the prompt completed: the state after many steps is that of the whole cache."""
    seer = ready("seer_r", block_size=BLOCK, budget=32)
    state = seer.start(step(100, batch=3, starts=(0, 5, 90)))
    for length in range(101, 201):
        seer.extend(state, step(length, batch=3, starts=(0, 5, 90)))
    fresh = seer.start(step(200, batch=3, starts=(0, 5, 90)))
    torch.testing.assert_close(state.keys.values, fresh.keys.values, atol=1e-5, rtol=1e-5)
    for grown, whole_cache in ((state.high, fresh.high), (state.low, fresh.low), (state.total, fresh.total)):
        torch.testing.assert_close(grown, whole_cache, atol=1e-5, rtol=1e-5)


def test_threshold_is_a_share_of_the_blocks_before_the_newest() -> None:
    x = step(637, batch=2)
    seer = ready("seer_r", block_size=BLOCK, threshold=0.03)
    state = seer.start(x)
    probs = seer.scores(x, state)[..., :-1].softmax(-1)  # type: ignore[attr-defined]
    index = seer.select(x, state)
    assert index is not None
    expected = torch.nn.functional.pad(probs > 0.03, (0, 1), value=True)
    assert torch.equal(index.to_mask()[:, :, 0], expected)
    assert len(set(index.counts.flatten().tolist())) > 1 and seer.knobs()["budget"] is None


def test_the_first_block_on_demand() -> None:
    x = step(637)
    first_kept = []
    for first in (False, True):
        seer = ready("seer_r", block_size=BLOCK, budget=48, first=first)
        index = seer.select(x, seer.start(x))
        assert index is not None and bool((index.counts == 3).all())
        first_kept.append(bool((index.indices[..., 0] == 0).all()))
    assert first_kept == [False, True]


def test_truth_is_the_groups_largest_without_the_own_block() -> None:
    gate = DecodeGate(4, 2, 8, block_size=4)
    attention = torch.rand(1, 4, 6, 4)
    truth = gate.truth(attention, "max", 14)  # queries 8 to 13: blocks 2, 2, 2, 2, 3, 3
    for row, own in enumerate([2, 2, 2, 2, 3, 3]):
        for head in (0, 1):
            pair = attention[0, 2 * head : 2 * head + 2, row]
            assert torch.equal(truth[0, head, row, :own], pair.amax(0)[:own])
            assert bool((truth[0, head, row, own:] == 0).all())
    with pytest.raises(ValueError, match="needs two blocks of 4 at least"):
        gate.learns_from(torch.zeros(1, 4, 7, 8))
    assert gate.learns_from(torch.arange(9.0)[None, None, :, None])[0, 0, :, 0].tolist() == [4, 5, 6, 7, 8]


def test_weights_must_fit() -> None:
    seer = ready("seer_r", block_size=BLOCK, budget=32)
    state = weights(BLOCK)
    with pytest.raises(ValueError, match=r"lack layers.2.gate.k.*they are another model's"):
        seer.load({k: v for k, v in state.items() if not k.startswith("layers.2")}, **shape())
    state["layers.0.gate.q"] = state["layers.0.gate.q"][:, :1]
    with pytest.raises(ValueError, match=r"layers.0.gate.q has shape \[2, 1, 16, 16\], not \[2, 2, 16, 16\]"):
        seer.load(state, **shape())


def test_it_says_what_it_lacks() -> None:
    from methods import decode

    x = step(100)
    with pytest.raises(ValueError, match=r"load decode-gates-64\.safetensors first"):
        decode.build("seer_r").start(x)
    seer = ready("seer_r", block_size=BLOCK, budget=32)
    with pytest.raises(ValueError, match="needs the model's RoPE"):
        seer.start(replace(x, rope=None))
    with pytest.raises(ValueError, match="gates for layers 0 to 2"):
        seer.start(replace(x, layer=3))
    for knobs, message in (
        ({"threshold": 0.1, "budget": 64}, "give no budget"),
        ({"threshold": 1.0}, "must be a probability"),
    ):
        with pytest.raises(ValueError, match=message):
            decode.build("seer_r", **knobs)
