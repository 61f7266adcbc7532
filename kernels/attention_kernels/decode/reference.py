"""Sparse decoding in plain PyTorch: the selected blocks are gathered, then attention as the formula reads (any device)."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_kernels.block_index import BlockIndex


def sparse_decode_reference(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float, starts: Tensor | None = None
) -> Tensor:
    """Run `attention_kernels.decode.sparse_decode` in plain PyTorch. Softmax in float32, or float64 for float64 inputs. Copies
    the selected K and V of each head of the index."""
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, q_len, dim = q.shape
    k_len, lists = k.shape[2], index.counts.shape[1]
    entry = torch.arange(index.indices.shape[-1], device=q.device)
    listed = entry < index.counts[..., 0, None]  # [B,H,width]
    token = index.indices[:, :, 0, :, None] * index.k_block + torch.arange(index.k_block, device=q.device)
    if starts is not None:
        token = token + starts[:, None, None, None]
    real = (listed[..., None] & (token < k_len)).flatten(2)  # [B,H,width·k_block]
    token = torch.where(real, token.flatten(2), 0).long()
    # in float64 and float32 products of 0 and NaN matter: keys that are not selected must not be touched
    keys, values = (
        torch.where(real[..., None], _rows(x, token), 0).to(accurate)  # [B,H,width·k_block,D]
        for x in (k, v)
    )
    position = torch.arange(q_len, device=q.device) + (k_len - q_len)
    seen = real[:, :, None] & (token[:, :, None] <= position[:, None])  # [B,H,Q,width·k_block]
    rows = q.to(accurate).view(batch, lists, -1, q_len, dim)  # the heads of a group side by side
    scores = (rows @ keys[:, :, None].mT * scale).masked_fill(~seen[:, :, None], float("-inf"))
    return (torch.softmax(scores, -1) @ values[:, :, None]).view(batch, heads, q_len, dim).to(q.dtype)


def _rows(x: Tensor, token: Tensor) -> Tensor:
    """Gather x [B,Hkv,K,D] at token [B,H,T], list h reading KV head h // (H // Hkv): [B,H,T,D]."""
    shared = token.shape[1] // x.shape[1]
    b = torch.arange(x.shape[0], device=x.device)[:, None, None]
    h = torch.arange(token.shape[1], device=x.device)[:, None] // shared
    return x[b, h, token]
