"""Every query against the mean key of every block: how much a block of queries makes of a block of keys, without pooling the
queries."""

from __future__ import annotations

from torch import Tensor

from attention_kernels.backends import KERNELS, resolve_backend
from attention_kernels.key_mean_map.reference import key_mean_map_reference

__all__ = ["KERNELS", "key_mean_map"]

MOST_BLOCK, MOST_DIM = 128, 256


def key_mean_map(
    q: Tensor, means: Tensor, *, q_block: int, k_block: int, k_len: int, scale: float | None = None, kernel: str = "auto"
) -> Tensor:
    """Return log Σ exp(scale · q_t · mean_j) over the queries t of block i for which key block j has ended: float32
    [B,Hq,Mq,Nk].

    q [B,Hq,Q,D], the last Q of `k_len` positions; means [B,Hkv,Nk,D] of the same type, one vector for each key block. A block
    has ended for a query that stands at its last position or later, so none reads a later key; -inf where there is no such
    query. scale: 1 / √D by default.

    Floor: 2·Q·Nk·D / 2 FLOPs a head, Q read once for each head and 4·Mq·Nk bytes written; the scores of single queries are
    not stored. Raises ValueError for shapes that don't fit or a kernel that can't run.
    """
    if q.ndim != 4 or means.ndim != 4 or q.shape[0] != means.shape[0] or q.shape[3] != means.shape[3] or q.dtype != means.dtype:
        raise ValueError(
            f"q {q.dtype} {tuple(q.shape)}, means {means.dtype} {tuple(means.shape)}: expected [B,Hq,Q,D] and [B,Hkv,Nk,D]"
        )
    if q.shape[1] % means.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {means.shape[1]} KV heads")
    if q.shape[2] > k_len or means.shape[2] != -(-k_len // k_block):
        raise ValueError(
            f"{q.shape[2]} queries and {means.shape[2]} key blocks for {k_len} keys in blocks of {k_block}: "
            f"expected at most {k_len} and {-(-k_len // k_block)}"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
        raise ValueError(f"scale={scale}: must be above 0")
    if resolve_backend(kernel, q) == "triton":
        if q_block > MOST_BLOCK or q.shape[3] > MOST_DIM:
            raise ValueError(
                f"kernel=triton takes query blocks of at most {MOST_BLOCK} tokens and heads of at most {MOST_DIM} elements, "
                f"not {q_block} and {q.shape[3]}; use kernel=reference"
            )
        from attention_kernels.key_mean_map.triton_kernel import key_mean_map_triton  # imported late: needs triton

        return key_mean_map_triton(q, means, q_block=q_block, k_block=k_block, k_len=k_len, scale=scale)
    return key_mean_map_reference(q, means, q_block=q_block, k_block=k_block, k_len=k_len, scale=scale)
