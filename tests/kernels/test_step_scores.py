"""Thin products of one step against float64."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.step_scores import step_scores

CUDA = torch.cuda.is_available()
RUNS = [
    ("reference", "cpu", torch.float64),
    ("reference", "cpu", torch.bfloat16),
    pytest.param("triton", "cpu", torch.float32, marks=pytest.mark.skipif(CUDA, reason="no interpreter")),
    pytest.param("triton", "cpu", torch.float16, marks=pytest.mark.skipif(CUDA, reason="no interpreter")),
    pytest.param("triton", "cuda", torch.bfloat16, marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", torch.float32, marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(
    "shape", [(2, 4, 2, 37, 32), (1, 3, 1, 130, 256), (1, 2, 2, 5, 80), (3, 16, 2, 16, 16), (2, 14, 2, 37, 64)]
)
@pytest.mark.parametrize(("kernel", "device", "dtype"), RUNS)
def test_equals_float64(kernel: str, device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    batch, heads, key_heads, blocks, dim = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, dim, generator=generator).to(device, dtype)
    roomy = torch.randn(batch, key_heads, blocks + 3, dim, generator=generator).to(device, dtype)
    roomy[:, :, blocks:] = float("nan")
    keys = roomy[:, :, :blocks]  # cut from a buffer with room to grow, which must not be read
    out = step_scores(q, keys, scale=0.3, kernel=kernel)
    true = 0.3 * (q.double()[:, :, None] @ keys.double().repeat_interleave(heads // key_heads, 1).mT)[:, :, 0]
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (out.cpu() - true.cpu()).norm() <= 1e-5 * true.norm()


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"expected \[B,H,E\] and \[B,Hk,Nk,E\]"):
        step_scores(torch.zeros(1, 2, 8), torch.zeros(1, 2, 3, 16))
    with pytest.raises(ValueError, match="3 heads are no multiple of 2 key heads"):
        step_scores(torch.zeros(1, 3, 8), torch.zeros(1, 2, 3, 8))
