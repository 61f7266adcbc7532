"""What every method promises on a GPU: the choice of the CPU, without a wait for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.sparse_attention import sparse_attention

import methods
from tests.methods.selecting import SPARSE, THRESHOLDS, blocks_of, calibrated, select_blocks
from tests.methods.support import layer, ready, select_without_waiting


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("block_topk", {"sparsity": 0.8, "shared": True}),
        ("seer", {"sparsity": 0.8, "shared": True}),
        ("seer", {"selection": "threshold", "threshold": 0.02}),
        ("seer", {"selection": "nz_ratio", "sparsity": 0.8}),
        ("seer", {"sparsity": 0.5, "last": 2}),
        ("seer", {"selection": "threshold", "threshold": 0.02, "last": 2}),
        ("seer", {"selection": "nz_ratio", "sparsity": 0.5, "last": 2}),
        ("block_topk", {"sparsity": 0.5, "last": 2}),
        ("random", {"sparsity": 0.5, "last": 2}),
    ],
)
def test_the_same_choice_on_the_gpu_with_other_knobs(name: str, knobs: dict[str, object]) -> None:
    cpu = select_blocks(name, layer(205, 845), **knobs).to_mask()
    index = calibrated(name, layer(205, 845), **knobs).to("cuda").select(layer(205, 845, device="cuda"))
    assert isinstance(index, BlockIndex)
    index.validate()
    assert (index.to_mask().cpu() == cpu).float().mean() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "knobs"),
    [(name, {"sparsity": 0.8}) for name in ["block_topk", "seer", *THRESHOLDS]]
    + [("oracle", {"selection": "threshold", "threshold": 0.02})],
)
def test_selection_never_waits_for_the_device(name: str, knobs: dict[str, object]) -> None:
    method = ready(name, block_size=16, **knobs).to("cuda")
    x = layer(1000, device="cuda")
    select_without_waiting(method, x)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPARSE)
def test_the_same_choice_on_the_gpu(name: str) -> None:
    cpu = select_blocks(name, layer(1000), sparsity=0.8).to_mask()
    method = calibrated(name, layer(1000), sparsity=0.8).to("cuda")
    index = method.select(layer(1000, device="cuda"))
    assert index is not None
    same = (blocks_of(index).to_mask().cpu() == cpu).float().mean()
    assert same == 1 if methods.get(name).family == "static" else same > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("name", SPARSE)
def test_a_row_of_a_batch_keeps_on_the_gpu_what_it_keeps_alone(name: str) -> None:
    """All but blocks whose scores differ by the rounding of products of other shapes."""
    method, x = calibrated(name, layer(1000), sparsity=0.8).to("cuda"), layer(1000, batch=3, device="cuda")
    index = method.select(x)
    assert index is not None
    for row in range(3):
        part = slice(row, row + 1)
        alone = method.select(replace(x, q=x.q[part], k=x.k[part]))
        assert alone is not None
        assert torch.allclose(index.density()[part], alone.density(), atol=0.01)
        blocks = range(-(-1000 // alone.q_block))
        same = torch.stack([index.row_keys(block)[part] == alone.row_keys(block) for block in blocks])
        assert same.float().mean() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("selection", ["topk", "threshold", "nz_ratio"])
def test_full_last_rows_on_the_gpu_attend_to_everything(selection: str) -> None:
    """Through the kernel that runs there: the last two blocks of 64 queries, the last one partial, are dense attention."""
    knobs: dict[str, object] = {"threshold": 0.05} if selection == "threshold" else {"sparsity": 0.5}
    x = layer(1003, device="cuda")
    v = torch.randn(x.k.shape, generator=torch.Generator().manual_seed(7)).to("cuda")
    index = ready("seer", block_size=64, selection=selection, last=2, **knobs).to("cuda").select(x)
    assert isinstance(index, BlockIndex)
    index.validate()
    got = sparse_attention(x.q, x.k, v, index, scale=x.scale)
    expected = torch.nn.functional.scaled_dot_product_attention(
        x.q.double(), x.k.double(), v.double(), is_causal=True, scale=x.scale, enable_gqa=True
    )
    error = (got.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    full = 14 * 64  # 1,003 tokens are 16 blocks; at half of them two full rows leave something for the others
    assert error[:, :, full:].max() < 5e-3, "float32 products on tensor cores are rounded to TF32"
    assert error[:, :, 64:full].max() > 0.05, "the others leave blocks out"
