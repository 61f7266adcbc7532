"""What a study of kernels measures: its grid, and the cases of that, each one row, in the order in which they are timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SHARED = "_shared"
"""End of the name of an index kind whose query heads of a GQA group share one index (H = KV heads)."""

UNIFORM = "uniform"
"""Index kind of blocks drawn uniformly, without a model; every other kind is a method that selects on a model's activations."""

FULL, SPARSE, SELECTION, BLOCK_MAP = "full", "sparse", "selection", "block_map"
"""What a case times: dense attention, attention over an index (alone, and with the selection before it), the selection
alone, or the pooled map of true attention that gates learn from."""


PREFILL, DECODE, TRAINING = "prefill", "decode", "training"
"""Phases: queries are all tokens; one query for each sequence of a batch; all tokens, and the backward pass after it."""


@dataclass(frozen=True)
class Shape:
    """The shape of a model's attention: query heads, KV heads, elements of a head."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama3_8b", 32, 8, 128),
        Shape("qwen3_4b", 32, 8, 128),
        Shape("qwen2_7b", 28, 4, 128),
        Shape("bundled", 4, 2, 64),
    )
}
"""Shapes by name: those of the models in conf/model."""


@dataclass(frozen=True)
class Case:
    """One row of the study: a kernel at one length, batch, block size and sparsity. op: what is timed, see FULL.

    method: where the index comes from, or the method whose selection is timed. index: the kind of index, empty without one.
    selection: the method whose selection is timed before the attention, empty for none. last: query blocks at the end that keep
    everything, or as many of them as half of the budget pays; the others pay, so that the density stays.
    """

    op: str
    length: int
    batch: int
    kernel: str
    method: str
    block: int | None = None
    sparsity: float | None = None
    index: str = ""
    selection: str = ""
    last: int = 0

    @property
    def shared(self) -> bool:
        """Return whether the query heads of a GQA group share one index."""
        return self.index.endswith(SHARED)

    @property
    def turn(self) -> tuple[Any, ...]:
        """Return a key that is equal for the cases that are timed in turns, on the same tensors and index, whether some of its
        rows are full or not."""
        method = self.method if self.op == SELECTION else ""
        return self.op, self.length, self.batch, self.block, self.sparsity, self.index, method

    def as_dict(self) -> dict[str, Any]:
        """Return its fields, as a record carries them: without `last` where it is 0, as records older than it are."""
        return {name: value for name, value in asdict(self).items() if name != "last" or value}


@dataclass(frozen=True)
class Grid:
    """All settings of a study. phase: see PREFILL.

    block_map: kernel of the block map, None: not timed. baseline: the method that drops nothing. merges: sparse kernels that
    merge finer blocks, and the size they merge them to; at that size itself they are another kernel by another name, and
    are left out. last: see Case; of sparse attention alone.
    """

    phase: str
    shape: Shape
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    sparsities: tuple[float, ...]
    blocks: tuple[int, ...]
    kernels: tuple[str, ...]
    dense: tuple[str, ...]
    indices: tuple[str, ...]
    selections: tuple[str, ...]
    block_map: str | None
    baseline: str
    merges: Mapping[str, int] = field(default_factory=dict)
    last: tuple[int, ...] = (0,)

    def cases(self) -> list[Case]:
        """Return every case: short lengths first, at each length dense attention first, then the sparsities, blocks and indices
        in the order given (a run that is cut has the first ones whole), the block maps last."""
        sizes = [(length, batch) for length in sorted(self.lengths) for batch in sorted(self.batches)]
        return [case for length, batch in sizes for case in self._at(length, batch)]

    def _at(self, length: int, batch: int) -> Iterator[Case]:
        for kernel in self.dense:
            yield Case(FULL, length, batch, kernel, self.baseline)
        for sparsity in self.sparsities:
            for block in self.blocks:
                yield from self._sparse(length, batch, block, sparsity)
        if self.block_map is not None:
            for block in self.blocks:
                yield Case(BLOCK_MAP, length, batch, self.block_map, BLOCK_MAP, block)

    def _sparse(self, length: int, batch: int, block: int, sparsity: float) -> Iterator[Case]:
        for ending in ("", SHARED):
            if any(kind.endswith(SHARED) == bool(ending) for kind in self.indices):
                for method in self.selections:
                    index = f"{method}{ending}"
                    yield Case(SELECTION, length, batch, "", method, block, sparsity, index, method)
        for index in self.indices:
            for kernel in (name for name in self.kernels if self.merges.get(name) != block):
                method, selection = index.removesuffix(SHARED), next(iter(self.selections), "")
                for last in self.last:
                    yield Case(SPARSE, length, batch, kernel, method, block, sparsity, index, selection, last)
