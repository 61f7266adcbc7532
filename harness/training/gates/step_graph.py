"""Forward passes of a training, replayed as CUDA graphs: a small model spends most of a step launching kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, local_layers
from harness.models.rope import rope_tables

WARM_UPS = 2
"""Passes of a shape that run as they are before one is captured: they compile kernels, fill tables and make gradients."""

Pass = Callable[[Tensor], Tensor]
"""Takes tokens [B,N] int64, adds to the gradients of gates, and returns loss and recall [T,2] of T trainings."""


@dataclass(frozen=True)
class _Graph:
    """A captured pass, the tokens that it reads and the loss and recall that it writes. tables: others that it reads, which
    nobody else may hold by then."""

    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    means: Tensor
    tables: list[Tensor]


class PassGraphs:
    """Runs passes of one shape after the first `WARM_UPS` by replaying the same kernels on the same memory.

    run: the pass. constants: returns all beside the tokens' shape that the pass at hand hangs on, which a graph holds as
    constants: another value is captured anew. The gradients must be set to zero between steps, not taken away. The graphs
    share their memory, as they never run beside each other. Raises UserError for a device or a model that it is not for.
    """

    def __init__(self, run: Pass, constants: Callable[[], tuple[object, ...]], loaded: LoadedModel) -> None:
        if loaded.device.type != "cuda":
            raise UserError(f"job.cuda_graph=true needs a CUDA device, not {loaded.device.type}: leave it false")
        if local_layers(loaded):
            raise UserError(
                f"job.cuda_graph=true: {loaded.name} has layers of a sliding window, which long rows leave out: leave it false"
            )
        self.run, self.constants, self.loaded = run, constants, loaded
        self._stream = torch.cuda.Stream(loaded.device)
        self._memory = torch.cuda.graph_pool_handle()
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        key, current = (*tokens.shape, *self.constants()), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if self._seen[key] < WARM_UPS:
                means = self.run(tokens)
            else:
                if key not in self._graphs:
                    self._graphs[key] = self._captured(tokens)
                captured = self._graphs[key]
                captured.tokens.copy_(tokens)
                captured.graph.replay()
                means = captured.means.clone()  # the next replay writes over it
            self._seen[key] += 1
        current.wait_stream(self._stream)
        return means

    def _captured(self, tokens: Tensor) -> _Graph:
        """Return the graph of a pass over tokens of this shape; capturing computes nothing."""
        own, graph = tokens.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            means = self.run(own)
        return _Graph(graph, own, means, rope_tables(self.loaded.model))
