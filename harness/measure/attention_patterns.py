"""The heads of a model whose maps show a kind of pattern best, over all layers and heads of one prompt: job=maps
patterns=true."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attention_kernels.block_map import block_map
from rich.console import Console
from torch import Tensor
from torch.nn.functional import max_pool2d

from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.settings import Settings
from harness.measure.attention_maps import PreparedPrompt, prepare, stem_of
from harness.measure.head_patterns import Map, PatternRecord, best_heads
from harness.models.observe import dense_prefill, global_layers, layer_inputs
from harness.study.provenance import command, commit, device_name, now, versions
from harness.study.store import Store
from methods.parts.base import LayerInputs, Method

MOST_ROWS = 64
"""Rows of a map at most: of longer prompts several blocks are one, by their largest."""


def measure_patterns(settings: Settings, store: Store, console: Console) -> tuple[str, PatternRecord]:
    """Return the record of the heads that show each kind best, and how its file's name begins. The maps are what the
    method expects of the true ones (`Method.scores`), or those themselves where it says nothing. Raises UserError for bad
    settings, and where there are too few heads or blocks to tell patterns apart."""
    settings, ready = prepare(settings, store, console)
    identity = ready.arm.identity
    try:
        maps, pooled = _maps_of_heads(ready, settings)
        patterns = best_heads(maps)
    except UserError:
        raise
    except ValueError as error:
        raise as_user_error(error) from error
    record = PatternRecord(
        model=ready.loaded.name,
        method=identity.method,
        knobs=dict(identity.knobs),
        task=ready.names[0],
        length=settings.length,
        block=ready.method.block_size * pooled,
        seed=settings.seed,
        dtype=str(ready.loaded.dtype).removeprefix("torch."),
        device=device_name(ready.loaded.device),
        commit=commit(),
        command=command(),
        versions=versions(),
        date=now(),
        maps=len(maps),
        patterns=patterns,
    )
    return stem_of(ready.arm, settings.length), record


@torch.inference_mode()
def _maps_of_heads(ready: PreparedPrompt, settings: Settings) -> tuple[dict[tuple[int, int], Map], int]:
    """Return the maps of all query heads of all layers that attend to the whole prompt, by layer and head, and how many
    blocks are one row of them."""
    loaded, method = ready.loaded, ready.method.to(ready.loaded.device)
    layers = set(global_layers(loaded, ready.prompt, dense_kernel=settings.dense_kernel))
    maps: dict[tuple[int, int], Map] = {}
    blocks = -(-len(ready.prompt) // method.block_size)
    factor = -(-blocks // MOST_ROWS)

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        if layer in layers:
            for head, values in enumerate(
                _pooled(_layer_maps(layer_inputs(loaded, method, layer, q, k, scale), method), factor)
            ):
                maps[layer, head] = values.numpy()

    dense_prefill(loaded, [ready.prompt], observe, dense_kernel=settings.dense_kernel)
    return maps, factor


def _layer_maps(inputs: LayerInputs, method: Method) -> Tensor:
    """Return the maps [Hq, n, n] of a layer (batch 1), rows summing to 1."""
    heads, block = inputs.q.shape[1], method.block_size
    maps = method.scores(inputs)
    if maps is None:
        group = heads // inputs.k.shape[1]
        keys = inputs.k.repeat_interleave(group, 1)
        maps = block_map(inputs.q, keys, q_block=block, k_block=block, scale=inputs.scale)
    return maps[0].repeat_interleave(heads // maps.shape[1], 0)


def _pooled(maps: Tensor, factor: int) -> Sequence[Tensor]:
    """Return maps, `factor` rows and columns as one by their largest, float64 on the CPU, rows summing to 1."""
    pooled = max_pool2d(maps.float()[None], factor, ceil_mode=True)[0].double().cpu()
    return list(pooled / pooled.sum(-1, keepdim=True).clamp_min(1e-30))
