"""Every sparse method at a density that is asked for: its knob searched on the input, its index checked."""

from __future__ import annotations

from attention_kernels.block_index import BlockIndex
from attention_kernels.sparse_attention import SparseIndex

import methods
from methods.parts.base import LayerInputs, Method
from tests.methods.support import bisect, ready

SPARSE = [name for name in methods.names() if methods.get(name).family != "none" and not methods.get(name).in_kernel]
THRESHOLDS = [name for name in SPARSE if methods.get(name).family == "threshold"]
"""Methods that spend more on some rows and heads than on others; their knob is bisected for a density."""


def calibrated(name: str, x: LayerInputs, **knobs: object) -> Method:
    """A method whose knob, where its sparsity has no formula for it, has been found on x."""
    method = ready(name, block_size=16, **knobs)
    knob = method.calibrates()
    if knob is not None:

        def measure(value: float) -> float:
            method.set_knob(knob, value)
            index = method.select(x)
            assert index is not None
            return float(index.density().mean())

        assert method.sparsity is not None
        method.set_knob(knob, bisect(measure, knob, 1 - method.sparsity))
    return method


def select(name: str, x: LayerInputs, **knobs: object) -> SparseIndex:
    index = calibrated(name, x, **knobs).select(x)
    assert index is not None
    index.validate()
    return index


def select_blocks(name: str, x: LayerInputs, **knobs: object) -> BlockIndex:
    return blocks_of(select(name, x, **knobs))


def blocks_of(index: SparseIndex) -> BlockIndex:
    """The blocks alone, of an index that has columns too."""
    return index if isinstance(index, BlockIndex) else index.blocks
