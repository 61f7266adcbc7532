"""How far a gate's softmax is from its target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROW_WEIGHTS = ("equal", "length")
"""How the rows of a map count in the loss."""


def gate_loss(target: Tensor, logits: Tensor, *, skip_rows: float = 0.0, row_weight: str = "equal") -> Tensor:
    """Return the mean over batch, heads and rows of KL(target || softmax(logits)), in nats.

    target, logits: [B,H,Mq,Nk] of one floating type; logits are -inf in the future, where target is 0.

    SeerAttention divides by Nk as well and multiplies by 10, so that its loss shrinks as the text grows; a mean over
    rows means the same at every length. skip_rows: share of the first rows left out (SeerAttention: a quarter).
    row_weight: "equal", or "length": by the blocks that a row may choose among, as late rows are the hard and dear ones.
    """
    first = int(skip_rows * logits.shape[2])
    target, logits = target[:, :, first:], logits[:, :, first:]
    rows: Tensor = _Divergence.apply(target, logits)  # type: ignore[no-untyped-call]
    if row_weight == "equal":
        return rows.mean()
    weights = (logits.detach() > float("-inf")).sum(-1).to(rows.dtype)
    return (rows * weights).sum() / weights.sum()


class _Divergence(torch.autograd.Function):
    """KL of each row [B,H,Mq].

    Its gradient, softmax(logits) · Σ target − target, is computed on the way: one map is stored, where autograd stores four.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, logits: Tensor) -> Tensor:
        future = logits == float("-inf")
        log_gate = logits.log_softmax(-1).masked_fill_(future, 0.0)
        # xlogy is 0 where the target is: blocks that got no attention, and the future
        rows = torch.xlogy(target, target).sub_(target * log_gate).sum(-1)
        gradient = log_gate.exp_().masked_fill_(future, 0.0).mul_(target.sum(-1, keepdim=True)).sub_(target)
        ctx.save_for_backward(gradient)
        return rows

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, outer: Tensor) -> tuple[None, Tensor]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * outer[..., None]
