"""Time to first token: a whole prefill with its KV cache, from the ids on the device to the first token's logits.

A prefill without attention takes turns with the others: the limit of what a method of attention can reach. It is measured, not
computed from the times of a layer: calls of attention alone need not take what they take within a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.core.errors import UserError
from harness.measure.latency.timing import peak_mib, take_turns
from harness.models.bridge import Bridge
from harness.models.chunks import Chunks
from harness.models.chunks import prefill as prefill_prompt
from harness.models.loading import LoadedModel
from methods.parts.base import Method

BASELINE, METHOD, NO_ATTENTION = "baseline", "method", "no_attention"
"""The prefills of a round: with dense attention, with the method, and without attention. The first round runs them in this
order, and every other one in the reverse order."""


@dataclass(frozen=True)
class PrefillTiming:
    """Milliseconds from prompt to first token: median, 10th and 90th percentile of `repeats` runs.

    peak_mib: the most GPU memory allocated during a prefill, weights included; None on a CPU, which keeps no count.
    dense_ttft_ms: with dense attention, the runs taking turns with the method's (`Times.beside`). no_attention_ttft_ms: the
    same without attention (`Bridge.without_attention`). density, token_density: of the method in this prefill, where a layer
    sees what the sparse layers before it made: kept ÷ causal blocks, attended ÷ causal (query, key) pairs. rounds: the time of
    each round of BASELINE, METHOD (none of dense attention) and NO_ATTENTION, in the order in which the first round ran them.
    """

    ttft_ms: float
    low: float
    high: float
    peak_mib: float | None
    repeats: int
    dense_ttft_ms: float
    no_attention_ttft_ms: float
    density: float
    token_density: float
    rounds: dict[str, tuple[float, ...]] = field(compare=False)


@torch.inference_mode()
def time_prefill(
    loaded: LoadedModel,
    method: Method | None,
    prompt_ids: Sequence[int],
    *,
    sparse_kernel: str = "auto",
    dense_kernel: str = "auto",
    repeats: int = 5,
    max_seconds: float = 60.0,
    chunk: int | None = None,
) -> PrefillTiming:
    """Time the prefill of one prompt with a method (None: dense), in turns with dense attention and with none.

    chunk: tokens of the prompt that go through the model at once, into a cache that has room for all of them; None: all.

    Runs `repeats` times or as often as max_seconds allow, at least once; on a GPU two more runs warm up before.
    Raises UserError for no repeats or no prompt.
    """
    if repeats < 1 or not prompt_ids:
        raise UserError(f"repeats={repeats}, prompt of {len(prompt_ids)} tokens: both must be at least 1")
    device = loaded.device
    ids = torch.tensor([list(prompt_ids)], dtype=torch.int64, device=device)

    def prefill() -> None:
        chunks = None if chunk is None else Chunks(chunk, bridge.chunked)
        prefill_prompt(loaded, ids, chunks, use_cache=True)

    kernels: dict[str, Any] = {"sparse_kernel": sparse_kernel, "dense_kernel": dense_kernel}
    densities = (1.0, 1.0)
    if method is not None:
        with Bridge(loaded, method, **kernels) as bridge:  # by itself: what is noted costs time
            prefill()
            densities = _densities(bridge)
    with Bridge(loaded, method, record=False, **kernels) as bridge:
        peak = peak_mib(prefill, device)

        def dense() -> None:
            bridge.method = None
            prefill()

        def sparse() -> None:
            bridge.method = method
            prefill()

        def bare() -> None:
            with bridge.without_attention():
                prefill()

        functions = {BASELINE: dense, METHOD: sparse, NO_ATTENTION: bare}
        if method is None:
            del functions[METHOD]
        times = take_turns(functions, device, repeats=repeats, max_seconds=max_seconds, head_start=False)
    ttft = times.get(METHOD, times[BASELINE])
    return PrefillTiming(
        ttft.median,
        ttft.low,
        ttft.high,
        peak,
        ttft.repeats,
        dense_ttft_ms=times[BASELINE].beside(ttft).median,
        no_attention_ttft_ms=times[NO_ATTENTION].beside(ttft).median,
        density=densities[0],
        token_density=densities[1],
        rounds={name: times[name].samples for name in functions},
    )


def _densities(bridge: Bridge) -> tuple[float, float]:
    """Return density and token density of the one prefill that a bridge has seen, 1 where no layer let the method choose."""
    blocks, pairs = bridge.prefill_densities(), bridge.prefill_densities(tokens=True)
    return (blocks[0], pairs[0]) if blocks else (1.0, 1.0)
