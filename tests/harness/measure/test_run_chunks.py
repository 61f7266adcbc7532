"""Measuring prompts in chunks: accuracies, densities and times, beside the same prompts whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.dense import dense_attention
from torch import Tensor

from harness.arms.calibration import calibrate, densities_of
from harness.core.errors import UserError
from harness.jobs.table import JOBS, Does, check_chunks_fit
from harness.measure.latency import time_attention, time_prefill
from harness.measure.request_checks import check_chunk
from harness.models import bridge as bridge_module
from harness.study.command_settings import arm_settings
from harness.study.matching import is_matched
from tests.harness.measure.study_files import board, lines
from tests.harness.measure.test_self_check import built, check, wrong
from tests.harness.report.support import row
from tests.harness.settings import merged
from tests.harness.tiny import Fixed, shared, tokens
from tests.methods.support import ready

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = {"first": [tokens(200, seed=1).tolist()], "second": [tokens(183, seed=2).tolist()]}


def test_rows_in_chunks_are_beside_those_of_whole_prompts(
    command: Callable[..., int], toy: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lines(finished, "samples")
    timed = ["latency=true", "latency_repeats=1", "latency_seconds=0.2"]
    assert command(*toy, *timed, "prefill.chunk=192", "sparsity=0.5", "method.selection=topk") == 0
    said = " ".join(capsys.readouterr().out.split())
    for method in ("dense", "block_topk"):
        assert re.search(rf"timing {method} \([^)]*chunk 192\) at \d+ tokens ", said), "each timing says its chunk"
    after = lines(finished, "samples")[len(before) :]
    assert len(after) == len(before) == 4, "dense attention is measured in the same chunks"
    for whole, chunked in zip(before, after, strict=True):
        assert chunked["cell"] != whole["cell"] and chunked["prediction"] == whole["prediction"]
        assert chunked["density"] == pytest.approx(whole["density"], abs=1e-6)
    of_chunks = [cell for cell in lines(finished, "cells") if cell["identity"].get("prefill_chunk") == 192]
    assert len({cell["pair"] for cell in of_chunks}) == 1 and len({cell["cell"] for cell in of_chunks}) == 2
    rows = [r for r in board(finished) if r["task"] == "avg"]
    assert [(r["method"], "prefill.chunk=192" in r["settings"], r["ttft_ms"] != "") for r in rows] == [
        ("dense", False, False),
        ("dense", True, True),
        ("block_topk", False, False),
        ("block_topk", True, True),
    ]
    assert rows[3]["dense_accuracy"] == rows[1]["accuracy"]
    assert "block_topk (chunk 192)" in said
    settings = merged(*arm_settings(of_chunks[-1]["identity"]))
    assert settings.prefill_chunk == 192


def test_a_line_in_chunks_says_so_even_where_all_are() -> None:
    from harness.report.lines import rows_by_line

    chunked = [replace(row("a", s, 4096, 0.8), prefill_chunk=64) for s in (0.5, 0.9)]
    assert set(rows_by_line(chunked)) == {"a (chunk 64)"}
    assert set(rows_by_line([*chunked, row("a", 0.5, 4096, 0.8)])) == {"a", "a (chunk 64)"}


def test_a_knob_is_searched_in_chunks() -> None:
    """What chooses by each chunk's last queries keeps another share than of whole prompts."""
    loaded, method = shared("llama"), ready("flexprefill", block_size=16, sparsity=0.6)
    knob = method.calibrates()
    assert knob is not None
    found = calibrate(loaded, method, knob, PROMPTS, 0.4, chunk=80)
    assert is_matched(0.6, found.reached.density)
    again, whole = (densities_of(loaded, method, PROMPTS, chunk=chunk).density for chunk in (80, None))
    assert again == pytest.approx(found.reached.density)
    assert whole != pytest.approx(again, abs=1e-3)


