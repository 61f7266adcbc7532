"""What a method knows of a prompt that comes to it in chunks: how long it is, and the vectors of its blocks of keys so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class _KeptVectors:
    """Vectors [B,H,blocks,E] with room for the whole prompt; those of the first `blocks` blocks, which have ended, are
    final."""

    room: Tensor
    blocks: int = 0


@dataclass(frozen=True)
class ChunkedPrompt:
    """A prompt that is prefilled in chunks, as one layer sees it from its first chunk to its last.

    tokens: of the whole prompt, which is known before its first chunk. Each chunk is a multiple of the method's block, but for
    the last one.
    """

    tokens: int
    _kept: dict[tuple[str, int], _KeptVectors] = field(default_factory=dict, repr=False, compare=False)

    def block_vectors(self, k: Tensor, block: int, vectors: Callable[[Tensor, int], Tensor], name: str) -> Tensor:
        """Return the vectors of the blocks of all keys so far, k [B,Hkv,K,D]: [B,H,ceil(K/block),E].

        vectors(keys, first) makes those of keys [B,Hkv,N,D] that begin at token `first`, the start of a block. It is called
        for the blocks that had not ended before. name: what tells these vectors from others of the same keys.
        """
        length = k.shape[2]
        kept = self._kept.get((name, block))
        done = 0 if kept is None else kept.blocks
        if kept is None or done * block < length:
            new = vectors(k[:, :, done * block :], done * block)
            if kept is None:
                room = new.new_empty(*new.shape[:2], -(-self.tokens // block), new.shape[3])
                kept = self._kept[name, block] = _KeptVectors(room)
            kept.room[:, :, done : done + new.shape[2]] = new
            kept.blocks = length // block
        return kept.room[:, :, : -(-length // block)]
