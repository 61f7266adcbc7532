"""The loss of a model on a text, logits a few tokens at a time: length × vocabulary is never held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from harness.core.errors import UserError
from harness.models.loading import LoadedModel

ELEMENTS = 1 << 26
"""Logits held at a time; in float32 256 MiB."""


def check_head(loaded: LoadedModel) -> None:
    """Raise UserError for a model that does more to its logits than one linear layer on the decoder's output (soft caps,
    scales): what `nll` computes would not be its loss."""
    head, decoder = loaded.model.get_output_embeddings(), loaded.model.get_decoder()
    if head is None or decoder is None:
        raise UserError(f"{loaded.name} has no decoder with a linear head: its perplexity can't be measured here")
    seen: dict[str, Tensor] = {}

    def note_head(_: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        seen["in"], seen["out"] = inputs[0], out

    def note_decoder(_: Any, __: Any, out: Any) -> None:
        seen["hidden"] = out[0]

    hooks = [head.register_forward_hook(note_head), decoder.register_forward_hook(note_decoder)]
    try:
        with torch.inference_mode():
            ids = torch.arange(16, device=loaded.device)[None] % int(head.weight.shape[0])
            logits = loaded.model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    linear = len(seen) == 3 and torch.equal(seen["in"], seen["hidden"]) and torch.equal(seen["out"].float(), logits.float())
    if not linear:
        raise UserError(
            f"{type(loaded.model).__name__} changes its logits after the output layer (a soft cap, a scale, …): "
            "its perplexity can't be measured here"
        )


@torch.inference_mode()
def nll(loaded: LoadedModel, ids: Tensor, first: int, *, elements: int = ELEMENTS) -> Tensor:
    """Return the negative log-likelihood of a text in nats: the sum over ids[first:] of ids [N], each given all before it
    in one prefill of N tokens.

    1 ≤ first < N. elements: logits held at a time. Returns a float64 scalar on the device; nothing waits for it.
    """
    hidden = loaded.model.get_decoder()(input_ids=ids[None], use_cache=False)[0][0, first - 1 : -1]  # [N - first, width]
    head, targets = loaded.model.get_output_embeddings(), ids[first:]
    rows = max(1, elements // int(head.weight.shape[0]))
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    for start in range(0, len(targets), rows):
        logits = head(hidden[start : start + rows])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total += cross_entropy(logits, targets[start : start + rows], reduction="sum").double()
    return total


def mean_nll(loaded: LoadedModel, ids: Tensor, *, elements: int = ELEMENTS) -> Tensor:
    """Return the mean negative log-likelihood in nats, float32 [], of the tokens of ids [B,N] but each row's first, with a
    gradient where the model's weights have one. Logits are computed again in the backward pass, `elements` at a time.
    """
    hidden = loaded.model.get_decoder()(input_ids=ids, use_cache=False)[0][:, :-1].flatten(0, 1)  # [B (N - 1), width]
    head, targets = loaded.model.get_output_embeddings(), ids[:, 1:].flatten()

    def part(states: Tensor, tokens: Tensor) -> Tensor:
        logits = head(states)
        return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens, reduction="sum")

    rows = max(1, elements // int(head.weight.shape[0]))
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    sums = [checkpoint(part, states, tokens, use_reentrant=False) for states, tokens in parts]
    return torch.stack(sums).sum() / len(targets)
