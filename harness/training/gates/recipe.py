"""How gates are trained: every number that changes the result, checked before anything is loaded or run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from attention_kernels.block_map import POOLS

from harness.core.errors import UserError
from harness.training.gates.loss import ROW_WEIGHTS
from methods.gates.attn_gate import AttnGate
from methods.gates.pooling import USUAL_POOLING, ways_of

DTYPES = ("auto", "float32", "bfloat16")
"""Of the file."""
LARGEST = 1000.0
"""A learning rate or weight decay above it is a slip of the hand, which torch may not even hold."""


@dataclass(frozen=True)
class Recipe:
    """Steps of AdamW on the gates of one model. The published values are in conf/job/distill.yaml.

    steps: of the optimiser. lr: its peak, reached after `warmup` steps, from where a cosine falls to `min_lr` (both absolute).
    clip: largest norm of the gradient of all gates together; None: not clipped. pool: of the true attention map.
    skip_rows, row_weight: see gate_loss. micro_rows: rows of text in one forward pass; None: all that this process has of
    a step. q_linear, pooling, block_rope: options of AttnGate. dtype: of the file. seed: of the weights that training begins
    with.
    """

    steps: int
    block_size: int = 64
    lr: float = 1e-3
    warmup: int = 20
    min_lr: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    pool: str = "max"
    skip_rows: float = 0.0
    row_weight: str = "equal"
    micro_rows: int | None = None
    q_linear: bool = False
    dtype: str = "auto"
    seed: int = 0
    pooling: str = USUAL_POOLING
    block_rope: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: must be at least 1")
        if not 0 < self.lr <= LARGEST:
            raise UserError(f"lr={self.lr}: must be above 0 and at most {LARGEST:g}, for example 1e-3")
        if not 0 <= self.min_lr <= self.lr:
            raise UserError(f"min_lr={self.min_lr}: must be at least 0 and at most lr={self.lr}")
        if self.warmup < 0:
            raise UserError(f"warmup={self.warmup}: must be at least 0 steps")
        if not 0 <= self.weight_decay <= LARGEST:
            raise UserError(f"weight_decay={self.weight_decay}: must be at least 0 and at most {LARGEST:g}")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip={self.clip}: must be above 0, for example 1.0, or null for no clipping")
        if not 0 <= self.skip_rows < 1:
            raise UserError(f"skip_rows={self.skip_rows}: must be at least 0 and below 1")
        if self.micro_rows is not None and self.micro_rows < 1:
            raise UserError(f"micro_rows={self.micro_rows}: must be at least 1, or null for all rows of a step at once")
        for name, value, choices in (("pool", self.pool, POOLS), ("row_weight", self.row_weight, ROW_WEIGHTS)):
            if value not in choices:
                raise UserError(f"{name}={value}: must be one of {', '.join(choices)}")
        if not isinstance(self.block_rope, bool):
            raise UserError(f"block_rope={self.block_rope}: must be true or false")
        try:
            ways_of(self.pooling)
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype} of the gates' file: must be one of {', '.join(DTYPES)}")

    @property
    def gate_options(self) -> dict[str, Any]:
        """Return the options of AttnGate that are not as usual."""
        return AttnGate.unusual(asdict(self))

    def facts(self) -> dict[str, Any]:
        """Return what decides the result, by name; options newer than recorded trainings only where they are not as usual."""
        newer = {"pooling", "block_rope"} - self.gate_options.keys()
        return {name: value for name, value in asdict(self).items() if name not in newer}

    def rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, … as a share of its peak: linear warm-up, then a cosine to min_lr."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        floor = self.min_lr / self.lr
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
