"""Time of an attention layer call, dense and sparse, on the activations of a real prompt: the mean over a model's layers.

The model prefills the prompt densely; each layer's queries, keys and values are timed on the spot (`layer.py`), so only one
layer's tensors live at a time, at any length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from attention_kernels.dense import available_dense, broken_dense
from torch import Tensor

from harness.core.errors import UserError
from harness.measure.latency.layer import LayerTimer, LayerTiming, selection_of, time_layer
from harness.models.kernel_choice import dense_kernel_of, kernel_site
from harness.models.loading import LoadedModel
from harness.models.observe import PrefillDone, dense_prefill
from methods.parts.base import Method

ORACLES = ("reference", "sdpa_math")
"""Dense kernels that form the whole n × n matrix: there to be right, not to be raced."""


@dataclass(frozen=True)
class AttentionTiming:
    """The attention of one prompt: means over `layers` of per-layer medians, in milliseconds per layer call. All times of a
    layer are of the same rounds and go together (`Times.beside`), and so do their means and ratios.

    density: kept ÷ causal blocks of the index that ran, which a kernel that merges blocks made coarser (its attention_ms
    holds the merging). token_density: the same of (query, key) pairs. global_layers: how many layers attend to the whole
    prompt, timed or not. attention_ms: the kernel alone, given the method's
    index; total_ms: selection and attention timed as one, with total_low and total_high its 10th and 90th percentile.
    dense_all: every dense kernel that ran; dense_kernel is the fastest and dense_ms its time; dense_failed: why others
    did not run. speedup = dense_ms ÷ total_ms. pct_ideal = 100 · dense_ms · density ÷ total_ms.
    tflops: 4·D FLOP for each query-key pair of the tiles computed, blocks on the diagonal and tiles of columns counted whole,
    ÷ attention_ms; where the kernel decides, 2·D more for each pair of a tile that it then leaves.
    kept_mass: share of the true attention on the kept blocks (attention_kernels.kept_mass), the mean over layers and heads, 1
    for dense; kept_by_layer: of each layer.
    full_row_kernel: what ran the last rows that keep everything, in any layer; None where there are none.
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
    global_layers: int
    repeats: int
    full_row_kernel: str | None = None


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
    chunk: int | None = None,
) -> AttentionTiming:
    """Time a method's attention (None: dense) beside the dense kernels, in a prefill of prompt_ids.

    dense_kernel: what runs where the method asks for dense attention. dense_kernels: those it is raced with, None: all
    that run on the device except the ORACLES. layers None: all but those of a sliding window. chunk: queries at once, each call
    being all chunks of the prompt in their order, the dense kernels' too; None: all queries.
    Each layer is timed `repeats` times or as often as max_seconds allow, at least once; max_seconds leaves out the
    prefill itself. Raises UserError if nothing could be timed.
    """
    chosen = list(range(loaded.layers)) if layers is None else sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= loaded.layers:
        raise UserError(f"layers={layers}: {loaded.name} has layers 0 to {loaded.layers - 1}")
    if repeats < 1 or len(prompt_ids) < 2:
        raise UserError(f"repeats={repeats}, prompt of {len(prompt_ids)} tokens: at least 1 repeat and 2 tokens")
    timer = LayerTimer(
        loaded,
        None if method is None else method.to(loaded.device),
        sparse_kernel,
        dense_kernel,
        _raced_kernels(loaded, dense_kernels),
        repeats,
        failures={} if dense_kernels is not None else broken_dense(**kernel_site(loaded)),
        chunk=chunk,
    )
    timings: dict[int, LayerTiming] = {}
    deadline = time.perf_counter() + max_seconds

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        if layer not in chosen:
            selection_of(timer, layer, q, k, v, scale)()  # the method may choose again in a later layer what it chose here
            return
        seconds = max(deadline - time.perf_counter(), 0.0) / (len(chosen) - len(timings))
        timings[layer] = time_layer(timer, layer, q, k, v, scale, max_seconds=seconds)
        if len(timings) == len(chosen):
            raise PrefillDone  # the layers after the last one that was chosen would cost time for nothing

    dense_prefill(loaded, [prompt_ids], observe)
    missing = sorted(set(chosen) - set(timings))
    if layers is not None and missing:
        raise UserError(f"layers={list(layers)}: {missing} attend to a sliding window here and are never sparse")
    if not timings:
        raise UserError(f"{loaded.name}: every layer attends to a sliding window at {len(prompt_ids)} tokens")
    return _summary(timings, timer, len(global_layers_at(loaded, len(prompt_ids))))


def global_layers_at(loaded: LoadedModel, tokens: int) -> list[int]:
    """Return the layers that attend to the whole of a prompt of so many tokens, in their order: those a method chooses in."""
    return [shape.layer for shape in loaded.layer_shapes if shape.window is None or shape.window >= tokens]


def spread_layers(loaded: LoadedModel, tokens: int, count: int) -> list[int]:
    """Return `count` of the layers of `global_layers_at`, evenly spaced, or all where there are no more."""
    layers = global_layers_at(loaded, tokens)
    count = min(count, len(layers))
    return [layers[(2 * place + 1) * len(layers) // (2 * count)] for place in range(count)]


def _raced_kernels(loaded: LoadedModel, names: Sequence[str] | None) -> list[str]:
    """Return the dense kernels to race a method with: those named, or all fast ones that run on the model's device."""
    if names is not None:
        return sorted({dense_kernel_of(loaded, name) for name in names})
    kernels = [name for name in available_dense(**kernel_site(loaded)) if name not in ORACLES]
    if not kernels:
        raise UserError(f"no dense kernel runs on {loaded.device} with {loaded.dtype} and head_dim {loaded.head_dim}")
    return kernels


def _summary(timings: dict[int, LayerTiming], timer: LayerTimer, global_layers: int) -> AttentionTiming:
    layers = [timings[layer] for layer in sorted(timings)]

    def mean(name: str, statistic: str = "median") -> float:
        return fmean(getattr(layer.times[name], statistic) for layer in layers)

    raced = [name for name in timer.dense_kernels if name not in timer.failures]
    if not raced:
        raise UserError(f"no dense kernel ran in every layer: {timer.failures}")
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
        dense_failed=dict(timer.failures),
        kernel="+".join(sorted({layer.kernel for layer in layers})),
        speedup=dense[fastest] / total,
        pct_ideal=100 * dense[fastest] * density / total,
        tflops=fmean(layer.flop for layer in layers) / (attention * 1e9),
        kept_mass=fmean(layer.kept_mass for layer in layers),
        kept_by_layer=tuple(layer.kept_mass for layer in layers),
        peak_mib=max(peaks) if peaks else None,
        layers=tuple(sorted(timings)),
        global_layers=global_layers,
        repeats=min(layer.times["total"].repeats for layer in layers),
        full_row_kernel="+".join(sorted({layer.full_row_kernel for layer in layers if layer.full_row_kernel})) or None,
    )
