"""A round of decoding steps as one CUDA graph, as servers decode: what is timed is the device, not the launches of Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.models.rope import rope_tables


@dataclass(frozen=True)
class RoundGraph:
    """The steps of a round, replayed. pool, tables: memory that the graph reads by its address: what a method keeps of all keys
    after the first step of a round, and the tables of RoPE."""

    graph: torch.cuda.CUDAGraph
    pool: Any
    tables: list[Tensor]

    def __call__(self) -> None:
        """Run the steps once: from the first column after the prompt and the step before, as every time."""
        self.graph.replay()


def captured_round(model: Any, begin: Callable[[], None], run: Callable[[], None], device: torch.device) -> RoundGraph:
    """Return the steps that `run` takes after `begin`, captured; both must have run before, so that every kernel is compiled.

    What `begin` allocates stays as it is for as long as the graph lives, in a pool that nothing else allocates from, although
    the steps put tensors of their own in its place: each replay starts from it. A method that changes it in place must come to
    the same when the same keys are taken in once more. Raises RuntimeError where a step waits for the device.
    """
    with torch.cuda.device(device):
        begin()
        with waits_refused():  # found out before, as a capture that fails can end the process with the pool it leaves
            run()
        pool = torch.cuda.MemPool()
        with torch.cuda.use_mem_pool(pool):
            begin()
        graph = torch.cuda.CUDAGraph()
        # torch leaves the stream of a capture that fails the current one
        with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph):
            run()
    return RoundGraph(graph, pool, rope_tables(model))


@contextmanager
def waits_refused() -> Iterator[None]:
    """Let PyTorch raise RuntimeError at each call that waits for the GPU, for as long as the context lasts."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says at each change that its own mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
