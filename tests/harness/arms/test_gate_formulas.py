"""Releases of gates: a file in their layout computes what their formulas say, from the model's own projections."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d
from transformers import LlamaConfig, LlamaForCausalLM

import methods
from harness.arms import gate_files
from harness.models.loading import LoadedModel, wrap_model
from harness.models.observe import dense_prefill
from harness.models.rope import ModelRope
from methods.gates.attn_gate import AttnGate
from methods.gates.decode_gate import DecodeGate, load_decode_gates
from methods.parts.base import LayerInputs
from tests.harness.arms.gate_release import BLOCK, GATE, write
from tests.harness.tiny import VOCAB, load, tokens

LENGTH = 200
"""The last block has 8 tokens."""


def rotated(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """RoPE, the halves turning together, of x [H,P,D] float64."""
    angles = positions.double()[:, None] * frequencies.double()
    angles = torch.cat((angles, angles), -1)
    low, high = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-high, low), -1) * angles.sin()


def pooled(k: Tensor) -> Tensor:
    """[H,S,D] -> [H,S/B,3D]: max, min, mean of each block, of the last one's tokens too."""
    rows = k.mT
    return torch.cat(
        (
            max_pool1d(rows, BLOCK, ceil_mode=True),
            -max_pool1d(-rows, BLOCK, ceil_mode=True),
            avg_pool1d(rows, BLOCK, ceil_mode=True),
        ),
        1,
    ).mT


def prefill_formula(q: Tensor, k: Tensor, weight: Tensor, frequencies: Tensor) -> Tensor:
    """softmax_j(RoPE_iB(mean q) · RoPE_jB(W [max; min; mean k]) / sqrt(d)), j <= i; q, k [H,S,D] from before RoPE, float64."""
    starts = torch.arange(0, q.shape[1], BLOCK)
    queries = avg_pool1d(q.mT, BLOCK, ceil_mode=True).mT
    keys = torch.einsum("hni,hio->hno", pooled(k.repeat_interleave(q.shape[0] // k.shape[0], 0)), weight)
    scores = rotated(queries, starts, frequencies) @ rotated(keys, starts, frequencies).mT * keys.shape[-1] ** -0.5
    return scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def decode_formula(q: Tensor, k: Tensor, weight: dict[str, Tensor], frequencies: Tensor) -> Tensor:
    """Logits of the last query over the whole blocks before its own, [Hkv,Nk], of q [Hq,D], k [Hkv,S,D], float64."""

    def norm(x: Tensor, by: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * by

    blocks = (k.shape[1] - 1) // BLOCK
    query = torch.einsum("kgi,kgio->ko", q.unflatten(0, (k.shape[0], -1)), weight["attngate_linear_q"])
    query = rotated(norm(query, weight["attngate_qnorm"])[:, None], torch.tensor([k.shape[1] - 1]), frequencies)
    keys = norm(pooled(k[:, : blocks * BLOCK]) @ weight["attngate_linear_k"], weight["attngate_knorm"])
    keys = rotated(keys, torch.arange(blocks) * BLOCK, frequencies)
    return (query @ keys.mT * keys.shape[-1] ** -0.5)[:, 0]


def seen(loaded: LoadedModel, projections: dict[str, str]) -> tuple[dict[str, Tensor], list[LayerInputs]]:
    """Of layer 1: outputs of the modules named, [H,S,D] float64, and what a method sees of both layers."""
    outputs: dict[str, Tensor] = {}
    inputs: list[LayerInputs] = []
    attention = loaded.model.model.layers[1].self_attn

    def keep(name: str, out: Tensor) -> None:
        out = out if out.ndim == 4 else out.unflatten(-1, (-1, loaded.head_dim))
        outputs[name] = out[0].transpose(0, 1).double() if out.shape[1] == LENGTH else out[0].double()

    hooks = [
        getattr(attention, module).register_forward_hook(lambda _m, _i, out, name=name: keep(name, out))
        for name, module in projections.items()
    ]

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        inputs.append(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=ModelRope(loaded.model, layer)))

    dense_prefill(loaded, [tokens(LENGTH).tolist()], observe)
    for hook in hooks:
        hook.remove()
    return outputs, inputs


def test_a_released_prefill_gate_computes_its_formula(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stretched = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rope_parameters=stretched,
        initializer_range=0.3,
    )
    loaded = wrap_model(LlamaForCausalLM(config).eval(), None, name="tiny")
    state = write(tmp_path, {"mask_linear_k": (4, 48, 16)}, seerattn_gate_type="Qavg_Kmaxminavg")
    method = methods.build("seer", sparsity=0.5, block_size=BLOCK)
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16}
    method.load(gate_files.read(tmp_path / "attn_gate_weights.pth", AttnGate, block_size=BLOCK), **shape)
    outputs, inputs = seen(loaded, {"q": "q_proj", "k": "k_proj"})
    weight = state[GATE.format(1, "mask_linear_k")].double()
    expected = prefill_formula(outputs["q"], outputs["k"], weight, loaded.model.model.rotary_emb.inv_freq)
    scores = method.scores(inputs[1])
    assert scores is not None
    torch.testing.assert_close(scores[0].double(), expected, atol=1e-4, rtol=1e-3)


def test_a_released_decode_gate_computes_its_formula(tmp_path: Path) -> None:
    loaded = load("qwen3")  # norms of queries and keys before RoPE; head dim 32
    shapes = {
        "attngate_linear_q": (2, 2, 32, 32),
        "attngate_linear_k": (2, 96, 32),
        "attngate_qnorm": (32,),
        "attngate_knorm": (32,),
    }
    state = write(tmp_path, shapes, seerattn_q_head_pooling_type="Qproj")
    names = gate_files.read(tmp_path / "attn_gate_weights.pth", DecodeGate, block_size=BLOCK)
    gate = load_decode_gates(names, layers=2, heads=4, kv_heads=2, head_dim=32, block_size=BLOCK)[1]
    outputs, inputs = seen(loaded, {"q": "q_norm", "k": "k_norm"})
    weight = {name: state[GATE.format(1, name)].double() for name in shapes}
    expected = decode_formula(outputs["q"][:, -1], outputs["k"], weight, loaded.model.model.rotary_emb.inv_freq)
    x = inputs[1]
    assert x.rope is not None
    logits = gate(x.q, x.k, x.rope)[0, :, -1]
    torch.testing.assert_close(logits[:, : expected.shape[1]].double(), expected, atol=1e-3, rtol=1e-3)
    assert bool((logits[:, expected.shape[1] :] == -torch.inf).all())
