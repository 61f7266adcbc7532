"""Block pooling against loops over blocks in float64, with RoPE undone by complex numbers."""

from __future__ import annotations

import attention_kernels.pool.reference
import pytest
import torch
from attention_kernels.pool import Pool, pool, pool_pair
from torch import Tensor

GPU = pytest.mark.gpu
CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
WAYS: list[tuple[Pool, ...]] = [("mean",), ("max", "min", "mean"), ("min", "max"), ("mean", "max")]


def tables(length: int, rotary: int, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos, sin [length, rotary / 2] float32."""
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, rotary, 2) / rotary)
    return angles.cos() * scaling, angles.sin() * scaling


def pooled_by_loops(x: Tensor, block: int, how: tuple[Pool, ...], cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """[B, H, blocks, len(how) * D] in float64, block by block."""
    x = x.cpu().double()
    if cos is not None and sin is not None:
        half = cos.shape[1]
        turned = torch.complex(x[..., :half], x[..., half : 2 * half]) / torch.complex(cos.double(), sin.double())
        x = torch.cat((turned.real, turned.imag, x[..., 2 * half :]), -1)
    plain = {"mean": lambda part: part.mean(2), "max": lambda part: part.amax(2), "min": lambda part: part.amin(2)}
    parts = [x[:, :, start : start + block] for start in range(0, x.shape[2], block)]
    return torch.stack([torch.cat([plain[way](part) for way in how], -1) for part in parts], 2)


SHAPES = [
    # batch, heads, length, head dim, block, rotary elements, scaling
    (2, 3, 36, 16, 16, 16, 1.0),
    (1, 9, 37, 24, 24, 8, 1.3),
    (2, 2, 64, 96, 32, 96, 1.0),
    (2, 2, 20, 20, 8, 0, 1.0),
    (2, 1, 5, 32, 48, 32, 0.7),
    (1, 3, 70, 64, 64, 64, 1.0),
]
# The reference pools every shape in every way, Triton each shape in two of the ways in turn, the interpreter's float16 in one.
RUNS = [
    pytest.param(*kernel, WAYS[(i + turn) % len(WAYS)], *shape, marks=marks)
    for kernel, turns, marks in (
        (("reference", "cpu", torch.float64), 4, ()),
        (("reference", "cpu", torch.float32), 4, ()),
        (("triton", "cpu", torch.float32), 2, CPU_TRITON),
        (("triton", "cpu", torch.float16), 1, CPU_TRITON),
        (("triton", "cuda", torch.bfloat16), 2, GPU),
        (("triton", "cuda", torch.float32), 2, GPU),
    )
    for i, shape in enumerate(SHAPES)
    for turn in range(turns)
]


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "how", "batch", "heads", "length", "dim", "block", "rotary", "scaling"), RUNS
)
def test_equals_the_blocks_one_by_one(
    kernel: str,
    device: str,
    dtype: torch.dtype,
    how: tuple[Pool, ...],
    batch: int,
    heads: int,
    length: int,
    dim: int,
    block: int,
    rotary: int,
    scaling: float,
) -> None:
    x = torch.randn(batch, heads, length, dim, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    cos, sin = tables(length, rotary, scaling) if rotary else (None, None)
    given = {} if cos is None or sin is None else {"cos": cos.to(device), "sin": sin.to(device)}
    pooled = pool(x, block, how, kernel=kernel, **given)
    assert pooled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(pooled.cpu().double(), pooled_by_loops(x, block, how, cos, sin), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_strided_input_and_tables(kernel: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    whole = torch.randn(1, 90, 3, 40, generator=torch.Generator().manual_seed(1)).to(device)
    x = whole.transpose(1, 2)[..., 4:36]  # heads after tokens, elements off the start
    cos, sin = (table.to(device)[7:97] for table in tables(100, 64))  # a stretch of a longer table, half its columns
    cos, sin = cos[:, :16], sin[:, :16]
    pooled = pool(x, 16, ("mean", "min"), cos=cos, sin=sin, kernel=kernel)
    torch.testing.assert_close(
        pooled.cpu().double(), pooled_by_loops(x, 16, ("mean", "min"), cos.cpu(), sin.cpu()), rtol=1e-5, atol=1e-5
    )
    odd = whole.permute(0, 2, 3, 1)  # tokens last in memory: the last dimension isn't contiguous
    pooled = pool(odd, 16, ("max",), kernel=kernel)
    torch.testing.assert_close(pooled.cpu().double(), pooled_by_loops(odd, 16, ("max",), None, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_nan_and_infinity_are_passed_on(kernel: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.zeros(1, 1, 48, 16, device=device)
    x[0, 0, 3, 2] = float("nan")
    x[0, 0, 20, 5], x[0, 0, 21, 5] = float("inf"), -float("inf")
    pooled = pool(x, 16, ("mean", "max", "min"), kernel=kernel).cpu().unflatten(-1, (3, 16))[0, 0]
    torch.testing.assert_close(
        pooled, pooled_by_loops(x, 16, ("mean", "max", "min"), None, None)[0, 0].unflatten(-1, (3, 16)).float(), equal_nan=True
    )
    assert pooled[0, :, 2].isnan().all() and pooled[1, 1, 5] == float("inf") and not pooled[2].isnan().any()


def test_chunks_of_the_reference_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (cos, sin) = torch.randn(1, 2, 100, 16), tables(100, 16)
    whole = pool(x, 16, ("max", "mean"), cos=cos, sin=sin, kernel="reference")
    monkeypatch.setattr(attention_kernels.pool.reference, "CHUNK_ELEMENTS", 1)
    assert torch.equal(pool(x, 16, ("max", "mean"), cos=cos, sin=sin, kernel="reference"), whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"how": ("median",)}, "one or more of mean, max, min"),
        ({"how": ()}, "one or more of mean, max, min"),
        ({"block": 0}, "block=0: must be at least 1"),
        ({"kernel": "cuda"}, "choose one of: auto, reference, triton"),
        ({"kernel": "triton", "block": 512}, "blocks of at most 256 tokens"),
        ({"kernel": "triton", "x": torch.zeros(1, 1, 32, 16, dtype=torch.float64)}, "not torch.float64"),
        ({"cos": torch.zeros(32, 8)}, "cos and sin go together"),
        ({"cos": torch.zeros(31, 8), "sin": torch.zeros(31, 8)}, r"expected \[32, R/2\] twice"),
        ({"cos": torch.zeros(32, 9), "sin": torch.zeros(32, 9)}, "18 rotary elements for heads of 16"),
        ({"x": torch.zeros(1, 32, 16)}, r"expected \[B,H,P,D\]"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict, says: str) -> None:
    given = {"x": torch.zeros(1, 1, 32, 16), "block": 16, "how": ("mean",), **change}
    with pytest.raises(ValueError, match=says) as caught:
        pool(**given)
    assert "\n" not in str(caught.value)


PAIRS = [
    # query heads, key heads, queries, keys, head dim, block, rotary elements, ways of queries, parts of queries
    (4, 2, 21, 37, 32, 16, 32, ("mean",), 1),
    (4, 2, 21, 37, 32, 16, 32, ("mean",), 2),
    (2, 1, 20, 20, 64, 24, 64, ("mean",), 2),  # one head of keys: a warp a program
    (3, 1, 9, 17, 24, 8, 8, ("mean",), 1),  # some elements don't rotate
    (2, 2, 17, 17, 32, 16, 32, ("max", "mean"), 1),
]


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=CPU_TRITON), pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize(("heads", "own", "queries", "keys", "dim", "block", "rotary", "how", "split"), PAIRS)
def test_a_pair_is_pooled_as_each_alone(
    heads: int,
    own: int,
    queries: int,
    keys: int,
    dim: int,
    block: int,
    rotary: int,
    how: tuple[Pool, ...],
    split: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attention_kernels.pool.triton_kernel.WHOLE_FROM", 0 if split == 1 else 1000)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, h, n, dim, generator=generator).to(device) for h, n in ((heads, queries), (own, keys)))
    q[0, -1, 3, 1] = k[0, 0, 5, 2] = float("nan")
    cos, sin = tables(keys, rotary, 1.2)
    ways: tuple[Pool, ...] = ("max", "min", "mean")
    pooled = pool_pair(q, k, block, how, ways, cos=cos.to(device), sin=sin.to(device), kernel="triton")
    last = keys - queries
    expected = (pooled_by_loops(q, block, how, cos[last:], sin[last:]), pooled_by_loops(k, block, ways, cos, sin))
    for result, right in zip(pooled, expected, strict=True):
        torch.testing.assert_close(result.cpu().double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
