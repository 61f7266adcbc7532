"""CUDA graphs, for calls so short that the launches of Python would be what is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def captured(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return a function that replays the kernels of one call as a CUDA graph; on a CPU the function itself.

    Raises RuntimeError where the call waits for the device or asks for memory in a way that a graph can't hold.
    """
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # compiles, and sets up what a first call sets up
        for _ in range(2):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Any:
        graph.replay()
        return result  # the graph writes into it: it must live as long

    return replay
