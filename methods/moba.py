"""MoBA's rule on a model that was not trained with it: every query chooses its own blocks by their mean keys."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import row_budget, select_topk
from torch import Tensor
from torch.nn.functional import pad

from methods import register
from methods.parts.base import Grid, LayerInputs, Method
from methods.parts.head_chunks import query_heads, select_in_chunks
from methods.parts.pooling import pool_blocks
from methods.parts.release import Release

GATES = 1 << 24
"""Products of a query and a mean key held at once; a few float32 and int64 of each."""

PARTS = 64
"""Blocks that a prompt is cut into where no block is given: 2048 tokens at 131,072."""


@register("moba")
class MoBA(Method):
    """Lets every query attend to its own block and to the best blocks before it, by the product with their mean keys.

    Each query head chooses for itself. It needs no weights and no search, but the rule is meant for models trained with it: on
    others it is here for reference.

    topk: blocks of a query in all, its own with them, 3. block: tokens of a block, a multiple of block_size; null: a 64th of
    the prompt, at most 4096 (the release's README: 2048 with topk 3; its example, and the paper's million tokens: 4096, 12).
    exact: whether each query attends to its own choice alone, as the rule says; its lists are of single queries, which only
    the kernels sdpa and reference take. Deviation without it, the default: a query block attends to every block that one of
    its queries chose, more than the rule gives to each, since kernels take one list a query block; density is of that union.

    With a sparsity in place of topk, each row of the index keeps its share of the budget: the best of a query's blocks (exact),
    or of a query block the union at the largest topk that fits, and of the next rank those that most of its queries name.
    """

    paper = "MoBA, arXiv 2502.13189"
    knob = "top-k"
    family = "top-k"
    release = Release(
        "MoonshotAI/MoBA", source="examples/llama.py", settings={"block": 4096, "exact": True}, density={"topk": 12}
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        topk: int | None = None,
        block: int | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(topk=topk)
        if topk is not None and topk < 1:
            raise ValueError(f"topk={topk}: must be at least 1, a query's own block")
        if block is not None and (block < 1 or block % block_size):
            raise ValueError(f"block={block}: must be a multiple of block_size={block_size}")
        self.topk = (3 if topk is None else topk) if sparsity is None else None
        self.block = block
        self.exact = exact

    def tokens(self, x: LayerInputs) -> int:
        """Return the tokens of a block in this prompt."""
        if self.block is not None:
            return self.block
        return self.block_size * max(1, min(4096, x.prompt_tokens // PARTS) // self.block_size)

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex | None:
        if self.topk is not None and self.topk * self.tokens(x) >= x.k.shape[2]:
            return None  # every query chooses every block: lists of single queries would say the same at a high price
        if self.sparsity == 0:
            return BlockIndex.full(*x.q.shape[:2], device=x.q.device, **self.grid(x))
        block = self.tokens(x)
        means = x.block_vectors(block, lambda k, _: pool_blocks(k, block, "mean"), "means")
        return self._own_lists(x, means) if self.exact else self._unions(x, means)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"topk": self.topk, "block": self.block, "exact": self.exact}

    # -- a list for each query ---------------------------------------------------------------------------------------

    def _own_lists(self, x: LayerInputs, means: Tensor) -> BlockIndex:
        block = self.tokens(x)
        grid = Grid(q_block=1, k_block=block, q_len=x.q.shape[2], k_len=x.k.shape[2])
        if self.topk is None:
            tokens = x.prompt_tokens
            budget = row_budget(1 - self.required_sparsity(), **{**grid, "q_len": tokens, "k_len": tokens})
            budget = budget[grid["k_len"] - grid["q_len"] :][: grid["q_len"]] if x.prompt is not None else budget
        else:
            budget = (self.topk,) * grid["q_len"]
        ranked = torch.cat([gates for _, gates in token_gates(x.q, means, block, grid["k_len"])], dim=2)
        return select_topk(ranked, budget, **grid)

    # -- what the queries of a query block chose together --------------------------------------------------------------

    def _unions(self, x: LayerInputs, means: Tensor) -> BlockIndex:
        grid, block, group = self.grid(x), self.tokens(x), x.q.shape[1] // x.k.shape[1]
        parts = block // self.block_size

        def choose(kv: slice) -> Tensor:
            """Return bool [B,H,Mq,Nk], or with a sparsity float32 by which to rank."""
            parts_of_rows = []
            pieces = token_gates(x.q[:, query_heads(kv, group)], means[:, kv], block, grid["k_len"], self.block_size)
            for _, gates in pieces:
                rows = pad(gates, (0, 0, 0, -gates.shape[2] % self.block_size), value=-float("inf"))
                rows = rows.unflatten(2, (-1, self.block_size))  # [B,H,rows,queries,blocks]
                parts_of_rows.append(chosen_by_any(rows, self.topk) if self.topk is not None else union_order(rows))
            wide = torch.cat(parts_of_rows, dim=2).repeat_interleave(parts, -1)[..., : -(-grid["k_len"] // self.block_size)]
            if self.topk is not None:
                return wide
            # of one block the latest part first; whole numbers below 2**24 are exact in float32
            return wide * parts + torch.arange(wide.shape[-1], device=wide.device) % parts

        if self.topk is not None:
            return select_in_chunks(choose, x, grid)
        return select_topk(choose(slice(0, x.k.shape[1])), self.budget(x), **grid)


def token_gates(q: Tensor, means: Tensor, block: int, k_len: int, rows: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yield (first query, gates [B,Hq,queries,blocks]) of q [B,Hq,Q,D] and means [B,Hkv,blocks,D], the mean keys.

    A multiple of `rows` queries comes at a time. A gate is inf for a query's own block and -inf for blocks after it; no other
    mean holds a later key.
    """
    (batch, heads, q_len, _), kv_heads, blocks = q.shape, means.shape[1], means.shape[2]
    step = rows * max(1, GATES // (batch * heads * blocks * rows))
    columns = torch.arange(blocks, device=q.device)
    for first in range(0, q_len, step):
        part = q[:, :, first : first + step].to(means.dtype).unflatten(1, (kv_heads, -1))
        gates = (part @ means.unsqueeze(2).mT).flatten(1, 2)
        own = (torch.arange(first, first + gates.shape[2], device=q.device) + (k_len - q_len)).unsqueeze(-1) // block
        gates.masked_fill_(columns > own, -float("inf")).masked_fill_(columns == own, float("inf"))
        yield first, gates


def chosen_by_any(gates: Tensor, topk: int) -> Tensor:
    """Return bool [...,blocks], the blocks among the `topk` best gates [...,queries,blocks] of any query; ties all count."""
    least = gates.topk(min(topk, gates.shape[-1]), dim=-1).values[..., -1:]
    return ((gates >= least) & (gates > -float("inf"))).any(-2)


def union_order(gates: Tensor) -> Tensor:
    """Return by which to rank blocks so that a union of the queries' best k takes them as k rises: float32 [...,blocks].

    gates [...,queries,blocks]. The ranks are whole numbers of at most 0, the block that is taken first the largest; of one k
    those come first that more queries take then.
    """
    queries, blocks = gates.shape[-2:]
    order = gates.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(blocks, device=gates.device).expand(order.shape))
    rank = rank.masked_fill(gates == -float("inf"), blocks)
    best = rank.amin(-2, keepdim=True)
    behind = queries - (rank == best).sum(-2)
    return -(best.squeeze(-2) * (queries + 1) + behind).float()


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("moba")
