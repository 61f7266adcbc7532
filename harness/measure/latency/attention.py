"""Time of one attention layer call, dense and sparse, on the activations of a real prompt.

The model prefills the prompt densely; at each layer the Bridge hands over q, k and v, and they are timed on the spot,
so only one layer's tensors live at a time, at any length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import torch
from attention_kernels import sparse_attention
from attention_kernels.dense import available_dense, dense_attention, resolve_dense
from attention_kernels.kept_mass import kept_mass
from attention_kernels.sparse_attention import Choice, SparseIndex, resolve_kernel
from torch import Tensor

from harness.core.errors import UserError
from harness.measure.latency.timing import Times, extra_mib, take_turns
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel
from methods.parts.base import LayerInputs, Method

ORACLES = ("reference", "sdpa_math")
"""Dense kernels that form the whole n × n matrix: there to be right, not to be raced."""


@dataclass(frozen=True)
class AttentionTiming:
    """Means over `layers` of per-layer medians; milliseconds per layer call.

    density: kept ÷ causal blocks of the index that ran, which a kernel that merges blocks made coarser (its attention_ms
    holds the merging). token_density: the same of (query, key) pairs. attention_ms: the kernel alone, given the method's
    index; total_ms: selection and attention timed as one, with total_low and total_high its 10th and 90th percentile.
    dense_all: every dense kernel that ran; dense_kernel is the fastest and dense_ms its time; dense_failed: why others
    did not run. speedup = dense_ms ÷ total_ms. pct_ideal = 100 · dense_ms · density ÷ total_ms.
    tflops: 4·D FLOP for each query-key pair of the tiles computed, blocks on the diagonal and tiles of columns counted whole,
    ÷ attention_ms; where the kernel decides, 2·D more for each pair of a tile that it then leaves.
    kept_mass: share of the true attention on the kept blocks, mean over layers and heads (attention_kernels.kept_mass), 1 for dense;
    kept_by_layer: of each layer.
    peak_mib: GPU memory of one call (selection and attention) beyond its inputs, the most of any layer; None on a CPU.
    repeats: calls timed in the layer with the fewest.
    """

    density: float
    token_density: float
    selection_ms: float
    attention_ms: float
    total_ms: float
    total_low: float
    total_high: float
    dense_ms: float
    dense_kernel: str
    dense_all: dict[str, float]
    dense_failed: dict[str, str]
    kernel: str
    speedup: float
    pct_ideal: float
    tflops: float
    kept_mass: float
    kept_by_layer: tuple[float, ...]
    peak_mib: float | None
    layers: tuple[int, ...]
    repeats: int


@dataclass
class _Layer:
    """What was measured in one layer."""

    times: dict[str, Times]
    density: float
    token_density: float
    flop: float
    kernel: str
    kept: float
    peak_mib: float | None


@dataclass
class _Plan:
    """What is still to be measured, and what has been."""

    loaded: LoadedModel
    method: Method | None
    sparse_kernel: str
    dense_kernel: str
    dense_kernels: list[str]
    wanted: list[int]
    repeats: int
    deadline: float
    done: dict[int, _Layer] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """The Bridge's observer: time the layer if it is wanted, end the prefill after the last one."""
        if layer not in self.wanted:
            return
        left = max(self.deadline - time.perf_counter(), 0.0) / (len(self.wanted) - len(self.done))
        self.done[layer] = _time_layer(self, layer, q, k, v, scale, max_seconds=left)
        if len(self.done) == len(self.wanted):
            raise _Enough


class _Enough(Exception):
    """All wanted layers are measured: the rest of the prefill isn't needed."""


@torch.inference_mode()
def time_attention(
    loaded: LoadedModel,
    method: Method | None,
    prompt_ids: Sequence[int],
    *,
    sparse_kernel: str = "auto",
    dense_kernel: str = "auto",
    dense_kernels: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    repeats: int = 20,
    max_seconds: float = 60.0,
) -> AttentionTiming:
    """Time a method's attention (None: dense) beside the dense kernels, in a prefill of prompt_ids.

    dense_kernel: what runs where the method asks for dense attention. dense_kernels: those it is raced with, None: all
    that run here except the ORACLES. layers None: all but those of a sliding window.
    Each layer is timed `repeats` times or as often as max_seconds allow, at least once; max_seconds leaves out the
    prefill itself. Raises UserError if nothing could be timed.
    """
    kernels = _dense_kernels(loaded, dense_kernels)
    wanted = list(range(loaded.layers)) if layers is None else sorted(set(layers))
    if not wanted or wanted[0] < 0 or wanted[-1] >= loaded.layers:
        raise UserError(f"layers={layers}: {loaded.name} has layers 0 to {loaded.layers - 1}")
    if repeats < 1 or len(prompt_ids) < 2:
        raise UserError(f"repeats={repeats}, prompt of {len(prompt_ids)} tokens: at least 1 repeat and 2 tokens")
    if method is not None:
        method = method.to(loaded.device)
    deadline = time.perf_counter() + max_seconds
    plan = _Plan(loaded, method, sparse_kernel, dense_kernel, kernels, wanted, repeats, deadline)
    ids = torch.tensor([list(prompt_ids)], dtype=torch.int64, device=loaded.device)
    with Bridge(loaded, None, observer=plan.observe, record=False), suppress(_Enough):
        loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    missing = sorted(set(wanted) - set(plan.done))
    if layers is not None and missing:
        raise UserError(f"layers={list(layers)}: {missing} attend to a sliding window here and are never sparse")
    if not plan.done:
        raise UserError(f"{loaded.name}: every layer attends to a sliding window at {len(prompt_ids)} tokens")
    return _summary(plan)


