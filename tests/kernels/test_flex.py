"""The adapter to flex_attention: its BlockMask, its tiles, and on a CPU the compiled kernel at one small size."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_sparse import block_sparse_attention
from attention_kernels.block_sparse.flex import block_mask, flex_reason, kernel_options, padded_length
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.oracle import Case, attention, cases, error, token_mask

HERE = {"device": torch.device("cpu"), "dtype": torch.float32, "head_dim": 32, "q_block": 32, "k_block": 32, "shared": 1}


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(cases(longest=200), st.sampled_from([0.0, 0.3, 1.0]))
def test_the_mask_shows_what_the_index_keeps(case: Case, share: float) -> None:
    """Its blocks, with its mask function on the partial ones only, are the tokens that each query sees."""
    index = case.index("cpu", share=share)
    mask = block_mask(index, case.heads)
    assert mask.shape == (case.batch, case.heads, case.q_len, case.k_len)
    assert mask.kv_indices.shape == mask.full_kv_indices.shape, "older releases step through both with one stride"
    query, key = torch.arange(case.q_len)[:, None], torch.arange(case.k_len)
    inside = mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key)

    def tokens(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        *lead, width = indices.shape
        blocks = torch.zeros(*lead, -(-case.k_len // case.k_block) + 1, dtype=torch.bool)
        filled = torch.arange(width) < counts[..., None]
        blocks.scatter_(-1, torch.where(filled, indices, blocks.shape[-1] - 1).long(), True)
        blocks = blocks[..., :-1].repeat_interleave(case.q_block, 2).repeat_interleave(case.k_block, 3)
        return blocks[:, :, : case.q_len, : case.k_len]

    partial = tokens(mask.kv_num_blocks, mask.kv_indices)
    full = tokens(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert torch.equal((partial & inside) | full, token_mask(index, case.heads))


@pytest.mark.parametrize(
    ("dtype", "dim", "blocks", "tile"),
    [
        (torch.bfloat16, 128, (128, 128), None),  # the template's own
        (torch.bfloat16, 64, (64, 64), (64, 64, 4)),
        (torch.bfloat16, 128, (128, 64), (128, 64, 8)),
        (torch.bfloat16, 128, (48, 80), (16, 16, 4)),
        (torch.float32, 128, (64, 64), (64, 32, 4)),
        (torch.bfloat16, 256, (64, 64), (64, 32, 4)),
    ],
)
def test_tiles_divide_blocks(dtype: torch.dtype, dim: int, blocks: tuple[int, int], tile: tuple[int, int, int] | None) -> None:
    options = kernel_options(torch.device("cuda"), dtype, dim, *blocks)
    chosen = (options["BLOCK_M"], options["BLOCK_N"], options["num_warps"]) if "BLOCK_M" in options else None
    assert chosen == tile
    assert kernel_options(torch.device("cpu"), dtype, dim, *blocks) == {}


def test_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_kernels.block_sparse.flex._cpu_compiler", lambda: False)
    assert "needs a C++ compiler" in str(flex_reason(**HERE))


@pytest.mark.slow
@pytest.mark.skipif(flex_reason(**HERE) is not None, reason=str(flex_reason(**HERE)))
def test_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk, off the block, one list for two heads, in a batch: what tests on a GPU vary."""
    # flex_reason has asked for AVX2; inductor need not compile, and import torch, to try every instruction set.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    case = Case(2, 4, 2, 70, 101, 32, 32, 32, 2)
    q, k, v = case.tensors(torch.float32, "cpu")
    index = case.index("cpu")
    assert error(block_sparse_attention(q, k, v, index, kernel="flex"), attention(q, k, v, index)) < 1e-5


def test_prompts_are_padded_to_few_lengths() -> None:
    assert [padded_length(n) for n in (1, 128, 129, 1000, 1025, 4096, 4097, 5120, 5121, 8192)] == [
        128,
        128,
        256,
        1024,
        1280,
        4096,
        5120,
        5120,
        6144,
        8192,
    ]
    assert len({padded_length(n) for n in range(4097, 131073)}) == 20


@pytest.mark.parametrize(("q_len", "k_len"), [(70, 101), (130, 130), (1, 40)])
def test_padding_changes_nothing(q_len: int, k_len: int) -> None:
    """The padded mask shows each query what the index does, and shows padding to none of them."""
    case = Case(2, 4, 2, q_len, k_len, 16, 32, 32, 2)
    index = case.index("cpu")
    lengths = padded_length(q_len), padded_length(k_len)
    mask = block_mask(index, 4, lengths)
    assert mask.shape[-2:] == lengths
    rows, cols = -(-q_len // 32), -(-k_len // 32)
    blocks = index.to_mask().repeat_interleave(2, 1)
    dense = mask.to_dense().bool()
    assert torch.equal(dense[:, :, :rows, :cols], blocks) and not dense[:, :, rows:].any() and not dense[..., cols:].any()
    query, key = torch.arange(q_len)[:, None], torch.arange(lengths[1])
    zero = torch.zeros(1, dtype=torch.int64)
    assert torch.equal(mask.mask_mod(zero, zero, query, key), key <= query + k_len - q_len)


@pytest.mark.gpu
def test_block_sizes_do_not_mix() -> None:
    """One odd length in several block sizes: a kernel compiled for one of them must not serve another."""
    for q_block, k_block in ((64, 128), (128, 64), (64, 64), (128, 128), (64, 128)):
        case = Case(1, 2, 2, 130, 130, 128, q_block, k_block, 2)
        q, k, v = case.tensors(torch.float32, "cuda")
        index = case.index("cuda")
        assert error(block_sparse_attention(q, k, v, index, kernel="flex"), attention(q, k, v, index)) < 1e-5
