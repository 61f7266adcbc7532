"""Queries against mean keys, block by block, against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from attention_kernels.key_mean_map import key_mean_map

GPU = pytest.mark.gpu

SHAPES = [
    # batch, heads, KV heads, queries, keys, head dim, query block, key block
    (2, 4, 2, 100, 100, 64, 16, 16),
    (1, 4, 1, 70, 131, 32, 32, 16),  # a chunk that starts inside a key block
    (1, 2, 2, 95, 200, 24, 48, 32),  # a head dim and a block that are no powers of two
    (1, 2, 1, 300, 5000, 16, 128, 16),  # more mean keys than one tile, in tiles that all rows see and in the last
    (1, 1, 1, 1, 40, 64, 16, 16),
    (1, 1, 1, 5, 5, 64, 8, 16),  # no block has ended
    (1, 9, 3, 90, 131, 64, 32, 16),
    (1, 7, 1, 70, 70, 256, 16, 16),
]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, dict[str, int]]:
    batch, heads, kv_heads, q_len, k_len, dim, q_block, k_block = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, q_len, dim, generator=generator)
    means = torch.randn(batch, kv_heads, -(-k_len // k_block), dim, generator=generator)
    return q.to(device, dtype), means.to(device, dtype), {"q_block": q_block, "k_block": k_block, "k_len": k_len}


def literal(q: torch.Tensor, means: torch.Tensor, scale: float, q_block: int, k_block: int, k_len: int) -> torch.Tensor:
    batch, heads, q_len, _ = q.shape
    rows = -(-q_len // q_block)
    out = torch.full((batch, heads, rows, means.shape[2]), -math.inf, dtype=torch.float64)
    group = heads // means.shape[1]
    scores = scale * q.cpu().double() @ means.cpu().double().repeat_interleave(group, 1).mT
    for i in range(rows):
        for j in range(means.shape[2]):
            seen = [t for t in range(i * q_block, min((i + 1) * q_block, q_len)) if t + k_len - q_len >= (j + 1) * k_block - 1]
            if seen:
                out[:, :, i, j] = scores[:, :, seen, j].logsumexp(-1)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kernel", "device", "dtype"),
    [
        ("reference", "cpu", torch.float64),
        ("reference", "cpu", torch.float32),
        ("triton", "cpu", torch.float32),
        pytest.param("triton", "cuda", torch.bfloat16, marks=GPU),
        pytest.param("triton", "cuda", torch.float32, marks=GPU),
    ],
)
def test_equals_the_formula(kernel: str, device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if kernel == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    q, means, grid = inputs(shape, dtype, device)
    result = key_mean_map(q, means, **grid, scale=0.3, kernel=kernel)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.cpu().double(), literal(q, means, 0.3, **grid), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_strided_inputs_chunks_and_unwritten_memory(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    q, means, grid = inputs((2, 4, 2, 70, 131, 32, 16, 16), torch.float32, device)
    expected = key_mean_map(q, means, **grid, kernel=kernel)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: real(*a, **kw).fill_(float("nan")))
    monkeypatch.setattr("attention_kernels.key_mean_map.reference.CHUNK_BYTES", 1)
    q, means = q.transpose(1, 2).contiguous().transpose(1, 2), means.mT.contiguous().mT
    torch.testing.assert_close(key_mean_map(q, means, **grid, scale=32**-0.5, kernel=kernel), expected)


def test_large_scores_do_not_overflow() -> None:
    q, means, grid = inputs((1, 1, 1, 64, 64, 16, 16, 16), torch.float32)
    for kernel in ("reference", *([] if torch.cuda.is_available() else ["triton"])):
        result = key_mean_map(q, means, **grid, scale=1000.0, kernel=kernel)
        torch.testing.assert_close(result.double(), literal(q, means, 1000.0, **grid), rtol=1e-5, atol=1e-2)


def test_bad_input_is_one_clear_line() -> None:
    q, means = torch.randn(1, 2, 32, 16), torch.randn(1, 1, 2, 16)
    grid = {"q_block": 16, "k_block": 16, "k_len": 32}
    with pytest.raises(ValueError, match=r"expected \[B,Hq,Q,D\] and \[B,Hkv,Nk,D\]"):
        key_mean_map(q, means.double(), **grid)
    with pytest.raises(ValueError, match="2 query heads are no multiple of 3 KV heads"):
        key_mean_map(q, means.expand(1, 3, 2, 16), **grid)
    with pytest.raises(ValueError, match="2 key blocks for 40 keys in blocks of 16: expected at most 40 and 3"):
        key_mean_map(q, means, q_block=16, k_block=16, k_len=40)
    with pytest.raises(ValueError, match="scale=0: must be above 0"):
        key_mean_map(q, means, **grid, scale=0)
    near = q.cuda() if torch.cuda.is_available() else q
    with pytest.raises(ValueError, match="query blocks of at most 128 tokens"):
        key_mean_map(near, means.to(near.device), q_block=256, k_block=16, k_len=32, kernel="triton")
