"""Full last rows: a number in the index, dense attention beside every kernel, and the same answers as lists of all blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import as_run, block_sparse_attention, full_row_kernel
from attention_kernels.block_sparse.diagonal import per_query_head, split_diagonal
from attention_kernels.block_sparse.table import BACKENDS
from attention_kernels.block_sparse.triton_tuning import Tile
from attention_kernels.decode import sparse_decode
from attention_kernels.full_rows import full_row_attention, resolve_full_rows
from attention_kernels.full_rows.triton_kernel import run_split
from attention_kernels.kept_mass import kept_mass
from attention_kernels.merge_blocks import merge_blocks
from attention_kernels.open_columns import with_columns
from attention_kernels.selection import select_from_pooled, select_topk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import Case, attention, cases, error

GPU = pytest.mark.gpu
CPU = torch.device("cpu")
ON_GPU = torch.cuda.is_available()
POISON = 1 << 20
"""A block that no index has: reading it raises, or reads far outside."""


def with_poisoned_lists(case: Case, rows: int, share: float = 0.3, device: str = "cpu") -> BlockIndex:
    """An index whose last rows are full, and hold nonsense where other rows have their list."""
    index = case.index(device, share=share).with_last_rows(rows)
    indices = index.indices.clone()
    indices[..., index.listed_rows :, :] = POISON
    return replace(index, indices=indices)


def examples(count: int) -> Callable[[Any], Any]:
    return settings(derandomize=True, deadline=None, max_examples=count, suppress_health_check=list(HealthCheck))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made empty holds NaN: outputs, and what kernels keep between their steps."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def nan_filled(*args: Any, make: Callable[..., Tensor] = make, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, nan_filled)


# -- the index -----------------------------------------------------------------------------------------------------------


@examples(20)
@given(cases(longest=200), st.integers(0, 12), st.sampled_from([0.0, 0.3, 1.0]))
def test_is_the_index_with_all_blocks_listed(case: Case, rows: int, share: float) -> None:
    index = with_poisoned_lists(case, rows, share)
    listed = index.with_all_lists()
    index.validate()
    listed.validate()
    assert index.full_rows == min(rows, index.counts.shape[-1]) and listed.full_rows == 0
    in_full = listed.to_mask()[..., index.listed_rows :, :]
    causal = BlockIndex.full(1, 1, **case.grid).to_mask()[..., index.listed_rows :, :]
    assert torch.equal(in_full, causal.expand_as(in_full))
    for name in ("to_mask", "tiles", "density", "pairs", "token_density"):
        assert torch.equal(getattr(index, name)(), getattr(listed, name)()), name
    for row in (0, index.counts.shape[-1] - 1):
        assert torch.equal(index.row_keys(row), listed.row_keys(row))
        assert torch.equal(index.row_blocks(0, 0, row), listed.row_blocks(0, 0, row))
    assert index.with_last_rows(0) is index


@examples(15)
@given(cases(longest=200), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_merging_keeps_them_full(case: Case, rows: int, q_factor: int, k_factor: int) -> None:
    index = with_poisoned_lists(case, rows)
    merged = merge_blocks(index, q_factor, k_factor)
    merged.validate()
    assert merged.full_rows == -(-index.counts.shape[-1] // q_factor) - index.listed_rows // q_factor
    assert torch.equal(merged.to_mask(), merge_blocks(index.with_all_lists(), q_factor, k_factor).to_mask())
    if q_factor == k_factor == 1:
        assert merged is index


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"full_rows": 8}, "full_rows=8: must lie between 0 and the 7 query blocks"),
        ({"full_rows": -1}, "full_rows=-1"),
        ({"full_rows": 3}, "counts of full rows must be their causal blocks"),
    ],
)
def test_validate_finds_wrong_full_rows(change: dict[str, int], says: str) -> None:
    index = Case(1, 2, 1, 100, 100, 16, 16, 16, 2).index("cpu", share=0.0).with_last_rows(2)
    with pytest.raises(ValueError, match=says):
        replace(index, **change).validate()


def test_waits_for_no_device_and_keeps_its_width() -> None:
    """On a device without data nothing can be asked of it. Lists stay as narrow as they are: 128k tokens and 32 heads of a
    tenth of the blocks would else take 512 MiB a layer for two rows."""
    index = Case(1, 2, 1, 300, 333, 16, 16, 16, 2).index("cpu", share=0.0).to("meta")
    full = index.with_last_rows(2)
    assert full.indices is index.indices and full.counts.is_meta and full.counts.shape == index.counts.shape
    assert merge_blocks(full, 2, 2).full_rows == 2 and full.with_all_lists().indices.shape[-1] == 21
    for width in (None, 21):
        assert split_diagonal(full, width).full_counts.is_meta


def test_libraries_get_no_blocks_of_full_rows() -> None:
    """Of flash4 and flex, which are given two lists: those of full rows are empty, all others as without."""
    case = Case(1, 4, 2, 150, 201, 16, 32, 16, 2)
    index = with_poisoned_lists(case, 2)
    for width in (None, 13):
        lists, listed = (split_diagonal(per_query_head(i, 4), width) for i in (index, case.index("cpu", share=0.3)))
        for counts, before in ((lists.masked_counts, listed.masked_counts), (lists.full_counts, listed.full_counts)):
            assert torch.equal(counts[..., :-2], before[..., :-2]) and not counts[..., -2:].any()


def test_readers_of_every_list_are_given_them() -> None:
    case = Case(1, 4, 2, 64, 96, 16, 16, 16, 4)
    index, listed = with_poisoned_lists(case, 1), with_poisoned_lists(case, 1).with_all_lists()
    columns, counts = torch.tensor([3, 40]).int().expand(1, 4, 2).contiguous(), torch.full((1, 4), 2).int()
    with_them, without = with_columns(index, columns, counts), with_columns(listed, columns, counts)
    assert torch.equal(with_them.open, without.open) and with_them.blocks.full_rows == 0
    q, k, v = Case(1, 4, 2, 1, 50, 16, 16, 16, 2).tensors(torch.float32, "cpu")
    step = with_poisoned_lists(Case(1, 4, 2, 1, 50, 16, 16, 16, 2), 1)
    assert error(sparse_decode(q, k, v, step), attention(q, k, v, step)) < 1e-5
    q, k, _ = case.tensors(torch.float32, "cpu")
    assert torch.equal(kept_mass(q, k, index, scale=0.25), kept_mass(q, k, listed, scale=0.25))


# -- attention -----------------------------------------------------------------------------------------------------------


def check(kernel: str, device: str, dtype: torch.dtype, case: Case, rows: int, tolerance: float) -> None:
    q, k, v = case.tensors(dtype, device)
    index = with_poisoned_lists(case, rows, device=device)
    out = block_sparse_attention(q, k, v, index, kernel=kernel)
    assert out.shape == q.shape and out.dtype == dtype
    assert error(out, attention(q, k, v, as_run(index, kernel))) < tolerance


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@examples(10)
@given(cases(blocks=(8, 16, 48, 64), dims=(8, 40)), st.integers(1, 9))
def test_equals_the_formula(kernel: str, case: Case, rows: int) -> None:
    check(kernel, "cpu", torch.float64, case, rows, 1e-12)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.skipif(ON_GPU, reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize(
    ("case", "rows"),
    [
        (Case(1, 4, 1, 35, 51, 16, 16, 16, 1), 1),  # a chunk, one index for four heads, three queries in the last block
        (Case(2, 2, 1, 33, 33, 16, 32, 16, 2), 99),  # more rows than there are: nothing is listed
        (Case(1, 2, 2, 40, 45, 16, 16, 32, 2), 2),
    ],
    ids=str,
)
def test_equals_the_formula_in_the_interpreter(case: Case, rows: int) -> None:
    check("triton", "cpu", torch.float32, case, rows, 1e-5)


SPLIT = Case(1, 6, 2, 21, 101, 24, 16, 16, 2)
"""21 queries, three heads to a KV head: 63 rows, the last tile of them short; a head dim that is no power of two."""


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("tile", "splits"),
    [
        (Tile(64, 32, 4, 2), 1),
        (Tile(64, 32, 4, 2), 3),
        (Tile(16, 16, 4, 2), 4),  # a tile of six queries: parts end at different keys
        (Tile(32, 64, 4, 2), 5),  # more parts than steps: some hold no key, and are not read
        (Tile(64, 32, 4, 2, True), 2),
    ],
    ids=str,
)
def test_keys_are_split_among_programs(tile: Tile, splits: int) -> None:
    device = "cuda" if ON_GPU else "cpu"
    if tile.described and ON_GPU and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("descriptors are of Hopper and newer")
    case = replace(SPLIT, dim=32) if tile.described else SPLIT
    q, k, v = case.tensors(torch.float32, device)
    whole = torch.full((1, 6, 40, case.dim), float("nan"), device=device)
    run_split(q, k, v, whole[:, :, 19:], scale=case.dim**-0.5, tile=tile, splits=splits)  # a part of a larger output
    assert error(whole[:, :, 19:], attention(q, k, v, BlockIndex.full(1, 6, **case.grid))) < 1e-5
    assert whole[:, :, :19].isnan().all()


def test_what_computes_full_rows() -> None:
    """On a CPU each kernel's own kind; the library and Triton are for GPUs, and wrong names list the right ones."""
    site: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "head_dim": 64}
    assert {name: full_row_kernel(name, **site) for name in ("reference", "sdpa")} == {"reference": "reference", "sdpa": "sdpa"}
    assert all(full_row_kernel(kernel, **site) for kernel in BACKENDS) and full_row_kernel("hopper", **site) == "hopper"
    assert resolve_full_rows(("fa3", "sdpa"), **site) == "sdpa"
    assert resolve_full_rows(("triton", "sdpa"), device=CPU, dtype=torch.float64, head_dim=64) == "sdpa"
    with pytest.raises(ValueError, match="kernel fa5 of full rows is not known; choose one of: fa3, triton, sdpa, reference"):
        resolve_full_rows(("fa5",), **site)
    with pytest.raises(ValueError, match="none of fa3 computes full rows on cpu"):
        resolve_full_rows(("fa3",), **site)
    q, k, v = SPLIT.tensors(torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"scale=0\.0 must be positive"):
        full_row_attention(q, k, v, torch.empty_like(q), scale=0.0, kernel="triton")


