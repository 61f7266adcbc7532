"""SpargeAttn, stage 1 only: pooled attention up to a cumulative share, where blocks are alike enough to be pooled."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from attention_kernels.block_index import BlockIndex, causal_mask
from attention_kernels.pool import pool
from attention_kernels.pool.reference import pool_one
from attention_kernels.selection.reference import pooled_scores
from torch import Tensor
from torch.nn.functional import normalize

from methods import register
from methods.parts.base import Grid, Knob, LayerInputs, Method
from methods.parts.head_chunks import query_heads, select_in_chunks
from methods.parts.release import Release
from methods.parts.row_budgets import mean_row_budget
from methods.parts.vertical_slash import first_ranked

Rule = Literal["cdf", "topk"]

CDF, TOPK = 0.98, 0.5
SIMILAR: dict[Rule, float] = {"cdf": 0.6, "topk": -0.1}

WIDE = 64
"""Tokens of a query block up to which, as released, key blocks are twice as long instead of half."""
TOKEN_ELEMENTS = 1 << 25
"""Elements of queries or keys normalised at once: bounds their float32 copies at 128 MiB each."""


@register("sparge")
class Sparge(Method):
    """Keeps the best blocks by pooled attention, and in full what is too varied to be pooled. Each query head for itself.

    A block is alike if the mean cosine of its tokens with each other, keys less their mean over the prompt, is above
    `similar`. Rows of query blocks that aren't alike, and columns of such key blocks, are kept in full. Of the others each row
    keeps the best blocks of the softmax of its pooled scores over key blocks that are alike, one at least. That mean key is of
    later keys too: with a `similar` of 0 or more, what an early row keeps depends on the whole prompt. It needs no weights and
    no search.

    rule: "cdf" keeps as many blocks as sum to no more than `cdf`, 0.98; "topk" a share `topk` of all blocks, 0.5, of which
    those in the future are then dropped. similar: 0.6 with "cdf", and -0.1 with "topk", which every block is above. sink:
    whether the first block is added to every row. Query blocks are of block_size tokens (128 in the release), key blocks half
    of that where it is a multiple of 16, as in the release.

    as_released: the release's recommended call, rule "topk". Query blocks of 64 then come with key blocks of 128, its shape on
    Hopper; block_size=128 with key blocks of 64 is its shape elsewhere. A last block that is not whole is not alike, whatever
    `similar` is: the last rows, and the last key block's column, are kept in full.

    With a sparsity the rule's knob is searched and `similar` is -0.1 if not given, as where the release is asked for a
    share: rows kept in full would put most sparsities out of reach. Where the sparsity leaves the average row nothing beside
    its diagonal, rows need not keep a best block. Deviations from the release: the diagonal is always kept; skipping P·V inside
    the kernel (stage 2) and INT8/FP8 products are left out.
    """

    paper = "SpargeAttn (stage 1), arXiv 2502.18137"
    knob = "cdf | topk"
    family = "threshold"
    release = Release(
        "thu-ml/SpargeAttn",
        source="README.md, spas_sage_attn/core.py",
        settings={"block_size": 64, "rule": "topk"},
        density={"topk": 0.5},
        quirks={
            "64 query rows by 128 keys, the shape on Hopper": "spas_sage_attn/core.py",
            "a last block that is not whole counts as not alike": "spas_sage_attn/utils.py",
        },
        rule="rule",
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        rule: Rule = "cdf",
        cdf: float | None = None,
        topk: float | None = None,
        similar: float | None = None,
        sink: bool = False,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        if rule not in get_args(Rule):
            raise ValueError(f"rule={rule}: must be one of {', '.join(get_args(Rule))}")
        for name, value in (("cdf", cdf), ("topk", topk)):
            if value is None:
                continue
            if rule != name:
                raise ValueError(f"{name}={value} has no effect with rule={rule}: set rule={name}")
            self.one_of(**{name: value})
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value}: must be a share, above 0 and at most 1")
        if similar is not None and not -1 <= similar <= 1:
            raise ValueError(f"similar={similar}: must be a mean cosine, between -1 and 1 (below 0: every block is alike)")
        self.rule = rule
        self.cdf = CDF if cdf is None else cdf
        self.topk = TOPK if topk is None else topk
        self.similar = SIMILAR["topk" if sparsity is not None else rule] if similar is None else similar
        self.sink = sink
        self.reads_end = self.similar >= 0  # through the mean key, as in the released code; below 0 none is taken

    def calibrates(self) -> Knob | None:
        return Knob(self.rule, low=1e-3, high=1.0, rising=True) if self.sparsity else None

    @property
    def chunk_step(self) -> int:
        return max(self.block_size, self._k_block())

    def _k_block(self) -> int:
        """Return the tokens of a key block."""
        if self.as_released and self.block_size <= WIDE:
            return 2 * self.block_size
        return self.block_size // 2 if self.block_size % 32 == 0 else self.block_size

    def grid(self, x: LayerInputs) -> Grid:
        return Grid(q_block=self.block_size, k_block=self._k_block(), q_len=x.q.shape[2], k_len=x.k.shape[2])

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex:
        grid = self.grid(x)
        if self.sparsity == 0:
            return BlockIndex.full(x.q.shape[0], x.k.shape[1], device=x.q.device, **grid)
        pooled_q = pool(x.q, grid["q_block"], ("mean",))
        pooled_k = x.block_vectors(grid["k_block"], lambda k, _: pool(k, grid["k_block"], ("mean",)), "means")
        unlike_q, unlike_k = self._unlike(x, grid)
        group, least = x.q.shape[1] // x.k.shape[1], self._least(self.prompt_grid(x))
        future = ~causal_mask(grid["q_len"], grid["k_len"], grid["q_block"], grid["k_block"], x.q.device)

        def choose(kv: slice) -> Tensor:
            heads = query_heads(kv, group)
            scores = pooled_scores(pooled_q[:, heads], pooled_k[:, kv], scale=x.scale).masked_fill_(future, -float("inf"))
            if unlike_q is None or unlike_k is None:
                mask = self._best(scores, least, x)
            else:
                unlike = unlike_k[:, kv].repeat_interleave(group, dim=1).unsqueeze(-2)
                mask = self._best(scores.masked_fill_(unlike, -float("inf")), least, x) | unlike | unlike_q[:, heads, :, None]
            if self.sink:
                mask[..., 0] = True
            return mask

        return select_in_chunks(choose, x, grid)

    def _unlike(self, x: LayerInputs, grid: Grid) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the blocks that are too varied to be pooled, bool [B,Hq,Mq] and [B,Hkv,Nk]; None where there are none."""
        if self.similar < 0 and not self.as_released:
            return None, None
        unlike = [
            torch.zeros(*tokens.shape[:2], -(-tokens.shape[2] // block), dtype=torch.bool, device=tokens.device)
            for tokens, block in ((x.q, grid["q_block"]), (x.k, grid["k_block"]))
        ]
        if self.similar >= 0:
            wide = torch.float64 if x.k.dtype == torch.float64 else torch.float32
            center = x.k.mean(2, keepdim=True, dtype=wide)
            likeness = self_similarity(x.q, grid["q_block"]), self_similarity(x.k, grid["k_block"], center)
            unlike = [~(of_block > self.similar) for of_block in likeness]
        if self.as_released:  # tokens that a block lacks have no length to be divided by there: their cosines are NaN
            unlike[0][..., -1] |= bool(grid["q_len"] % grid["q_block"])
            unlike[1][..., -1] |= bool(grid["k_len"] % grid["k_block"])
        return unlike[0], unlike[1]

    def _least(self, grid: Grid) -> int:
        """Return the blocks that a row chooses at least, beside its diagonal."""
        if self.fixed_floors:
            return 1
        diagonal = -(-grid["q_block"] // grid["k_block"])
        return 1 if mean_row_budget(self.required_sparsity(), **grid) >= diagonal + 1 else 0

    def _best(self, scores: Tensor, least: int, x: LayerInputs) -> Tensor:
        """Return bool [B,H,Mq,Nk], the chosen blocks by scores that are -inf where nothing is to be chosen.

        Rows of nothing but -inf choose any block: those they see are all kept for not being alike.
        """
        best, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
        if self.rule == "topk":
            grid = self.prompt_grid(x)
            rows, blocks = -(-grid["q_len"] // grid["q_block"]), -(-grid["k_len"] // grid["k_block"])
            count = self._share_of_blocks(rows, blocks, least, best.device)[self.rows(x)].expand(best.shape[:-1])
        else:
            count = (best.cumsum(-1) <= self.cdf).sum(-1).clamp(min=least)
        return first_ranked(order, count)

    def _share_of_blocks(self, rows: int, blocks: int, least: int, device: torch.device) -> Tensor:
        """Return how many blocks each row of a prompt chooses with the rule "topk", int64 [rows]: the share rounded down.
        With a sparsity, whose density may lie between two whole numbers, rows take the next one up by turns, so that their
        mean is the share."""
        share = self.topk * blocks
        if self.sparsity is None:
            return torch.full((rows,), max(least, int(share)), device=device)
        ends = (torch.arange(rows + 1, device=device, dtype=torch.float64) * share + 1e-9).floor().long()
        return ends.diff().clamp(min=least)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        chosen = {"cdf": self.cdf} if self.rule == "cdf" else {"topk": self.topk}
        return {"rule": self.rule, **chosen, "similar": self.similar, "sink": self.sink}


def self_similarity(x: Tensor, block: int, center: Tensor | None = None) -> Tensor:
    """Return the mean cosine of a block's tokens with each other and themselves, float32 [B,H,ceil(P/block)] (float64 stays).

    x [B,H,P,D], less center [B,H,1,D] if given. The mean of the Gram matrix of the normalised tokens is the squared length of
    their mean, so no Gram matrix is formed.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = max(1, TOKEN_ELEMENTS // (x[:, :, 0].numel() * block)) * block
    parts = []
    for start in range(0, x.shape[2], step):
        part = x[:, :, start : start + step].to(wide)
        part = normalize(part if center is None else part - center, dim=-1)
        parts.append(pool_one(part, block, "mean").square().sum(-1))
    return torch.cat(parts, dim=-1)


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("sparge")
