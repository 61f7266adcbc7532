"""What every trained gate is: a learned layer that predicts, for each query block, which key blocks matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from attention_kernels.pool import Pool
from torch import Tensor, nn

from methods.parts.rope_protocol import Rope

POOLED_K: tuple[Pool, ...] = ("max", "min", "mean")
"""How keys are pooled, in the order in which the pooled vectors are concatenated."""


class Gate(nn.Module, ABC):
    """The gate of one layer, which job=distill trains: logits over key blocks of `block_size` tokens for query blocks of
    `q_block` tokens."""

    released: ClassVar[Mapping[str, str]] = {}
    """Names of the weights in their authors' release, by their names here (see methods.gates.release_format)."""
    released_config: ClassVar[Mapping[str, Any]] = {}
    """Settings in a release's config.json that tell it is this gate."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Knobs of a method that its gates are built with, beside the block size, with what they usually are."""
    options_in_names: ClassVar[frozenset[str]] = frozenset()
    """Those of the options that the names of the weights tell."""
    told_by_weights: ClassVar[frozenset[str]] = frozenset()
    """Those of the settings that the names and shapes of the weights tell too."""

    k_ways: tuple[Pool, ...] = POOLED_K
    """How the gate pools keys."""

    def __init__(self, heads: int, head_dim: int, *, block_size: int, q_block: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.block_size = block_size
        self.q_block = q_block

    @classmethod
    def unusual(cls, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options among a method's knobs that are not as usual."""
        return {name: knobs[name] for name, usual in cls.options.items() if knobs.get(name, usual) != usual}

    @classmethod
    def variant(cls, knobs: Mapping[str, Any]) -> str | None:
        """Return what the file of gates with such options has in its name, as the name of a training; None for usual ones.
        Raises ValueError for one that there isn't."""
        return None

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights that training begins with."""

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw weights for a model whose own weights are random. What they choose means nothing; it is uneven enough for a
        threshold to keep some of every row."""
        self.reset_parameters(generator)

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, rope: Rope) -> Tensor:
        """Return logits [B,H,Mq,Nk] float32 of post-RoPE q [B,Hq,Q,D] and k [B,Hkv,K,D], -inf where nothing is predicted."""

    def check(self, q: Tensor, layer: int) -> None:
        """Raise ValueError, one line, where queries q [B,Hq,Q,D] of a layer are not of the heads that the gate is for."""
        if (q.shape[1], q.shape[3]) != (self.heads, self.head_dim):
            raise ValueError(
                f"layer {layer} has {q.shape[1]} query heads of {q.shape[3]} elements, its gate is for {self.heads} of "
                f"{self.head_dim}: layers with a sliding window may differ; take prompts longer than it"
            )

    def learns_from(self, q: Tensor) -> Tensor:
        """Return the queries that the gate is trained on, the last N of a text's q [B,Hq,Q,D]: [B,Hq,N,D]."""
        return q

    def truth(self, attention: Tensor, pool: str, k_len: int) -> Tensor:
        """Return the training target [B,H,Mq,Nk], rows of any sum, of a true attention map [B,Hq,Mq,Nk] pooled by `pool`."""
        return attention
