"""Sparse decoding: every kernel against the formula in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import block_sparse_attention
from attention_kernels.decode import resolve_decode, sparse_decode
from attention_kernels.decode.splits import program_slots, split_count

from tests.kernels.oracle import Case, attention, error

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GPU = pytest.mark.gpu
CUDA = torch.cuda.is_available()
RUNS = [
    ("reference", "cpu", torch.float64),
    ("reference", "cpu", torch.float32),
    ("reference", "cpu", torch.bfloat16),
    ("triton", "cpu", torch.float32),
    ("triton", "cpu", torch.float16),
    pytest.param("triton", "cuda", torch.bfloat16, marks=GPU),
    pytest.param("triton", "cuda", torch.float16, marks=GPU),
    pytest.param("triton", "cuda", torch.float32, marks=GPU),
    pytest.param("reference", "cuda", torch.float64, marks=GPU),
]
CASES = [
    Case(2, 8, 2, 1, 200, 64, 16, 16, 2),
    Case(1, 4, 1, 1, 261, 128, 64, 32, 1),
    Case(2, 4, 2, 1, 130, 96, 16, 64, 2),
    Case(1, 4, 2, 1, 300, 80, 16, 128, 4),  # every query head its own blocks
    Case(1, 2, 2, 1, 150, 256, 64, 16, 2),
    Case(1, 32, 1, 1, 90, 16, 16, 16, 1),
    Case(1, 6, 2, 3, 131, 32, 16, 32, 2),  # three new tokens, the last block partial
    Case(1, 4, 1, 8, 129, 64, 64, 64, 1),  # eight, over the edge of a block
    Case(2, 14, 2, 1, 201, 64, 16, 64, 2),
    Case(2, 9, 3, 1, 101, 64, 16, 16, 9),
]
SMALL = Case(1, 4, 2, 1, 150, 32, 16, 16, 2)


def where(kernel: str) -> str:
    return "cuda" if CUDA and kernel == "triton" else "cpu"


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("kernel", "device", "dtype"), RUNS)
def test_equals_the_formula(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    if kernel == "triton" and device == "cpu" and CUDA:
        pytest.skip("the interpreter is for machines without a GPU")
    q, k, v = case.tensors(dtype, device)
    index = case.index(device)
    out = sparse_decode(q, k, v, index, kernel=kernel)
    assert out.dtype == dtype and out.shape == q.shape
    assert error(out, attention(q, k, v, index)) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("splits", "block"), [(1, 16), (1, 128), (2, 32), (2, 64), (7, 16), (7, 128), (40, 32), (40, 64)], ids=str
)
def test_any_number_of_splits(splits: int, block: int) -> None:
    """40 are more than there are tiles: some programs have nothing to do and must not disturb the others."""
    from attention_kernels.decode.triton_kernel import sparse_decode_triton

    case = Case(1, 4, 2, 1, 5 * block + 3, 128, 16, block, 2)
    q, k, v = case.tensors(torch.float32, where("triton"))
    index = case.index(where("triton"))
    out = sparse_decode_triton(q, k, v, index, scale=case.dim**-0.5, splits=splits)
    assert error(out, attention(q, k, v, index)) < 1e-5


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lists_of_one_block_and_full_lists(kernel: str, share: float) -> None:
    q, k, v = SMALL.tensors(torch.float32, where(kernel))
    index = SMALL.index(where(kernel), share=share)
    assert index.counts.max() == (1 if share == 0 else 10)
    assert error(sparse_decode(q, k, v, index, kernel=kernel), attention(q, k, v, index)) < 1e-5


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_what_is_not_selected_is_not_used(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither keys of other blocks, nor list entries past the count, nor memory that nobody has written."""
    device = where(kernel)
    q, k, v = SMALL.tensors(torch.float32, device)
    index = SMALL.index(device, share=0.3)
    true = attention(q, k, v, index)
    in_blocks = index.to_mask()[:, :, 0].repeat_interleave(16, -1)[:, :, : SMALL.k_len]
    k, v = (x.masked_fill(~in_blocks[..., None], float("nan")) for x in (k, v))
    past = torch.arange(index.indices.shape[-1], device=device) >= index.counts[..., None]
    assert past.any()
    index = replace(index, indices=index.indices.masked_fill(past, SMALL.k_len // 16 - 3))
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: real(*a, **kw).fill_(float("nan")))
    assert error(sparse_decode(q, k, v, index, kernel=kernel), true) < 1e-5


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_strided_inputs(kernel: str) -> None:
    """A cache laid out [B,K,H,D], cut from a longer one, and an index that is part of a larger one."""
    device = where(kernel)
    q, k, v = SMALL.tensors(torch.float32, device)
    index = SMALL.index(device)
    expected = sparse_decode(q, k, v, index, kernel=kernel)
    roomy = [torch.nn.functional.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, 9)).contiguous() for x in (k, v)]
    views = [x[:, : SMALL.k_len].transpose(1, 2) for x in roomy]
    wide = replace(
        index, counts=torch.stack([index.counts] * 2, -1)[..., 0], indices=torch.stack([index.indices] * 2, -1)[..., 0]
    )
    torch.testing.assert_close(sparse_decode(q.mT.contiguous().mT, *views, wide, kernel=kernel), expected)