# -- selection -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("rule", [{"budget": (1, 3, 2, 6)}, {"threshold": 0.2}, {"mass": 0.5}], ids=str)
def test_selecting_makes_no_list_for_them(kernel: str, rule: dict[str, Any]) -> None:
    device = "cuda" if ON_GPU and kernel == "triton" else "cpu"
    grid = {"q_block": 16, "k_block": 16, "q_len": 50, "k_len": 83}
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 4, 16, generator=generator).to(device), torch.randn(1, 1, 6, 16, generator=generator).to(device)
    without = select_from_pooled(q, k, scale=1.0, **rule, **grid, kernel=kernel)
    for rows in (2, 99):
        index = select_from_pooled(q, k, scale=1.0, full_rows=rows, **rule, **grid, kernel=kernel)
        index.validate()
        assert index.full_rows == min(rows, 4)
        assert torch.equal(index.to_mask(), without.with_last_rows(rows).to_mask())
        if "budget" in rule:
            assert index.indices.shape[-1] == (3 if rows == 2 else 2), "as wide as the longest listed row, and the diagonal"
    if "budget" in rule:
        scores = torch.rand(1, 2, 4, 6, generator=generator)
        index = select_topk(scores, rule["budget"], full_rows=2, **grid)
        assert torch.equal(index.to_mask(), select_topk(scores, rule["budget"], **grid).with_last_rows(2).to_mask())
    with pytest.raises(ValueError, match="full_rows=-1: must be at least 0"):
        select_from_pooled(q, k, scale=1.0, full_rows=-1, **rule, **grid, kernel=kernel)


