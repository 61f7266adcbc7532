"""torch.nn.functional.scaled_dot_product_attention, its back ends by name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
    "sdpa": None,
}
NO_GQA = ("sdpa_efficient",)
"""Back ends that need K and V repeated to the query heads."""


def sdpa_runs(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return None where the back end can run, else the reason why not."""
    if kernel in ("sdpa", "sdpa_math"):
        return None
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}; use sdpa"
    half = dtype in (torch.float16, torch.bfloat16)
    if kernel != "sdpa_efficient" and not half:
        return f"it takes float16 and bfloat16, not {dtype}"
    if kernel == "sdpa_cudnn" and (head_dim > 128 or head_dim % 8 or torch.cuda.get_device_capability(device)[0] < 8):
        return "it takes head dims up to 128, multiples of 8, on Ampere GPUs and later"
    if kernel == "sdpa_flash" and head_dim > 256:
        return "it takes head dims up to 256"
    return None


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, backend: str, key_mask: Tensor | None = None) -> Tensor:
    """Compute causal attention, the diagonal at the bottom right (torch's own is_causal puts it at the top left)."""
    q_len, k_len = q.shape[2], k.shape[2]
    gqa = q.shape[1] != k.shape[1]
    if gqa and backend in NO_GQA:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        gqa = False
    chosen = BACKENDS[backend]
    if q_len == 1 and key_mask is not None:  # a step of padded decoding: the group's heads become rows, nothing is repeated
        rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        out = torch.nn.functional.scaled_dot_product_attention(rows, k, v, attn_mask=key_mask[:, None, None], scale=scale)
        return out.reshape(q.shape)
    context: AbstractContextManager[None] = nullcontext() if chosen is None else sdpa_kernel(chosen)
    with context:
        if key_mask is None and q_len in (1, k_len):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q_len > 1, scale=scale, enable_gqa=gqa)
        if key_mask is None and not gqa:
            bias = causal_lower_right(q_len, k_len)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        return _masked(q, k, v, scale, key_mask, gqa)


def _masked(q: Tensor, k: Tensor, v: Tensor, scale: float, key_mask: Tensor | None, gqa: bool, step: int = 2048) -> Tensor:
    """Compute attention with an explicit mask, `step` queries at a time so that it stays small."""
    q_len, k_len = q.shape[2], k.shape[2]
    out = []
    for start in range(0, q_len, step):
        stop = min(start + step, q_len)
        seen = stop + k_len - q_len
        position = torch.arange(start, stop, device=q.device) + (k_len - q_len)
        mask = torch.arange(seen, device=q.device) <= position[:, None]
        if key_mask is not None:
            mask = mask & key_mask[:, None, None, :seen]
        part = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scale, enable_gqa=gqa
        )
        out.append(part)
    return out[0] if len(out) == 1 else torch.cat(out, 2)
