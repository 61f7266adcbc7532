"""The gate against a second formulation: loops over blocks and heads, from pre-RoPE inputs, in float64."""

from __future__ import annotations

import attention_kernels.pool.reference
import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_mask, diagonal_mask
from attention_kernels.project import project
from torch import Tensor

import methods
import methods.gates.weights
from methods.gates.attn_gate import AttnGate, load_gates
from methods.parts.base import LayerInputs
from methods.parts.rope import rope_apply
from tests.methods.support import DIM, HEADS, KV_HEADS, LAYERS, PlainRope, gates, layer, ready

BLOCK = 16


def naive_pool(block: Tensor, ways: str) -> Tensor:
    """A block of tokens [N,D] -> its pooled vectors, one after the other. ways: as in a name, maxavg."""
    by_name = {"max": block.max(0).values, "min": block.min(0).values, "avg": block.mean(0)}
    return torch.cat([pooled for name, pooled in by_name.items() if name in ways])


def naive_logits(
    q: Tensor, k: Tensor, w_k: Tensor, w_q: Tensor | None, rope: PlainRope | None, pooling: str = "Qavg_Kmaxminavg"
) -> Tensor:
    """PRE-RoPE q [Hq,Q,D], k [Hkv,K,D], float64 -> logits [Hq,Mq,Nk]. rope: of the blocks, None for none."""
    q_ways, k_ways = pooling.split("_")
    q_len, k_len = q.shape[1], k.shape[1]
    offset = k_len - q_len
    rows, columns = -(-q_len // BLOCK), -(-k_len // BLOCK)
    out = torch.full((HEADS, rows, columns), float("-inf"), dtype=torch.float64)

    def turn(vector: Tensor, position: int) -> Tensor:
        if rope is None:
            return vector
        cos, sin = rope.cos_sin(torch.tensor([position]))
        return rope_apply(vector[None], cos.double(), sin.double())[0]

    for head in range(HEADS):
        for i in range(rows):
            query = naive_pool(q[head, i * BLOCK : (i + 1) * BLOCK], q_ways)
            if w_q is not None:
                query = query @ w_q[head]
            query = turn(query, offset + i * BLOCK)
            last_token = offset + min((i + 1) * BLOCK, q_len) - 1
            for j in range(last_token // BLOCK + 1):
                block = k[head // (HEADS // KV_HEADS), j * BLOCK : (j + 1) * BLOCK]
                key = turn(naive_pool(block, k_ways) @ w_k[head], j * BLOCK)
                out[head, i, j] = query @ key / DIM**0.5
    return out


@pytest.mark.parametrize("shape", [(96, 96), (89, 89), (32, 96), (41, 89), (25, 90)])
@pytest.mark.parametrize("q_linear", [False, True])
@pytest.mark.parametrize(("rotary", "scaling"), [(16, 1.0), (8, 1.3)])
def test_gate_equals_the_naive_formulation(
    shape: tuple[int, int], q_linear: bool, rotary: int, scaling: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels.pool.reference, "CHUNK_ELEMENTS", 2 * BLOCK * HEADS * DIM)  # two blocks at a time
    q_len, k_len = shape
    rope = PlainRope(rotary, scaling)
    x = layer(q_len, k_len)
    q, k = x.q.double(), x.k.double()
    post_q = rope_apply(q, *rope.cos_sin(torch.arange(k_len - q_len, k_len)))
    post_k = rope_apply(k, *rope.cos_sin(torch.arange(k_len)))
    torch.manual_seed(0)
    gate = AttnGate(HEADS, KV_HEADS, DIM, block_size=BLOCK, q_linear=q_linear).double()
    logits = gate(post_q, post_k, rope)
    w_q = None if gate.q is None else gate.q.detach()
    torch.testing.assert_close(logits[0].detach(), naive_logits(q[0], k[0], gate.k.detach(), w_q, rope))


@pytest.mark.parametrize("pooling", ["Qmax_Kmax", "Qavg_Kavg", "Qmin_Kmaxmin", "Qmaxminavg_Kminavg"])
@pytest.mark.parametrize("block_rope", [True, False])
def test_gates_of_other_poolings_equal_the_naive_formulation(pooling: str, block_rope: bool) -> None:
    rope, x = PlainRope(16, 1.0), layer(41, 89)
    q, k = x.q.double(), x.k.double()
    post_q, post_k = rope_apply(q, *rope.cos_sin(torch.arange(48, 89))), rope_apply(k, *rope.cos_sin(torch.arange(89)))
    torch.manual_seed(0)
    gate = AttnGate(HEADS, KV_HEADS, DIM, block_size=BLOCK, pooling=pooling, block_rope=block_rope).double()
    w_q = None if gate.q is None else gate.q.detach()
    assert (w_q is None) == (len(gate.q_ways) == 1)  # several have to become one vector
    naive = naive_logits(q[0], k[0], gate.k.detach(), w_q, rope if block_rope else None, pooling)
    torch.testing.assert_close(gate(post_q, post_k, rope)[0].detach(), naive)
    by_queries, by_keys = gate.sides(post_q, post_k, rope)
    whole_prompt = gate.project(*gate.pool(post_q, post_k, rope), rope, q_len=41, k_len=89)
    for side, projected in zip((by_queries, by_keys), whole_prompt, strict=True):
        torch.testing.assert_close(project(side.pooled, side.weight, cos=side.cos, sin=side.sin), projected)
    torch.testing.assert_close(gate.keys(post_k[:, :, 32:], rope, first=32), whole_prompt[1][:, :, 2:])


@pytest.mark.parametrize("pooling", ["Qavg_K", "_Kavg", "Qavg_Kminmax", "Qavgavg_Kavg", "qavg_kavg", "Qavg_Kavg ", ""])
def test_a_pooling_that_is_none_is_refused(pooling: str) -> None:
    with pytest.raises(ValueError, match=r"pooling=.*: must be Q and K with the ways .* for example Qavg_Kmaxminavg"):
        methods.build("seer", sparsity=0.5, block_size=16, pooling=pooling)


def test_unusual_gates_lie_in_files_of_their_own() -> None:
    names = [
        methods.build("seer", sparsity=0.5, block_size=16, **knobs).weights_name()
        for knobs in ({}, {"pooling": "Qmax_Kmax"}, {"block_rope": False}, {"pooling": "Qmax_Kmax", "gates": "own"})
    ]
    assert names == [f"gates-16{suffix}.safetensors" for suffix in ("", "-Qmax_Kmax", "-norope", "-own_Qmax_Kmax")]


def test_gate_is_float32_from_half_precision() -> None:
    x = layer(64)
    gate = AttnGate(HEADS, KV_HEADS, DIM, block_size=BLOCK)
    assert x.rope is not None
    assert gate(x.q.bfloat16(), x.k.bfloat16(), x.rope).dtype == torch.float32


def test_gate_has_as_many_weights_as_the_released_ones() -> None:
    gate = AttnGate(32, 8, 128, block_size=64)  # Llama-3.1-8B: 32 layers, 100.66 MB in bfloat16
    assert 32 * 2 * sum(weight.numel() for weight in gate.parameters()) == 100_663_296


def test_gradients_reach_all_weights_and_nothing_else() -> None:
    x = layer(64)
    q = x.q.requires_grad_()
    gate = AttnGate(HEADS, KV_HEADS, DIM, block_size=BLOCK, q_linear=True)
    assert x.rope is not None
    gate(q, x.k, x.rope).softmax(-1).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in gate.parameters())
    assert q.grad is None


# -- the method around it --------------------------------------------------------------------------------------------


def test_seer_without_weights_says_which_file() -> None:
    with pytest.raises(ValueError, match=r"seer has no weights: load gates-16.safetensors first"):
        methods.build("seer", sparsity=0.5, block_size=16).select(layer(64))


def test_seer_needs_rope() -> None:
    x = layer(64)
    with pytest.raises(ValueError, match="seer needs the model's RoPE"):
        ready("seer", sparsity=0.5, block_size=16).select(LayerInputs(q=x.q, k=x.k, layer=0, scale=x.scale))


def test_seer_keeps_the_best_of_the_gate() -> None:
    x = layer(640)
    state = gates(BLOCK)
    gate = load_gates(state, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, head_dim=DIM, block_size=BLOCK)[0]
    assert x.rope is not None
    logits = gate(x.q, x.k, x.rope)
    index = ready("seer", sparsity=0.8, block_size=BLOCK).select(x)
    assert index is not None
    mask = index.to_mask()
    for row in range(1, mask.shape[2]):  # blocks beside the diagonal, which is forced
        scores, chosen = logits[:, :, row, :row], mask[:, :, row, :row]
        worst_kept = scores.masked_fill(~chosen, float("inf")).amin(-1)
        best_left = scores.masked_fill(chosen, float("-inf")).amax(-1)
        assert bool((worst_kept >= best_left).all())


@pytest.mark.parametrize("shared", [False, True])
def test_scores_are_probabilities_of_the_past_that_rank_as_the_selection_does(shared: bool) -> None:
    x = layer(41 * 16 - 5, 45 * 16 - 5)  # a chunk
    for name in ("seer", "block_topk"):
        method = ready(name, sparsity=0.7, block_size=BLOCK, shared=shared)
        scores = method.scores(x)
        index = method.select(x)
        assert scores is not None and isinstance(index, BlockIndex)
        assert scores.shape == (1, KV_HEADS if shared else HEADS, 41, 45) and scores.dtype == torch.float32
        torch.testing.assert_close(scores.sum(-1), torch.ones(scores.shape[:-1]))
        causal = causal_mask(**method.grid(x))
        assert bool((scores[:, :, ~causal] == 0).all())
        beside = causal & ~diagonal_mask(**method.grid(x))  # the diagonal is forced
        mask = index.to_mask()
        worst = scores.masked_fill(~(mask & beside), 1.0).amin(-1)
        best = scores.masked_fill(mask | ~beside, 0.0).amax(-1)
        assert bool((worst >= best - 1e-6).all())


def test_seer_threshold_keeps_what_is_above_it() -> None:
    x = layer(640)
    method = ready("seer", selection="threshold", threshold=0.03, block_size=BLOCK)
    index = method.select(x)
    assert index is not None
    assert x.rope is not None
    probability = method.gates[0](x.q, x.k, x.rope).softmax(-1)  # type: ignore[attr-defined]
    expected = (probability > 0.03) | torch.eye(40, dtype=torch.bool)
    assert torch.equal(index.to_mask(), expected)
    knobs = {"selection": "threshold", "threshold": 0.03, "nz_ratio": None, "q_linear": False, "shared": False, "gates": None}
    assert method.knobs() == {**knobs, "pooling": "Qavg_Kmaxminavg", "block_rope": True, "last": 0, "blocks": None}
    release = ready("seer", selection="threshold", threshold=0.03, block_size=BLOCK, last=2).select(x)
    assert release is not None
    expected[..., -2:, :] = torch.arange(40) <= torch.tensor([[38], [39]])
    assert torch.equal(release.to_mask(), expected), "the release's last two query blocks are dense"


def test_seer_nz_ratio_is_the_papers_rule() -> None:
    index = ready("seer", selection="nz_ratio", sparsity=0.63, block_size=BLOCK).select(layer(640))
    assert index is not None
    rows = torch.arange(1, 41)
    assert torch.equal(index.counts[0, 0].long(), rows.clamp(max=8))  # 8 = floor((1 - sqrt(0.63)) * 40)
    assert (index.density() - 0.37).abs().max() < 1 / 40


def test_a_named_training_has_its_own_file() -> None:
    assert methods.build("seer", sparsity=0.5, block_size=32, gates="mass").weights_name() == "gates-32-mass.safetensors"
    with pytest.raises(ValueError, match=r"gates=\.\./x: must be a name of letters, digits and _, for example mass"):
        methods.build("seer", sparsity=0.5, gates="../x").weights_name()


# -- weights ---------------------------------------------------------------------------------------------------------

SHAPE = {"layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}


@pytest.mark.parametrize("q_linear", [False, True])
def test_weights_survive_a_round_trip(q_linear: bool) -> None:
    state = gates(BLOCK, q_linear=q_linear)
    loaded = load_gates(state, **SHAPE, block_size=BLOCK, q_linear=q_linear)
    back = methods.gates.weights.gate_state(loaded)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, r"lack layers.2.gate.k: the model has 3 layers"),
        ({"layers": 1}, r"have layers.1.gate.k that it has no place for: the model has 1 layers"),
        ({"heads": 8}, r"layers.0.gate.k has shape \[4, 48, 16\], not \[8, 48, 16\]: .* another model"),
        ({"head_dim": 32}, r"has shape \[4, 48, 16\], not \[4, 96, 32\]"),
    ],
)
def test_weights_of_another_model_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        methods.build("seer", sparsity=0.5, block_size=BLOCK).load(gates(BLOCK), **{**SHAPE, **change})
    assert "\n" not in str(caught.value)


def test_weights_with_and_without_q_linear_are_told_apart() -> None:
    method = methods.build("seer", sparsity=0.5, block_size=BLOCK)
    with pytest.raises(ValueError, match=r"have layers.0.gate.q, .* q_linear is False"):
        method.load(gates(BLOCK, q_linear=True), **SHAPE)
    method = methods.build("seer", sparsity=0.5, block_size=BLOCK, q_linear=True)
    with pytest.raises(ValueError, match=r"lack layers.0.gate.q, layers.1.gate.q: .* q_linear is True"):
        method.load(gates(BLOCK), **SHAPE)