def test_the_same_as_block_sparse_attention_and_scaled() -> None:
    case = CASES[6]
    q, k, v = case.tensors(torch.float64, "cpu")
    index = case.index("cpu")
    torch.testing.assert_close(
        sparse_decode(q, k, v, index, scale=0.05), block_sparse_attention(q, k, v, index, scale=0.05, kernel="reference")
    )
    single, _, _ = case.tensors(torch.float32, where("triton"))
    k, v, index = (x.to(where("triton")) for x in (k.float(), v.float(), index))
    out = sparse_decode(single, k, v, index, scale=0.05, kernel="triton")
    assert error(out, attention(single * (0.05 * case.dim**0.5), k, v, index)) < 1e-5


def test_splits_fill_the_gpu_once() -> None:
    assert split_count(8, 2048, 264) == 33, "one full wave of 264 programs"
    assert split_count(128, 128, 264) == 2
    assert split_count(264, 50, 264) == 1, "nothing to gain: no second kernel"
    assert split_count(1, 1, 264) == split_count(1, 2, 264) == 1, "combining costs as much as it saves"
    assert split_count(1, 6, 264) == 6, "never more than there are tiles"
    assert split_count(320, 128, 264) == 4, "1280 programs fill five waves to 97 %; 320 would fill two to 61 %"
    assert program_slots(torch.device("cpu"), 72 << 10) == 3 * 132 and program_slots(torch.device("cpu"), 100 << 10) == 2 * 132


@GPU
def test_captured_in_a_cuda_graph() -> None:
    """Replayed on other values, counts and blocks: nothing of the first call's data is baked in."""
    case = Case(2, 32, 8, 1, 5000, 128, 64, 64, 8)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    full = BlockIndex.full(case.batch, 8, **case.grid, device="cuda")
    index = replace(full, counts=full.counts.clone(), indices=full.indices.clone())
    sparse_decode(q, k, v, index)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sparse_decode(q, k, v, index)
    for seed in (3, 4):
        other = case.index("cuda", share=0.2, seed=seed)
        index.counts.copy_(other.counts)
        index.indices[..., : other.indices.shape[-1]].copy_(other.indices)
        q.copy_(case.tensors(torch.bfloat16, "cuda", seed=seed)[0])
        graph.replay()
        assert error(out, attention(q, k, v, other)) < 1e-2


@GPU
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("batch", [1, 16])
def test_long_on_a_gpu(batch: int, block: int) -> None:
    case = Case(batch, 32, 8, 1, 20_011, 128, 64, block, 8)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index = case.index("cuda", share=0.1)
    exact = sparse_decode(q.double(), k.double(), v.double(), index, kernel="reference").cpu()
    assert error(sparse_decode(q, k, v, index), exact) < 1e-2