def _dense_kernels(loaded: LoadedModel, wanted: Sequence[str] | None) -> list[str]:
    where: dict[str, Any] = {"device": loaded.device, "dtype": loaded.dtype, "head_dim": loaded.head_dim}
    if wanted is not None:
        return sorted({resolve_dense(name, **where) for name in wanted})
    found = [name for name in available_dense(**where) if name not in ORACLES]
    if not found:
        raise UserError(f"no dense kernel runs on {loaded.device} with {loaded.dtype} and head_dim {loaded.head_dim}")
    return found


def _time_layer(plan: _Plan, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, *, max_seconds: float) -> _Layer:
    loaded, method = plan.loaded, plan.method
    inputs = LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=_rope(loaded, layer, method))
    functions: dict[str, Callable[[], Any]] = {}
    for name in plan.dense_kernels:
        dense = partial(dense_attention, q, k, v, scale=scale, kernel=name)
        if _runs(plan, name, dense):
            functions[f"dense {name}"] = dense
    if not functions:
        raise UserError(f"no dense kernel could run: {plan.failed}")

    def select() -> Choice | None:
        return None if method is None else method.select(inputs)

    choice = select()
    kernel = _kernel(plan, choice, heads=q.shape[1])

    def attend(chosen: Choice | None) -> tuple[Tensor, SparseIndex | None]:
        if chosen is None:
            return dense_attention(q, k, v, scale=scale, kernel=kernel), None
        return sparse_attention.attend(q, k, v, chosen, scale=scale, kernel=kernel)

    peak = extra_mib(lambda: attend(select()), loaded.device)
    functions |= {"selection": select, "attention": lambda: attend(choice), "total": lambda: attend(select())}
    times = take_turns(functions, loaded.device, repeats=plan.repeats, max_seconds=max_seconds)
    ran = attend(choice)[1]
    density, token_density, work = _work(q, k, choice, ran)
    kept = 1.0 if ran is None else float(kept_mass(q, k, ran, scale=scale).mean())
    return _Layer(times, density, token_density, work, kernel, kept, peak)


def _rope(loaded: LoadedModel, layer: int, method: Method | None) -> Any:
    if method is None or not method.needs_rope:
        return None
    from harness.models.rope import ModelRope

    return ModelRope(loaded.model, layer)


def _runs(plan: _Plan, name: str, function: Callable[[], Any]) -> bool:
    """Whether a dense kernel runs on these tensors; a reason why not is kept, and it isn't tried again."""
    if name in plan.failed:
        return False
    try:
        function()
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:  # out of memory is a RuntimeError
        plan.failed[name] = next(iter(str(error).splitlines()), type(error).__name__)
        return False
    return True


def _kernel(plan: _Plan, choice: Choice | None, *, heads: int) -> str:
    where: dict[str, Any] = {
        "device": plan.loaded.device,
        "dtype": plan.loaded.dtype,
        "head_dim": plan.loaded.head_dim,
    }
    if choice is None:
        return resolve_dense(plan.dense_kernel, **where)
    return resolve_kernel(plan.sparse_kernel, choice, heads=heads, **where)


def _work(q: Tensor, k: Tensor, choice: Choice | None, ran: SparseIndex | None) -> tuple[float, float, float]:
    """Density, token density, and FLOP of the attention (two products of 2·D FLOP a pair)."""
    batch, heads, tokens, dim = q.shape
    if choice is None or ran is None:
        offset = k.shape[2] - tokens
        return 1.0, 1.0, 4.0 * dim * batch * heads * (tokens * offset + tokens * (tokens + 1) / 2)
    return float(ran.density().mean()), float(ran.token_density().mean()), sparse_attention.flop(q, choice, ran)


def _summary(plan: _Plan) -> AttentionTiming:
    layers = [plan.done[i] for i in sorted(plan.done)]

    def mean(name: str, what: str = "median") -> float:
        return fmean(getattr(layer.times[name], what) for layer in layers)

    raced = [name for name in plan.dense_kernels if name not in plan.failed]
    if not raced:
        raise UserError(f"no dense kernel ran in every layer: {plan.failed}")
    dense = {name: mean(f"dense {name}") for name in raced}
    fastest = min(dense, key=dense.__getitem__)
    density = fmean(layer.density for layer in layers)
    total, attention = mean("total"), mean("attention")
    peaks = [layer.peak_mib for layer in layers if layer.peak_mib is not None]
    return AttentionTiming(
        density=density,
        token_density=fmean(layer.token_density for layer in layers),
        selection_ms=mean("selection"),
        attention_ms=attention,
        total_ms=total,
        total_low=mean("total", "low"),
        total_high=mean("total", "high"),
        dense_ms=dense[fastest],
        dense_kernel=fastest,
        dense_all=dense,
        dense_failed=dict(plan.failed),
        kernel="+".join(sorted({layer.kernel for layer in layers})),
        speedup=dense[fastest] / total,
        pct_ideal=100 * dense[fastest] * density / total,
        tflops=fmean(layer.flop for layer in layers) / (attention * 1e9),
        kept_mass=fmean(layer.kept for layer in layers),
        kept_by_layer=tuple(layer.kept for layer in layers),
        peak_mib=max(peaks) if peaks else None,
        layers=tuple(sorted(plan.done)),
        repeats=min(layer.times["total"].repeats for layer in layers),
    )
