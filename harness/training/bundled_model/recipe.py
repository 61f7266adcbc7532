"""The recipe that the bundled model is trained by."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.errors import UserError

SIZES = (
    "vocab_size",
    "hidden",
    "intermediate",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "max_length",
    "tokens",
    "steps",
    "probe_rows",
)
"""Whole numbers of which there must be one at least."""


@dataclass
class PretrainRecipe:
    """The settings of job=pretrain, as conf/job/pretrain.yaml has them.

    tokens: of a step. steps, max_seconds: training ends with whichever comes first. lr: of AdamW. muon_lr: of the matrices
    inside the layers (0: AdamW for all). warmup: as a share of the training. workers: processes that draw batches. probe_every:
    seconds between two probes of `probe_rows` rows a kind. books_for_words: how many frequent words of the text keys may have.
    stdlib: train on Python's standard library too.
    """

    text_dir: str
    out: str
    vocab_size: int = 4096
    hidden: int = 256
    intermediate: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 1e8
    max_length: int = 131072
    tokens: int = 65536
    steps: int = 20000
    max_seconds: float = 540.0
    lr: float = 3e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    seed: int = 1
    workers: int = 12
    compile: bool = True
    device: str = "cuda"
    probe_every: float = 90.0
    probe_rows: int = 8
    books_for_words: int = 20000
    stdlib: bool = True

    def __post_init__(self) -> None:
        """Raise UserError for a number that no model can be made or trained with."""
        for name in SIZES:
            if getattr(self, name) < 1:
                raise UserError(f"job.{name}={getattr(self, name)}: must be at least 1")
        for name in ("max_seconds", "lr", "warmup", "rope_theta", "probe_every"):
            if not getattr(self, name) > 0:
                raise UserError(f"job.{name}={getattr(self, name)}: must be above 0")
        for name in ("muon_lr", "weight_decay", "workers", "books_for_words"):
            if not getattr(self, name) >= 0:
                raise UserError(f"job.{name}={getattr(self, name)}: must be at least 0")
        if self.heads % self.kv_heads:
            raise UserError(f"job.heads={self.heads}: must be a multiple of job.kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"job.head_dim={self.head_dim}: must be even, for RoPE")