def test_bad_input_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = SMALL.tensors(torch.float32, "cpu")
    index = SMALL.index("cpu")
    with pytest.raises(ValueError, match="the index is for 1 queries and 150 keys, not 1 and 149"):
        sparse_decode(q, k[:, :, :149], v[:, :, :149], index)
    with pytest.raises(ValueError, match="1 to 8 queries, not 9"):
        sparse_decode(q.expand(-1, -1, 9, -1), k, v, index)
    with pytest.raises(ValueError, match="one block must hold all 2 queries"):
        sparse_decode(q.expand(-1, -1, 2, -1), k, v, replace(index, q_len=2, q_block=1))
    with pytest.raises(ValueError, match="batch and heads"):
        sparse_decode(q, k, v, replace(index, counts=index.counts[:, :1], indices=index.indices[:, :1]))
    on_gpu = [x.to(where("triton")) for x in (q, k.mT.contiguous().mT, v)]
    with pytest.raises(ValueError, match="contiguous along the head dim"):
        sparse_decode(*on_gpu, index.to(where("triton")), kernel="triton")
    with pytest.raises(ValueError, match=r"move it with index.to\(q.device\)"):
        sparse_decode(q, k, v, index.to("meta"))
    shape: dict[str, Any] = {"device": torch.device(where("triton")), "dtype": torch.float32, "head_dim": 64, "k_block": 64}
    assert resolve_decode("auto", **shape | {"device": torch.device("cpu")}) == "reference"
    assert resolve_decode("auto", **shape | {"device": torch.device("cuda")}) == "triton"
    assert resolve_decode("auto", **shape | {"device": torch.device("cuda"), "dtype": torch.float64}) == "reference"
    for kernel, change, message in (
        ("cuda", {}, "choose one of: auto, reference, triton"),
        ("triton", {"k_block": 48}, "48 is not supported"),
        ("triton", {"dtype": torch.float64}, "float64"),
        ("triton", {"head_dim": 40}, "head dim 40"),
        ("triton", {"rows": 129}, "at most 128"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_decode(kernel, **shape | change)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu"):
        sparse_decode(q, k, v, index, kernel="triton")


@pytest.mark.parametrize("splits", [None, 3])
@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("lists", [2, 4])
def test_padding_on_the_left_is_never_read(kernel: str, lists: int, splits: int | None) -> None:
    """Sequences that start at any column equal each by itself, with NaN where there is padding."""
    case = Case(3, 4, 2, 1, 150, 32, 16, 16, lists)
    device, starts = where(kernel), (0, 37, 149)
    q, k, v = case.tensors(torch.float32, device)
    index = case.index(device, share=0.5)
    blocks = torch.tensor([-(-(150 - s) // 16) for s in starts], device=device)
    own = [
        BlockIndex.from_mask(index.to_mask()[b : b + 1, :, :, :n], q_block=16, k_block=16, q_len=1, k_len=150 - s)
        for b, (s, n) in enumerate(zip(starts, blocks.tolist(), strict=True))
    ]
    counts = torch.cat([one.counts for one in own])
    indices = torch.cat([torch.nn.functional.pad(one.indices, (0, 10 - one.indices.shape[-1])) for one in own])
    index = replace(index, counts=counts, indices=indices)
    at = torch.tensor(starts, dtype=torch.int32, device=device)
    padding = (torch.arange(150, device=device) < at[:, None])[:, None, :, None]
    k, v = k.masked_fill(padding, float("nan")), v.masked_fill(padding, float("nan"))
    if kernel == "triton":
        from attention_kernels.decode.triton_kernel import sparse_decode_triton

        out = sparse_decode_triton(q, k, v, index, scale=case.dim**-0.5, starts=at, splits=splits)
    else:
        out = sparse_decode(q, k, v, index, starts=at, kernel=kernel)
    for b, start in enumerate(starts):
        row = slice(b, b + 1)
        assert error(out[row], attention(q[row], k[row, :, start:], v[row, :, start:], own[b])) < 1e-5
    with pytest.raises(ValueError, match=r"starts is torch.int64 \(3,\)"):
        sparse_decode(q, k, v, index, starts=at.long(), kernel=kernel)
