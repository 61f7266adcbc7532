"""The base class of decoding methods: at every step they choose the key blocks that the newest token attends to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import select_step
from torch import Tensor

from methods.parts.base import Family
from methods.parts.release import Releasable
from methods.parts.rope_protocol import Rope

if TYPE_CHECKING:
    from methods.gates.decode_gate import DecodeGate

BLOCK_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class StepInputs:
    """One layer at one step as a method sees it: q [B,Hq,1,D] of the newest token and k [B,Hkv,K,D] of all, the newest last;
    post-RoPE, KV heads not repeated.

    starts: int32 [B], the column of each sequence's first key, in a batch that is padded on the left; None: no padding.
    Sequence b has K - starts[b] tokens, and its block j begins at column starts[b] + j × block size: the choice for a sequence
    must not depend on its neighbours. rope: None unless the method has `needs_rope`.
    """

    q: Tensor
    k: Tensor
    layer: int
    scale: float
    rope: Rope | None = None
    starts: Tensor | None = None

    def lengths(self) -> Tensor:
        """Return the tokens of each sequence, int64 [B]."""
        batch, length = self.k.shape[0], self.k.shape[2]
        if self.starts is None:
            return torch.full((batch,), length, dtype=torch.int64, device=self.k.device)
        return length - self.starts.long()


class DecodeMethod(Releasable, ABC):
    """A method of sparse decoding. Subclasses take knobs of their own as keyword arguments beside the shared ones.

    block_size: tokens of a block. budget: tokens to attend to at each step, in whole blocks (rounded down). sparsity: share
    of a sequence's blocks to leave out at each step instead, in [0, 1). Without either, the method's own default budget.
    dense_layers: first layers that attend to everything. seed: of methods that draw.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where the method comes from: title and arXiv number."""
    knob: ClassVar[str] = "budget"
    """The native knob: what decides how many blocks are kept."""
    family: ClassVar[Family]
    default_budget: ClassVar[int] = 1024
    """Tokens, where neither a budget nor a sparsity is given."""
    least_blocks: ClassVar[int] = 1
    """Blocks that each step keeps at least, the newest among them."""
    weights: ClassVar[str | None] = None
    """File name of the trained weights it needs, with {block_size} in it where they depend on that; None: none."""
    gate: ClassVar[type[DecodeGate] | None] = None
    """The gate that job=distill trains for it, one a layer; None where nothing is trained."""
    needs_rope: ClassVar[bool] = False
    """Whether it needs the layer's rotary embedding."""

    def __init__(
        self,
        *,
        block_size: int = 16,
        budget: int | None = None,
        sparsity: float | None = None,
        dense_layers: int = 0,
        seed: int = 0,
    ) -> None:
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size={block_size}: must be one of {', '.join(map(str, BLOCK_SIZES))}")
        if sparsity is not None and budget is not None:
            raise ValueError(f"budget={budget} and sparsity={sparsity}: give one of them")
        if sparsity is not None and not 0 <= sparsity < 1:
            raise ValueError(f"sparsity={sparsity}: must be at least 0 (keep every block) and below 1, for example 0.9")
        if budget is not None and budget < block_size:
            raise ValueError(f"budget={budget}: must hold at least one block of {block_size} tokens")
        if dense_layers < 0 or seed < 0:
            raise ValueError(f"dense_layers={dense_layers}, seed={seed}: both must be at least 0")
        self.block_size = block_size
        self.budget = self.default_budget if budget is None and sparsity is None else budget
        self.sparsity = sparsity
        self.dense_layers = dense_layers
        self.seed = seed

    # -- what the harness calls, for each layer: start once a batch, extend and select at every step -------------------

    def start(self, x: StepInputs) -> Any:
        """Return the state that the method keeps of one layer's keys, made from all of them; None where it keeps nothing."""
        return None

    def extend(self, state: Any, x: StepInputs) -> None:
        """Take in the newest key, k[:, :, -1], and no other: a step must not read the cache again. In place."""
        return None

    @abstractmethod
    def select(self, x: StepInputs, state: Any) -> BlockIndex | None:
        """Return the key blocks of one step, from a state that knows the newest key; None attends to everything.

        Never waits for the device.
        """

    def load(self, state: Mapping[str, Tensor], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        """Load trained weights. Raises ValueError, one line, where they don't fit the model."""
        raise ValueError(f"decode method {self.name} has no trained weights to load")

    def weights_name(self) -> str | None:
        """Return the file name of the trained weights that it needs at its block size; None where it needs none."""
        return None if self.weights is None else self.weights.format(block_size=self.block_size)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        """Return all knobs and their values, as a row records them."""
        return {
            "block_size": self.block_size,
            "budget": self.budget,
            "sparsity": self.sparsity,
            "dense_layers": self.dense_layers,
        }

    def to(self, device: Any) -> Self:
        """Move the tensors that the method holds to a device, and return it."""
        return self

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def blocks(self, x: StepInputs) -> Tensor:
        """Return the blocks of each sequence, int64 [B]."""
        return (x.lengths() + self.block_size - 1) // self.block_size

    def keep(self, blocks: int) -> int:
        """Return how many of so many blocks to keep."""
        if self.budget is not None:
            target = self.budget // self.block_size
        else:
            assert self.sparsity is not None
            target = round((1 - self.sparsity) * blocks)
        return min(blocks, max(target, self.least_blocks))

    def keeps_all(self, x: StepInputs) -> bool:
        """Return whether the budget holds every block of every sequence, so that there is nothing to choose."""
        blocks = -(-x.k.shape[2] // self.block_size)
        return self.keep(blocks) == blocks

    def best(self, scores: Tensor, x: StepInputs) -> BlockIndex:
        """Return the best blocks of each list, as many as the budget or the sparsity says; the newest block is always kept.

        scores: float32 [B,H,Nk] of each sequence's own blocks, H the query heads or the KV heads.
        """
        longest = -(-x.k.shape[2] // self.block_size)
        width = self.keep(longest)
        if x.starts is None:
            counts = torch.full((scores.shape[0],), width, dtype=torch.int32, device=scores.device)
        else:
            counts = self._counts(self.blocks(x)).to(torch.int32)
        return select_step(scores, k_block=self.block_size, k_len=x.k.shape[2], counts=counts, width=width, starts=x.starts)

    def _counts(self, blocks: Tensor) -> Tensor:
        """Return `keep` of every sequence's blocks, int64 [B], on the device."""
        if self.budget is not None:
            target = torch.full_like(blocks, self.budget // self.block_size)
        else:
            assert self.sparsity is not None
            target = torch.round((1 - self.sparsity) * blocks.double()).long()  # to even, as Python's
        return torch.minimum(blocks, target.clamp(min=self.least_blocks))