# -- on a GPU ------------------------------------------------------------------------------------------------------------

GPU_CASES = [
    Case(1, 8, 2, 1000, 1000, 128, 128, 128, 8),  # the last block is short
    Case(2, 4, 2, 300, 1333, 64, 128, 128, 4),  # a chunk
    Case(1, 8, 2, 700, 901, 128, 64, 64, 2),  # an index for each KV head
    Case(1, 8, 2, 515, 515, 128, 128, 64, 8),  # three queries in the last block
    Case(1, 4, 1, 200, 200, 64, 16, 16, 1),
]


@GPU
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kernel", ["triton", "hopper", "flash4", "flash4_merged", "flex", "sdpa"])
@pytest.mark.parametrize("dense", ["as chosen", "triton", "sdpa"])
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_on_a_gpu(kernel: str, dense: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"head_dim": case.dim, "q_block": case.q_block, "k_block": case.k_block, "shared": case.heads // case.index_heads}
    if reason := BACKENDS[kernel].reason(device=torch.device("cuda"), dtype=torch.bfloat16, **where):
        pytest.skip(f"{kernel}: {reason}")
    if dense != "as chosen" and not BACKENDS[kernel].full_rows:
        pytest.skip(f"{kernel} computes full rows itself")
    if dense != "as chosen":
        monkeypatch.setattr("attention_kernels.block_sparse.full_row_kernel", lambda *args, **kwargs: dense)
    for rows in (1, 2, 99):
        check(kernel, "cuda", torch.bfloat16, case, rows, 1e-2)


@GPU
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_split_keys_on_a_gpu(dim: int, dtype: torch.dtype) -> None:
    case = Case(1, 8, 2, 200, 8000, dim, 128, 128, 8)
    q, k, v = case.tensors(dtype, "cuda")
    out = torch.full_like(q, float("nan"))
    full_row_attention(q, k, v, out, scale=dim**-0.5, kernel="triton")
    assert error(out, attention(q, k, v, BlockIndex.full(1, 1, **case.grid))) < 1e-2


@GPU
@pytest.mark.parametrize("kernel", ["triton", "hopper"])
def test_in_a_cuda_graph(kernel: str) -> None:
    case = Case(1, 8, 2, 1000, 1000, 128, 128, 128, 8)
    if reason := BACKENDS[kernel].reason(
        device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=128, q_block=128, k_block=128, shared=1
    ):
        pytest.skip(f"{kernel}: {reason}")
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index = with_poisoned_lists(case, 2, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        block_sparse_attention(q, k, v, index, kernel=kernel)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = block_sparse_attention(q, k, v, index, kernel=kernel)
    q.copy_(case.tensors(torch.bfloat16, "cuda", seed=7)[0])
    graph.replay()
    assert error(out, attention(q, k, v, index)) < 1e-2
