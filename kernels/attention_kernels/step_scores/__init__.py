"""One step's block scores: the newest token's vectors times what is kept of every key block, in float32."""

from __future__ import annotations

from torch import Tensor

from attention_kernels.backends import resolve_backend
from attention_kernels.step_scores.reference import step_scores_reference

MOST_DIM = 512


def step_scores(q: Tensor, keys: Tensor, *, scale: float = 1.0, kernel: str = "auto") -> Tensor:
    """Return the products q [B, H, E] · keys [B, Hk, Nk, E] × scale -> [B, H, Nk] in float32 (float64 stays); head h reads key
    head h // (H // Hk).

    A thin product, of as many rows as query heads share a key head: its floor is one read of `keys`. In float32 whatever the
    inputs: rounded to bfloat16, many of thousands of blocks would be equal. kernel: "triton" is one launch that reads keys
    once; "reference" is plain PyTorch; "auto" takes triton on CUDA, but for float64.
    """
    if q.ndim != 3 or keys.ndim != 4 or q.shape[0] != keys.shape[0] or q.shape[2] != keys.shape[3] or q.dtype != keys.dtype:
        raise ValueError(
            f"q {tuple(q.shape)} {q.dtype} and keys {tuple(keys.shape)} {keys.dtype}: expected [B,H,E] and [B,Hk,Nk,E]"
        )
    if q.shape[1] % keys.shape[1]:
        raise ValueError(f"{q.shape[1]} heads are no multiple of {keys.shape[1]} key heads")
    if resolve_backend(kernel, q) == "triton":
        if q.shape[2] > MOST_DIM:
            raise ValueError(
                f"kernel=triton takes vectors of at most {MOST_DIM} elements, not {q.shape[2]}; use kernel=reference"
            )
        from attention_kernels.step_scores.triton_kernel import step_scores_triton  # imported late: needs triton

        return step_scores_triton(q, keys, scale)
    return step_scores_reference(q, keys, scale)
