"""Attention with skipped tiles in plain PyTorch: one key tile after the other, for all query blocks that see it at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attention_kernels.block_index import BlockIndex, causal_mask, diagonal_mask
from attention_kernels.skip_softmax.rule import SkipRule


def skip_softmax_reference(q: Tensor, k: Tensor, v: Tensor, rule: SkipRule, *, scale: float) -> tuple[Tensor, BlockIndex]:
    """Run `attention_kernels.skip_softmax.skip_softmax_attention` in plain PyTorch. Only the query blocks that keep a tile
    exponentiate its scores and read its values."""
    (batch, heads, q_len, _), (kv_heads, k_len), mb, nb = q.shape, k.shape[1:3], rule.q_block, rule.k_block
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group, shift = heads // kv_heads, k_len - q_len
    rows, cols = -(-q_len // mb), -(-k_len // nb)
    grid = rule.grid(q, k)
    causal, diagonal = (make(q_len, k_len, mb, nb, q.device) for make in (causal_mask, diagonal_mask))
    blocks = pad(q, (0, 0, 0, rows * mb - q_len)).unflatten(2, (rows, mb)).to(wide) * scale  # [B,Hq,Mq,mb,D]
    token = torch.arange(rows * mb, device=q.device).unflatten(0, (rows, mb))
    best = torch.full(blocks.shape[:-1], -float("inf"), dtype=wide, device=q.device)  # [B,Hq,Mq,mb], as all below
    total, acc = torch.zeros_like(best), torch.zeros_like(blocks)
    computed = torch.zeros(batch, heads, rows, cols, dtype=torch.bool, device=q.device)
    for tile in range(cols):
        first = max(0, tile * nb - shift) // mb  # the first query block that sees a key of it
        keys, values = (x[:, :, tile * nb : (tile + 1) * nb].to(wide) for x in (k, v))
        scores = blocks[:, :, first:].unflatten(1, (kv_heads, group)) @ keys[:, :, None, None].mT  # [B,Hkv,group,rows,mb,nb]
        scores = scores.flatten(1, 2)
        if bool((diagonal | ~causal)[first:, tile].any()):
            future = tile * nb + torch.arange(keys.shape[2], device=q.device) > (token[first:] + shift).unsqueeze(-1)
            scores = scores.masked_fill(future, -float("inf"))
        top = scores.amax(-1)
        matters = (top - best[:, :, first:]).nan_to_num(-float("inf"), float("inf"), -float("inf")) >= rule.log
        matters &= token[first:] < q_len
        chosen = ((matters.any(-1) | diagonal[first:, tile]) & causal[first:, tile]).nonzero(as_tuple=True)
        computed[:, :, first:, tile][chosen] = True
        b, h, row = chosen[0], chosen[1], chosen[2] + first
        high = torch.maximum(best[b, h, row], top[chosen])
        seen = high > -float("inf")  # a query may see nothing of the first tiles: of those on the diagonal
        probs = torch.where(seen.unsqueeze(-1), (scores[chosen] - high.unsqueeze(-1)).exp(), 0)
        decay = torch.where(seen, (best[b, h, row] - high).exp(), 0)
        total[b, h, row] = total[b, h, row] * decay + probs.sum(-1)
        acc[b, h, row] = acc[b, h, row] * decay.unsqueeze(-1) + probs @ values[b, h // group]
        best[b, h, row] = high
    out = (acc / total.unsqueeze(-1)).flatten(2, 3)[:, :, :q_len].to(q.dtype)
    return out, BlockIndex.from_mask(computed, **grid, wait=False)
