"""Column and diagonal means of the last queries' attention, against loops over every query and key."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from attention_kernels.last_queries import vertical_slash

from methods.parts.base import LayerInputs
from tests.methods.support import layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def literal(q: torch.Tensor, k: torch.Tensor, scale: float, last_q: int) -> tuple[torch.Tensor, torch.Tensor]:
    """vertical, slash [K] of one head, float64, entry by entry."""
    (q_len, _), k_len = q.shape, k.shape[0]
    rows = min(last_q, q_len)
    vertical, slash = [0.0] * k_len, [0.0] * k_len
    for i in range(q_len - rows, q_len):
        position = i + k_len - q_len
        probs = (q[i].double() @ k[: position + 1].double().T * scale).softmax(-1)
        for j, prob in enumerate((probs / rows).tolist()):
            vertical[j] += prob
            slash[k_len - 1 - (position - j)] += prob
    return torch.tensor(vertical, dtype=torch.float64), torch.tensor(slash, dtype=torch.float64)


@lru_cache
def sums(shape: tuple[int, int, int]) -> tuple[LayerInputs, list[torch.Tensor]]:
    """Inputs of (queries, keys, last queries), and their true vertical and slash [B, H, K]."""
    q_len, k_len, last_q = shape
    x = layer(q_len, k_len, batch=2)
    pairs = [literal(x.q[b, h], x.k[b, h // 2], x.scale, last_q) for b in range(2) for h in range(4)]
    return x, [torch.stack(heads).view(2, 4, k_len) for heads in zip(*pairs, strict=True)]


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize(
    ("shape", "limit"),  # all heads at once, one at a time
    [
        ((70, 70, 16), 1),
        ((37, 101, 16), 1 << 26),
        ((37, 101, 16), 1),
        ((5, 60, 16), 1 << 26),
        ((1, 33, 64), 1 << 26),
        ((9, 9, 64), 1),
        ((300, 300, 20), 1 << 26),
    ],
)
def test_equals_the_sums_over_every_entry(
    kernel: str, shape: tuple[int, int, int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, true = sums(shape)
    q = x.q.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)  # as a projection leaves it
    for module in ("reference", "triton_kernel"):
        monkeypatch.setattr(f"attention_kernels.last_queries.{module}.SCORES", limit)
    means = vertical_slash(q, x.k.to(DEVICE), scale=x.scale, last_q=shape[2], kernel=kernel)
    for mean, exact in zip(means, true, strict=True):
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean.cpu().double(), exact, atol=1e-6, rtol=1e-4)


def test_both_sum_to_1() -> None:
    x = layer(40, 90)
    for sums in vertical_slash(x.q, x.k, scale=x.scale, last_q=16):
        torch.testing.assert_close(sums.sum(-1), torch.ones(1, 4))


def test_float64_stays() -> None:
    x = layer(20)
    x = replace(x, q=x.q.double(), k=x.k.double())
    assert vertical_slash(x.q, x.k, scale=x.scale, last_q=16)[1].dtype == torch.float64


def test_last_q_must_be_a_number_of_queries() -> None:
    x = layer(20)
    with pytest.raises(ValueError, match="last_q=0: must be at least 1 query"):
        vertical_slash(x.q, x.k, scale=x.scale, last_q=0)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_the_fast_kernel_takes_short_types(dtype: torch.dtype) -> None:
    x = layer(200, 333, device=DEVICE)
    q, k = x.q.to(dtype), x.k.to(dtype)
    plain, fast = (vertical_slash(q, k, scale=x.scale, last_q=64, kernel=kernel) for kernel in ("reference", "triton"))
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("group", "kv_heads", "dim"), [(7, 2, 64), (3, 3, 64), (4, 1, 256)])
def test_groups_and_head_dims_of_real_models(group: int, kv_heads: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, group * kv_heads, 40, dim, generator=generator).to(DEVICE)
    k = torch.randn(1, kv_heads, 141, dim, generator=generator).to(DEVICE)
    vertical, slash = vertical_slash(q, k, scale=dim**-0.5, last_q=32, kernel="triton")
    for head in (0, group * kv_heads - 1):
        expected = literal(q[0, head].cpu(), k[0, head // group].cpu(), dim**-0.5, 32)
        for mean, true in zip((vertical[0, head], slash[0, head]), expected, strict=True):
            torch.testing.assert_close(mean.cpu().double(), true, atol=1e-6, rtol=1e-4)


def test_the_fast_kernel_says_how_many_queries_it_takes() -> None:
    x = layer(200, device=DEVICE)
    with pytest.raises(ValueError, match="last_q=150: kernel=triton takes at most 128 queries"):
        vertical_slash(x.q, x.k, scale=x.scale, last_q=150, kernel="triton")
    plain = vertical_slash(x.q, x.k, scale=x.scale, last_q=150, kernel="reference")
    torch.testing.assert_close(vertical_slash(x.q, x.k, scale=x.scale, last_q=150), plain)
