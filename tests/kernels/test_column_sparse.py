"""Attention over blocks and single columns: every kernel against the formula in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import block_sparse_attention
from attention_kernels.block_sparse.triton_tuning import Tile
from attention_kernels.column_index import ColumnIndex
from attention_kernels.column_sparse import column_sparse_attention, resolve_kernel
from attention_kernels.kept_mass import kept_mass
from attention_kernels.open_columns import with_columns, with_row_keys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import CASES, COARSE, Case, cases, error, probabilities, token_mask

GPU = pytest.mark.gpu
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
RUNS = [
    pytest.param(kernel, device, dtype, case, marks=marks)
    for kernel, device, dtype, cases_of_it, marks in (
        ("reference", "cpu", torch.float64, CASES + COARSE[:2], ()),
        ("reference", "cpu", torch.float32, CASES + COARSE[:2], ()),
        ("reference", "cpu", torch.float16, CASES + COARSE[:2], ()),
        ("triton", "cpu", torch.float32, CASES, CPU_TRITON),
        ("triton", "cpu", torch.float16, CASES[:3], CPU_TRITON),
        ("triton", "cuda", torch.bfloat16, CASES + COARSE[:2], GPU),
        ("triton", "cuda", torch.float16, CASES[:3], GPU),
        ("triton", "cuda", torch.float32, CASES[:5], GPU),
    )
    for case in cases_of_it
]


def columns_of(case: Case, share: float, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random ascending columns [B, H, V], and how many each head has; one head has all V, another none where it can."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, most = case.batch, case.index_heads, round(share * case.k_len)
    order = torch.rand(batch, heads, case.k_len, generator=generator).argsort(-1)
    counts = torch.randint(0, most + 1, (batch, heads), generator=generator)
    counts[0, 0], counts[-1, -1] = most, 0 if batch * heads > 1 else most
    picked = order[..., :most].masked_fill(torch.arange(most) >= counts[..., None], case.k_len)
    return picked.sort(-1).values.int(), counts.int()


def index_of(case: Case, device: str = "cpu", share: float = 0.3, kernel: str = "auto") -> ColumnIndex:
    columns, counts = columns_of(case, share)
    return with_columns(case.index(device, share=0.2), columns.to(device), counts.to(device), kernel=kernel)


def true_mask(index: ColumnIndex, heads: int) -> Tensor:
    """bool [B, Hq, Q, K], from blocks and columns alone: nothing that follows from them is used."""
    columns = torch.zeros(*index.columns.shape[:2], index.k_len + 1, dtype=torch.bool)
    columns = columns.scatter(-1, index.columns.cpu().long(), True)[..., : index.k_len]
    start = (torch.arange(index.q_len) // index.q_block * index.q_block + index.k_len - index.q_len) // index.k_block
    before = torch.arange(index.k_len) < (start * index.k_block)[:, None]  # own blocks hold the columns from there on
    columns = columns.repeat_interleave(heads // columns.shape[1], 1)
    return token_mask(index.blocks, heads) | (columns[:, :, None] & before)


def attention(q: Tensor, k: Tensor, v: Tensor, index: ColumnIndex) -> Tensor:
    """float64 [B, Hq, Q, D]."""
    values = v.cpu().double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    return probabilities(q, k, true_mask(index, q.shape[1])) @ values


def check(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    q, k, v = case.tensors(dtype, device)
    index = index_of(case, device)
    torch.full_like(q, float("nan"))  # freed at once: what the kernel doesn't write holds NaN
    out = column_sparse_attention(q, k, v, index, kernel=kernel)
    assert out.dtype == dtype and out.shape == q.shape and out.device == q.device
    assert error(out, attention(q, k, v, index)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("kernel", "device", "dtype", "case"), RUNS, ids=str)
def test_equals_the_formula(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    check(kernel, device, dtype, case)


@settings(deadline=None, max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(longest=90), share=st.sampled_from([0.0, 0.2, 1.0]))
def test_equals_the_formula_at_any_shape(case: Case, share: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = case.tensors(torch.float32, device)
    index = index_of(case, device, share)
    index.validate()
    for kernel in ("reference", "triton"):
        assert error(column_sparse_attention(q, k, v, index, kernel=kernel), attention(q, k, v, index)) < 1e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_open_columns_of_both_kernels_agree(case: Case) -> None:
    for share in (0.0, 0.3, 1.0) if case in CASES[:2] else (0.3,):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        plain, fast = (index_of(case, device, share, kernel) for kernel in ("reference", "triton"))
        plain.validate()
        for name in ("open", "open_counts", "reach"):
            assert torch.equal(getattr(plain, name), getattr(fast, name)), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_densities_count_what_is_attended_to(case: Case) -> None:
    index = index_of(case)
    mask = true_mask(index, case.index_heads)
    pairs = mask.sum((-1, -2)).double()
    torch.testing.assert_close(index.pairs(), pairs)
    causal = torch.ones(case.q_len, case.k_len).tril(case.k_len - case.q_len).sum()
    torch.testing.assert_close(index.token_density(), (pairs / causal).float())
    torch.testing.assert_close(index.blocks.pairs(), token_mask(index.blocks, case.index_heads).sum((-1, -2)).double())
    rows = range(0, case.q_len, case.q_block)
    first = mask[:, :, list(rows)] & ~token_mask(index.blocks, case.index_heads)[:, :, list(rows)]
    tiles = index.blocks.counts.sum(-1) + (-(-first.sum(-1) // case.k_block)).sum(-1)
    assert torch.equal(index.tiles(), tiles)
    assert bool((index.density() <= 1).all())


def test_columns_in_kept_blocks_add_nothing() -> None:
    case = Case(1, 2, 1, 100, 130, 64, 16, 16, 2)
    full = BlockIndex.full(1, 2, **case.grid)
    index = with_columns(full, *columns_of(case, 0.5))
    assert bool((index.density() == 1).all()) and bool((index.token_density() == 1).all())
    assert int(index.reach.max()) == 0
    q, k, v = case.tensors(torch.float32, "cpu")
    dense = block_sparse_attention(q, k, v, full, kernel="reference")
    torch.testing.assert_close(column_sparse_attention(q, k, v, index, kernel="reference"), dense)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_strided_inputs_and_a_scale(kernel: str) -> None:
    case = Case(2, 4, 2, 70, 100, 64, 32, 16, 4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = case.tensors(torch.float32, device)
    index = index_of(case, device)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    expected = attention(q * 2, k, v, index)
    assert error(column_sparse_attention(*strided, index, scale=0.25, kernel=kernel), expected) < 1e-5
    apart = [torch.stack((x, x), -1)[..., 0] for x in (q, k, v)]
    assert error(column_sparse_attention(*apart, index, scale=0.25, kernel=kernel), expected) < 1e-5


@pytest.mark.parametrize(
    "tile", [Tile(16, 16, 4, 2), Tile(32, 16, 4, 3, True), Tile(32, 32, 4, 1), Tile(16, 32, 4, 2, True)], ids=str
)
def test_any_tile_gives_the_same(tile: Tile) -> None:
    from attention_kernels.column_sparse.triton_kernel import run_tile

    case = Case(1, 4, 2, 70, 131, 64, 32, 32, 4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = case.tensors(torch.float16, device)
    index = index_of(case, device)
    assert error(run_tile(q, k, v, index, scale=0.125, tile=tile), attention(q, k, v, index)) < TOLERANCE[torch.float16]


def test_kept_mass_counts_columns() -> None:
    case = Case(1, 4, 2, 170, 200, 64, 16, 16, 4)
    q, k, _ = case.tensors(torch.float32, "cpu")
    index = index_of(case)
    causal = torch.ones(case.q_len, case.k_len, dtype=torch.bool).tril(case.k_len - case.q_len)
    mass = (probabilities(q, k, causal.expand(1, 4, -1, -1)) * true_mask(index, 4)).sum(-1)
    by_row = torch.stack([part.mean(-1) for part in mass.split(16, dim=-1)])
    mean_mass = kept_mass(q, k, index, scale=0.125, rows=10_000)
    torch.testing.assert_close(mean_mass, by_row.mean(0).float(), rtol=1e-4, atol=1e-5)
    late = kept_mass(q, k, index, scale=0.125, rows=10_000, after=100)
    torch.testing.assert_close(late, by_row[6:].mean(0).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [Case(1, 4, 2, 70, 101, 16, 16, 16, 4), Case(2, 2, 1, 90, 90, 16, 32, 32, 2)], ids=str)
def test_rows_with_keys_of_their_own(case: Case) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = case.tensors(torch.float32, device)
    blocks = case.index(device, share=0.2)
    keys = torch.rand(*blocks.counts.shape, case.k_len, generator=torch.Generator().manual_seed(3)).to(device) < 0.05
    keys[:, :, 1] = False  # a row without any
    few = [slice(0, 1), slice(1, None)]  # a few heads at a time
    index = with_row_keys((replace(blocks, counts=blocks.counts[:, h], indices=blocks.indices[:, h]), keys[:, h]) for h in few)
    index.validate()
    rows = torch.arange(case.q_len) // case.q_block
    start = (rows * case.q_block + case.k_len - case.q_len) // case.k_block * case.k_block
    mask = token_mask(blocks, case.heads) | (keys.cpu()[:, :, rows] & (torch.arange(case.k_len) < start[:, None]))
    expected = probabilities(q, k, mask) @ v.cpu().double().repeat_interleave(case.heads // case.kv_heads, 1)
    for kernel in ("reference", "triton"):
        assert error(column_sparse_attention(q, k, v, index, kernel=kernel), expected) < 1e-5
    torch.testing.assert_close(index.pairs().sum(), mask.sum().double())
    with pytest.raises(ValueError, match="open does not follow"):
        replace(index, open=index.open | -1).validate()


def test_an_index_that_contradicts_itself_is_refused() -> None:
    index = index_of(CASES[0])
    for change, message in (
        ({"open": index.open ^ 1}, "open does not follow"),
        ({"reach": index.reach + 1}, "reach does not follow"),
        ({"columns": index.columns.flip(-1)}, "columns must"),
        ({"columns": index.columns.long()}, "don't fit"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(index, **change).validate()


def test_bad_input_is_one_clear_line() -> None:
    case = CASES[0]
    q, k, v = case.tensors(torch.float32, "cpu")
    index = index_of(case)
    with pytest.raises(ValueError, match=r"kernel=hopper takes no single columns; choose one of: auto, reference, triton"):
        column_sparse_attention(q, k, v, index, kernel="hopper")
    with pytest.raises(ValueError, match="the index is for 100 queries"):
        column_sparse_attention(q[:, :, :90], k, v, index)
    with pytest.raises(ValueError, match="takes float16, bfloat16 and float32"):
        column_sparse_attention(q.double(), k.double(), v.double(), index, kernel="triton")
    with pytest.raises(ValueError, match="takes blocks of"):
        resolve_kernel("triton", device=q.device, dtype=q.dtype, head_dim=64, q_block=48, k_block=48)
    with pytest.raises(ValueError, match="need batch and heads"):
        with_columns(index.blocks, index.columns[:, :1], index.column_counts[:, :1])
    with pytest.raises(ValueError, match="must be int32"):
        with_columns(index.blocks, index.columns.long(), index.column_counts)
    with pytest.raises(ValueError, match=r"index on meta; move it with index.to\(q.device\)"):
        column_sparse_attention(q, k, v, index.to("meta"))


@GPU
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_long_on_a_gpu(block: int, dim: int) -> None:
    case = Case(1, 4, 1, 6000, 8000, dim, block, block, 4)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index = index_of(case, "cuda")
    exact = column_sparse_attention(q.double(), k.double(), v.double(), index, kernel="reference").cpu()
    assert error(column_sparse_attention(q, k, v, index, kernel="triton"), exact) < 1e-2