@pytest.mark.parametrize(("name", "knobs"), [("block_topk", {"last": 2}), ("kascade", {})])
def test_times_of_a_layer_are_of_all_its_chunks(name: str, knobs: dict[str, Any]) -> None:
    """Of a layer too that reuses what the layer before it selected for each chunk."""
    loaded, ids = shared("llama"), tokens(145).tolist()
    method = ready(name, block_size=16, sparsity=0.6, **knobs)
    options: dict[str, Any] = {"repeats": 1, "max_seconds": 1, "dense_kernels": ["sdpa"]}
    whole, chunked = (time_attention(loaded, method, ids, chunk=chunk, **options) for chunk in (None, 48))
    assert chunked.density == pytest.approx(whole.density) and chunked.token_density == pytest.approx(whole.token_density)
    assert chunked.kept_mass == pytest.approx(whole.kept_mass) and chunked.kernel == whole.kernel
    assert chunked.tflops * chunked.attention_ms == pytest.approx(whole.tflops * whole.attention_ms)
    second = time_attention(loaded, method, ids, chunk=48, layers=[1], **options)
    assert second.kept_mass == pytest.approx(chunked.kept_by_layer[1]), "the layer before it selects, and is not timed"
    dense = [time_attention(loaded, None, ids, chunk=chunk, **options) for chunk in (None, 48)]
    assert [d.density for d in dense] == [1, 1] and dense[0].speedup == dense[1].speedup == 1
    assert dense[0].tflops * dense[0].attention_ms == pytest.approx(dense[1].tflops * dense[1].attention_ms)


def test_a_prefill_is_timed_in_chunks() -> None:
    loaded, method = shared("llama"), Fixed()
    timing = time_prefill(loaded, method, tokens(145).tolist(), repeats=1, max_seconds=1, chunk=48)
    assert timing.ttft_ms > 0 and timing.dense_ttft_ms > 0 and timing.no_attention_ttft_ms > 0
    chunks = [(layer, n, k) for n, k in ((48, 48), (48, 96), (48, 144), (1, 145)) for layer in (0, 1)]
    assert method.seen == chunks * 2, "once for the density, and once for the time"
    rows = [1, *[2] * 9]
    assert timing.density == pytest.approx(sum(rows) / 55)


def test_chunks_are_checked_before_the_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = built("block_topk", sparsity=0.0)
    distances, _ = check(built("block_topk", sparsity=0.7), zero, chunk=8192)
    assert set(distances) == {"zero", "chunks", "causal", "selection"} and not wrong(distances)
    assert set(check(None, family="gemma3", chunk=8192)[0]) == {"own", "chunks", "causal"}

    def top_left(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return dense_attention(q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]], **options)

    monkeypatch.setattr(bridge_module, "dense_attention", top_left)
    assert wrong(check(None, chunk=8192)[0]) == {"chunks"}


def test_chunks_that_cut_a_block_are_refused() -> None:
    for name, knobs, step in (
        ("block_topk", {"block_size": 128, "sparsity": 0.5}, 128),
        ("sparge", {"block_size": 64, "as_released": True}, 128),
    ):
        method = ready(name, **knobs)
        check_chunk(8 * step, method)
        check_chunk(None, method)
        for chunk in (1, step // 2, step + 16):
            with pytest.raises(UserError, match=f"prefill.chunk={chunk}: must be a multiple of the blocks of {step} tokens"):
                check_chunk(chunk, method)
    check_chunk(1, ready("dense"))


def test_jobs_that_prefill_whole_refuse_chunks() -> None:
    able = {name for name, job in JOBS.items() if job.does is Does.MEASURES and "prefill" in job.reads}
    assert able == {"evaluate", "latency", "densities"}
    for job in JOBS.values():
        check_chunks_fit(job, None)
        if job.does is Does.MEASURES and job.name not in able:
            with pytest.raises(UserError, match=f"job={job.name} prefills in one piece, so prefill.chunk=64 does not change"):
                check_chunks_fit(job, 64)
        else:
            check_chunks_fit(job, 64)


@torch.inference_mode()
def test_the_density_of_a_mean_over_layers_counts_every_chunk_once() -> None:
    loaded, method = shared("llama_group3"), Fixed(keep="ends")
    chunked, whole = (densities_of(loaded, method, PROMPTS, chunk=chunk) for chunk in (64, None))
    assert chunked.tasks == pytest.approx(whole.tasks) and chunked.layers == pytest.approx(whole.layers)
