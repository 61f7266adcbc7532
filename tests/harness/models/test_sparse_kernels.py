"""The harness asks for a kernel by the shape that runs, shared indices included, and where a kernel merges blocks every
number of a row is of the blocks that ran, not of those that were selected."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.table import BACKENDS, Backend
from attention_kernels.merge_blocks import merge_blocks

from harness.arms.build import prefill_kernel
from harness.measure.latency import time_attention
from harness.models.bridge import Bridge
from methods.parts.base import LayerInputs
from tests.harness.tiny import Fixed, load, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 300


class Grouped(Fixed):
    """One index for the query heads of a KV head; with `shared` it says so beforehand."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared

    def select(self, x: LayerInputs) -> BlockIndex | None:
        index = super().select(x)
        assert index is not None
        heads = x.k.shape[1]
        return replace(index, counts=index.counts[:, :heads], indices=index.indices[:, :heads])


@pytest.fixture(autouse=True)
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins on the CPU for kernels that need a GPU: one merges blocks, one wants an index that two heads share."""
    sdpa = BACKENDS["sdpa"]
    monkeypatch.setitem(BACKENDS, "merging", Backend(sdpa.reason, sdpa.run, merges=128))

    def reason(*, shared: int, **_: Any) -> str | None:
        return None if shared == 2 else "two heads must share an index"

    monkeypatch.setitem(BACKENDS, "grouped", Backend(reason, sdpa.run))


def density(factor: int) -> float:
    loaded, method = load("llama"), Fixed()
    q, k = torch.zeros(1, loaded.heads, LENGTH, 16), torch.zeros(1, loaded.kv_heads, LENGTH, 16)
    index = method.select(LayerInputs(q=q, k=k, layer=0, scale=1.0))
    assert index is not None
    return float(merge_blocks(index, factor, factor).density().mean())


def test_the_bridge_records_the_merged_density() -> None:
    loaded = load("llama")
    for kernel, factor in (("sdpa", 1), ("merging", 8)):
        with Bridge(loaded, Fixed(), sparse_kernel=kernel) as bridge, torch.no_grad():
            loaded.model(input_ids=tokens(1, LENGTH))
        assert [layer["kernel"] for layer in bridge.stats()] == [kernel] * loaded.layers
        assert bridge.prefill_densities() == pytest.approx([density(factor)])
    assert density(8) > density(1)


def test_latency_counts_the_merged_blocks() -> None:
    loaded, ids = load("llama"), tokens(LENGTH).tolist()
    fine, coarse = (
        time_attention(loaded, Fixed(), ids, sparse_kernel=kernel, repeats=1, max_seconds=5) for kernel in ("sdpa", "merging")
    )
    assert (fine.density, coarse.density) == (pytest.approx(density(1)), pytest.approx(density(8)))
    assert coarse.kernel == "merging" and coarse.kept_mass > fine.kept_mass
    assert coarse.pct_ideal == pytest.approx(100 * coarse.dense_ms * density(8) / coarse.total_ms)
    work = [timing.tflops * timing.attention_ms for timing in (fine, coarse)]
    blocks = (1 + 18 * 2) * 16 * 16, (1 + 2 * 2) * 128 * 128  # rows keep the first block and their own
    assert work[1] / work[0] == pytest.approx(blocks[1] / blocks[0])


@pytest.mark.parametrize("says_so", [True, False])
def test_a_shared_index_may_have_a_kernel_of_its_own(says_so: bool) -> None:
    loaded, method = load("llama"), Grouped(says_so)
    assert prefill_kernel("grouped", loaded, method) == "grouped"
    with Bridge(loaded, method, sparse_kernel="grouped") as bridge, torch.no_grad():
        loaded.model(input_ids=tokens(1, 60))
    assert {layer["kernel"] for layer in bridge.stats()} == {"grouped"}
    assert time_attention(loaded, method, tokens(60).tolist(), sparse_kernel="grouped", repeats=1).kernel == "grouped"


def test_and_is_refused_without_one() -> None:
    loaded = load("llama")
    with Bridge(loaded, Fixed(), sparse_kernel="grouped"), torch.no_grad():  # noqa: SIM117
        with pytest.raises(ValueError, match="kernel=grouped can't run here: two heads must share an index"):
            loaded.model(input_ids=tokens(1, 60))
    with pytest.raises(ValueError, match="multiples of 16, not 8"):
        prefill_kernel("flex", loaded, Fixed(block_size=8))


def test_a_method_that_leaves_the_choice_to_the_kernel_has_a_row(
    toy: list[str], command: Callable[..., int], tmp_path: Path
) -> None:
    short = ("length=512", "samples=1", "latency=true", "latency_repeats=1")
    assert command(*toy, "method=blasst", "sparsity=0.3", *short) == 0
    with (tmp_path / "results" / "toy" / "leaderboard.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["method"] == "blasst")
    assert row["kernel"] == "reference"
    assert float(row["density"]) == pytest.approx(0.7, abs=0.05)
    assert row["status"] == "ok"
