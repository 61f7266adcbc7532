"""The pooled attention map against the whole map in float64."""

from __future__ import annotations

import math

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.block_map import block_map, log_sum_exp
from attention_kernels.block_map.tuning import POOL, tile_for

from tests.kernels.oracle import CASES, Case, probabilities, token_mask

GPU = pytest.mark.gpu


TILES = [
    *CASES,
    Case(1, 2, 1, 100, 133, 64, 64, 128, 2),  # blocks larger than the interpreter's tiles
    Case(1, 1, 1, 33, 129, 16, 128, 16, 1),
    Case(1, 2, 1, 40, 61, 64, 4, 2, 2),  # blocks of a few tokens, and of one
    Case(1, 1, 1, 33, 40, 16, 8, 1, 1),
    Case(1, 2, 1, 70, 83, 512, 8, 8, 2),  # head dims in several pieces, and in one piece and a part
    Case(2, 2, 1, 37, 37, 300, 16, 4, 2),
    Case(1, 1, 1, 33, 50, 2048, 16, 16, 1),
]


POOLS = ("max", "mass", "mean")
# The reference takes every pool in every case; Triton, which sees the pool only once a tile's probabilities are there, the
# cases with the pools in turn, and all of them in the first two.
RUNS = [
    *(("reference", "cpu", dtype, pool, case) for dtype in (torch.float64, torch.float32) for pool in POOLS for case in TILES),
    *(
        pytest.param("triton", device, dtype, POOLS[(i + turn) % 3], case, marks=marks)
        for device, dtype, marks in (
            ("cpu", torch.float32, pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")),
            ("cuda", torch.bfloat16, GPU),
            ("cuda", torch.float32, GPU),
        )
        for i, case in enumerate(TILES)
        for turn in range(3 if i < 2 else 1)
    ),
]


def pooled(case: Case, q: torch.Tensor, k: torch.Tensor, pool: str) -> torch.Tensor:
    full = BlockIndex.full(case.batch, case.heads, **case.grid)
    seen = token_mask(full, case.heads)
    probs = probabilities(q, k, seen)
    rows, cols = -(-case.q_len // case.q_block), -(-case.k_len // case.k_block)
    out = torch.zeros(case.batch, case.heads, rows, cols, dtype=torch.float64)
    for i in range(rows):
        for j in range(cols):
            block = (slice(i * case.q_block, (i + 1) * case.q_block), slice(j * case.k_block, (j + 1) * case.k_block))
            tile = probs[:, :, *block]
            if pool == "max":
                out[:, :, i, j] = tile.amax((2, 3))
            else:
                pairs = int(seen[0, 0][block].sum())
                out[:, :, i, j] = tile.sum((2, 3)) / (tile.shape[2] if pool == "mass" else max(1, pairs))
    return out


@pytest.mark.parametrize(("kernel", "device", "dtype", "pool", "case"), RUNS, ids=str)
def test_equals_the_whole_map_pooled(kernel: str, device: str, dtype: torch.dtype, pool: str, case: Case) -> None:
    q, k, _ = case.tensors(dtype, device)
    result = block_map(q, k, q_block=case.q_block, k_block=case.k_block, pool=pool, kernel=kernel)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.cpu().double(), pooled(case, q, k, pool), rtol=1e-4, atol=1e-6)
    assert (result[:, :, ~causal_mask(**case.grid, device=device)] == 0).all()
    if pool == "mass":
        torch.testing.assert_close(result.sum(-1).cpu(), torch.ones(result.shape[:-1]), rtol=1e-4, atol=1e-5)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1, 2, 1, 300, 340, 32, 32, 16, 2)
    q, k, _ = case.tensors(torch.float32, "cpu")
    whole = block_map(q, k, q_block=32, k_block=16, kernel="reference")
    monkeypatch.setattr("attention_kernels.block_map.reference.CHUNK_BYTES", 1)
    torch.testing.assert_close(block_map(q, k, q_block=32, k_block=16, kernel="reference"), whole)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_shared_log_sum_exp(kernel: str) -> None:
    """The first pass alone is right, and handing it over changes nothing; the map follows it, so it is really used."""
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(2, 2, 1, 40, 59, 64, 32, 16, 2)
    q, k, _ = case.tensors(torch.float32, device)
    lse = log_sum_exp(q, k, kernel=kernel)
    scores = q.cpu().double() @ k.cpu().double().repeat_interleave(2, 1).mT * case.dim**-0.5
    future = torch.ones(40, 59, dtype=torch.bool).triu(59 - 40 + 1)
    true = scores.masked_fill(future, float("-inf")).logsumexp(-1)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.cpu().double(), true, rtol=1e-5, atol=1e-5)
    for pool in ("max", "mass"):
        grid = {"q_block": 32, "k_block": 16, "pool": pool, "kernel": kernel}
        expected = block_map(q, k, **grid)
        torch.testing.assert_close(block_map(q, k, **grid, lse=lse), expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(block_map(q, k, **grid, lse=lse + math.log(2)), expected / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_strided_inputs_scale_and_unwritten_memory(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(1, 4, 2, 50, 81, 64, 16, 32, 4)
    q, k, _ = case.tensors(torch.float32, device)
    grid = {"q_block": 16, "k_block": 32, "kernel": kernel, "pool": "mass"}
    expected = block_map(q * 0.5, k, **grid)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: real(*a, **kw).fill_(float("nan")))
    q, k = q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT
    torch.testing.assert_close(block_map(q, k, **grid, scale=0.5 * case.dim**-0.5), expected, rtol=1e-5, atol=1e-7)


@GPU
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("pool", ["max", "mass"])
def test_long_on_a_gpu(pool: str, block: int) -> None:
    case = Case(1, 4, 2, 3001, 5001, 128, block, block, 4)
    q, k, _ = case.tensors(torch.bfloat16, "cuda")
    exact = block_map(q.double(), k.double(), q_block=block, k_block=block, pool=pool, kernel="reference")
    result = block_map(q, k, q_block=block, k_block=block, pool=pool, kernel="triton")
    torch.testing.assert_close(result, exact, rtol=1e-3, atol=1e-7)


def test_bad_input_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 32, 16)
    near = q.cuda() if torch.cuda.is_available() else q  # where the Triton kernel can run
    with pytest.raises(ValueError, match="choose one of: max, mass, mean"):
        block_map(q, q, q_block=16, k_block=16, pool="median")
    with pytest.raises(ValueError, match="choose one of: auto, reference, triton"):
        block_map(q, q, q_block=16, k_block=16, kernel="cuda")
    with pytest.raises(ValueError, match="scale=0: must be above 0"):
        block_map(q, q, q_block=16, k_block=16, scale=0)
    with pytest.raises(ValueError, match=r"expected float32 \[B, Hq, Q\] = \(1, 1, 32\)"):
        block_map(q, q, q_block=16, k_block=16, lse=torch.zeros(1, 32))
    with pytest.raises(ValueError, match="takes blocks of"):
        block_map(near, near, q_block=48, k_block=16, kernel="triton")
    with pytest.raises(ValueError, match="takes head dims up to 2048, not 2049; use kernel=reference"):
        block_map(near.new_zeros(1, 1, 4, 2049), near.new_zeros(1, 1, 4, 2049), q_block=16, k_block=16, kernel="triton")
    with pytest.raises(ValueError, match="queries are the last tokens of the keys"):
        block_map(q, q[:, :, :16], q_block=16, k_block=16)
    with pytest.raises(ValueError, match="no multiple of"):
        block_map(q.expand(1, 3, 32, 16), q.expand(1, 2, 32, 16), q_block=16, k_block=16)
    with pytest.raises(ValueError, match="float64"):
        block_map(near.double(), near.double(), q_block=16, k_block=16, kernel="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu"):
        block_map(q, q, q_block=16, k_block=16, kernel="triton")


def test_tiles_fit_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for kib, itemsize, dim, rows, depth in (
        (227, 2, 128, 256, 3),
        (227, 2, 256, 256, 3),
        (99, 2, 256, 64, 2),
        (227, 4, 256, 64, 2),
    ):
        monkeypatch.setattr("attention_kernels.block_map.tuning.shared_bytes", lambda device, kib=kib: kib << 10)
        tile = tile_for(POOL, gpu, itemsize, dim)
        assert (tile.rows, tile.depth, tile.piece) == (rows, depth, dim)
    for kib, itemsize, cols, depth in ((227, 2, 256, 3), (99, 2, 256, 2), (64, 2, 128, 2), (227, 4, 64, 2)):
        monkeypatch.setattr("attention_kernels.block_map.tuning.shared_bytes", lambda device, kib=kib: kib << 10)
        tile = tile_for(POOL, gpu, itemsize, 1024)
        assert (tile.cols, tile.depth) == (cols, depth)
        assert tile.depth * (tile.rows + tile.cols) * tile.piece * itemsize <= kib << 10


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_wide_heads_with_strided_inputs_and_poisoned_ends(kernel: str) -> None:
    """Rows past the end are read in no piece: what lies behind the tensors is NaN."""
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(1, 2, 1, 45, 77, 384, 8, 8, 2)
    q, k, _ = case.tensors(torch.float32, device)
    expected = pooled(case, q, k, "mass")
    q, k = (torch.nn.functional.pad(x, (0, 128, 0, 64), value=float("nan"))[:, :, : x.shape[2], :384] for x in (q, k))
    result = block_map(q, k, q_block=8, k_block=8, pool="mass", kernel=kernel)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=1e-4, atol=1e-6)


@GPU
@pytest.mark.parametrize("pool", ["max", "mass"])
def test_long_and_wide_on_a_gpu(pool: str) -> None:
    case = Case(1, 4, 2, 1201, 1901, 1024, 16, 16, 4)
    q, k, _ = case.tensors(torch.bfloat16, "cuda")
    exact = block_map(q.double(), k.double(), q_block=16, k_block=16, pool=pool, kernel="reference")
    result = block_map(q, k, q_block=16, k_block=16, pool=pool, kernel="triton")
    torch.testing.assert_close(result, exact, rtol=1e-3, atol=1e-7)
