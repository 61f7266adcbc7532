"""One vector for every key block while keys are appended: written in place, grown in steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from methods.decode.parts.base import StepInputs


class BlockVectors:
    """Vectors [B,Hkv,blocks,E] of the blocks so far, with room for more: growing copies them once in a while, not at each step.

    Blocks that a shorter sequence doesn't have yet hold zeros.
    """

    def __init__(self, values: Tensor) -> None:
        self.count = values.shape[2]
        self._room = values
        self._rows = torch.arange(values.shape[0], device=values.device)

    @property
    def values(self) -> Tensor:
        """Return the vectors [B,Hkv,blocks,E], a view."""
        return self._room[:, :, : self.count]

    def reserve(self, count: int) -> None:
        """Make room for `count` blocks; the vectors of new ones are zeros."""
        if count > self._room.shape[2]:
            shape = list(self._room.shape)
            shape[2] = count + max(16, count // 8)
            room = self._room.new_zeros(shape)
            room[:, :, : self.count] = self.values
            self._room = room
        self.count = max(self.count, count)

    def read(self, block: Tensor) -> Tensor:
        """Return the vectors of one block of each sequence, [B,Hkv,E] for block int64 [B]."""
        return self._room[self._rows, :, block]

    def write(self, block: Tensor, vectors: Tensor) -> None:
        """Set the vectors of one block of each sequence: block int64 [B], vectors [B,Hkv,E]."""
        self._room[self._rows, :, block] = vectors


def newest(x: StepInputs, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the block of each sequence that holds its newest key, and the key's place in it: int64 [B] each."""
    last = x.lengths() - 1
    return last // block_size, last % block_size


def per_sequence(x: StepInputs, vectors: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `vectors`, a function of keys [b,Hkv,K,D] to [b,Hkv,blocks,E], of the keys of each sequence: [B,Hkv,Nk,E].

    A sequence begins at its first key; there are zeros where a shorter one has no more blocks. With padding it waits for the
    device: call it once a batch, not at a step.
    """
    if x.starts is None:
        return vectors(x.k)
    sequences = [vectors(x.k[b : b + 1, :, start:]) for b, start in enumerate(x.starts.tolist())]
    most = max(blocks.shape[2] for blocks in sequences)
    return torch.cat([torch.nn.functional.pad(blocks, (0, 0, 0, most - blocks.shape[2])) for blocks in sequences])
