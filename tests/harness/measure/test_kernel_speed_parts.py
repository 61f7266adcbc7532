"""Parts of the study of kernels: its indices, its check of an answer, what counts as final, its pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import block_sparse_attention

import methods
from harness.measure.kernel_speed import timing
from harness.measure.kernel_speed.cases import SHAPES
from harness.measure.kernel_speed.correctness import relative_error
from harness.measure.kernel_speed.indices import deal, random_index
from harness.measure.kernel_speed.inputs import Work
from harness.report.figures import kernel_speed as pictures
from harness.report.kernel_rows import KernelRow, KernelTimes
from harness.report.rows import Origin
from harness.study.schema import Status
from methods.parts.base import LayerInputs

CPU = torch.device("cpu")


def test_random_index_is_the_one_that_the_method_selects() -> None:
    q, k = torch.zeros(1, 4, 300, 16), torch.zeros(1, 2, 300, 16)
    method = methods.build("random", block_size=64, sparsity=0.6, seed=3)
    selected = method.select(LayerInputs(q=q, k=k, layer=0, scale=1.0))
    index = random_index(batch=1, heads=4, q_len=300, k_len=300, block=64, sparsity=0.6, seed=3, device=CPU)
    index.validate()
    assert selected is not None and torch.equal(index.counts, selected.counts) and torch.equal(index.indices, selected.indices)
    two = random_index(batch=2, heads=4, q_len=1, k_len=300, block=64, sparsity=0.6, seed=3, device=CPU)
    assert two.counts.shape == (2, 4, 1) and not torch.equal(two.indices[0], two.indices[1])


def test_deal_repeats_the_lists_in_turn() -> None:
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[0, 1, :, 0] = True
    sizes = {"q_block": 16, "k_block": 16, "q_len": 64, "k_len": 64}
    parts = [BlockIndex.from_mask(mask, **sizes), BlockIndex.full(1, 1, **sizes)]
    dealt = deal(parts, 7)
    dealt.validate()
    assert dealt.counts.shape == (1, 7, 4) and dealt.indices.shape[-1] == 4, "as wide as the widest"
    masks = dealt.to_mask()[0]
    for head in range(7):
        expected = parts[0].to_mask()[0, head % 3] if head % 3 < 2 else parts[1].to_mask()[0, 0]
        assert torch.equal(masks[head], expected)


@pytest.mark.parametrize("shared", [False, True])
def test_the_check_sees_a_wrong_block_and_nan(shared: bool) -> None:
    work = Work.draw("prefill", SHAPES["bundled"], 1, 200, dtype=torch.float32, device=CPU, seed=0)
    heads = 2 if shared else 4
    index = random_index(batch=1, heads=heads, q_len=200, k_len=200, block=32, sparsity=0.5, seed=0, device=CPU)
    other = random_index(batch=1, heads=heads, q_len=200, k_len=200, block=32, sparsity=0.5, seed=1, device=CPU)
    tensors = (work.q, work.k, work.v)
    good = block_sparse_attention(*tensors, index, scale=work.scale, kernel="reference")
    bad = block_sparse_attention(*tensors, other, scale=work.scale, kernel="reference")
    assert relative_error(*tensors, index, good, scale=work.scale) < 1e-5
    assert relative_error(*tensors, index, bad, scale=work.scale) > 0.1
    good[0, 1, 40, 0] = float("nan")  # in no block that is compared
    assert relative_error(*tensors, index, good, scale=work.scale) == float("inf")


def test_refusals_are_told_from_what_may_pass() -> None:
    assert timing.failed(ValueError("blocks of 64 only"), CPU).final
    result = timing.failed(RuntimeError("out of memory"), CPU)
    assert not result.final and result.reason == "RuntimeError: out of memory"


def planted(op: str, kernel: str, length: int, total: float, *, pct_ideal: float | None = None, **more: Any) -> KernelRow:
    """A row of a shape on a card; of dense attention unless `more` says otherwise."""
    known = {
        "method": "dense",
        "index": "",
        "selection": "",
        "block_size": None,
        "sparsity": None,
        "shared": None,
        "k_block": None,
    }
    origin = Origin("card", None, None, None, None, None, "2026-01-01")
    return KernelRow(
        study="mine",
        knobs={},
        settings=(),
        match=None,
        shape="shape",
        op=op,
        kernel=kernel,
        length=length,
        batch=1,
        seed=0,
        dtype="bfloat16",
        phase="prefill",
        q_block=None,
        haystack="",
        density=None,
        error=None,
        dense_ms=None,
        dense_kernel=None,
        peak_mib=None,
        timing="events",
        case="",
        status=Status.OK,
        reason="",
        origin=origin,
        times=KernelTimes(total_ms=total, pct_ideal=pct_ideal),
        **(known | more),
    )


def test_pictures_show_real_indices_before_random_ones(tmp_path: Path) -> None:
    rows = [planted("full", "fa3", n, 100.0 * n / 4096) for n in (4096, 8192)]
    for n in (4096, 8192):
        for method, ms in (("uniform", 10.0), ("seer", 20.0)):
            own = {"method": method, "index": method, "shared": False, "sparsity": 0.9, "block_size": 64, "k_block": 64}
            rows.append(planted("sparse", "quick", n, ms, pct_ideal=50.0, **own))
    figure = pictures._by_length(rows, pictures.BLOCKS)
    assert figure is not None
    texts = [t.get_text().strip() for t in figure.axes[0].texts]
    assert texts == ["FlashAttention-3  200", "quick  20.0"]
    full = [replace(row, full_rows=2, times=KernelTimes(total_ms=500.0)) for row in rows if row.op == "sparse"]
    beside = pictures._by_length(rows + full, pictures.BLOCKS)
    assert beside is not None and [t.get_text().strip() for t in beside.axes[0].texts] == texts
    notes = [" ".join(text.get_text() for text in drawn.texts) for drawn in (figure, beside)]
    assert ["without full last rows" in note for note in notes] == [False, True]
    assert [p.name for p in pictures.write(rows, tmp_path)] == ["time_by_length.png"], "one sparsity is no curve"
    gated = [replace(r, status=Status.GATED) for r in rows]
    assert pictures.write(gated, tmp_path) == []


def test_pictures_take_the_length_where_most_was_timed_and_two_panels() -> None:
    own = {"method": "uniform", "index": "uniform", "shared": False, "k_block": 64, "pct_ideal": 50.0}
    rows = [
        planted("sparse", "quick", 4096, 1.0, sparsity=s, block_size=b, **own) for s in (0.5, 0.8, 0.9) for b in (32, 64, 128)
    ]
    rows += [planted("sparse", "quick", 8192, 1.0, sparsity=s, block_size=32, **own) for s in (0.5, 0.9)]  # a run that was cut
    figure = pictures._by_sparsity(rows)
    assert figure is not None and "at 4k tokens" in figure.get_suptitle()
    assert [axes.get_title("left") for axes in figure.axes] == ["blocks of 32", "blocks of 128"]
