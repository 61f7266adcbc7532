"""How many answers a model gets wholly right on rows it never saw, read off one forward pass a row.

With the answer's own tokens as input, an answer is right when every token of it is the most likely one: the same verdict
as greedy decoding, at the cost of a prefill.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from harness.training.bundled_model.mixture import KINDS, Mixture
from harness.training.bundled_model.pieces import Row


@torch.inference_mode()
def answers_right(model: PreTrainedModel, mixture: Mixture, kind: str, length: int, rows: int) -> tuple[int, int]:
    """Return (answers right, answers asked) over `rows` single episodes of `kind` at `length` tokens."""
    device = next(model.parameters()).device
    right = asked = 0
    for _ in range(rows):
        row = Row([], [])
        mixture.add_episode(kind, row, length - 1)
        ids = torch.tensor([mixture.bos, *row.ids[-(length - 1) :]], device=device)
        answer = torch.tensor([False, *row.answer[-(length - 1) :]], device=device)
        where = torch.nonzero(answer).ravel()
        hidden = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, where - 1]
        good = model.lm_head(hidden).argmax(-1) == ids[where]
        first = torch.ones_like(where, dtype=torch.bool)
        first[1:] = where[1:] != where[:-1] + 1
        span = first.cumsum(0) - 1
        wrong = torch.zeros(int(span[-1]) + 1, device=device).index_add_(0, span, (~good).float())
        right, asked = right + int((wrong == 0).sum()), asked + len(wrong)
    return right, asked


def probe(model: PreTrainedModel, mixture: Mixture, lengths: list[int], rows: int) -> dict[str, dict[int, float]]:
    """Return the share of answers right by kind of episode and length, over `rows` episodes (a quarter beyond 16k tokens)."""
    shares: dict[str, dict[int, float]] = {}
    for kind in KINDS:
        if kind != "prose":
            shares[kind] = {}
            for length in lengths:
                right, asked = answers_right(model, mixture, kind, length, rows if length <= 16384 else max(1, rows // 4))
                shares[kind][length] = right / max(asked, 1)
    return shares
