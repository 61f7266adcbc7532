"""How many query blocks at the end of a prompt a method kept in full: what `last` asks for, or what half of the budget pays.

It follows from what is recorded: `last`, the sparsity, the block size, and the tokens that were prefilled. So it holds for rows
of any age, and of each prompt for itself. `methods.parts.row_budgets.budget_with_full_rows` is the same rule where it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from harness.core.knob_names import RELEASED, asked_value, knob_names, named, with_texts
from harness.core.method_facts import method_facts

LAST = "last"
"""The knob that asks for full rows, in every method that has them."""


@dataclass(frozen=True)
class FullRows:
    """Query blocks that were kept in full, the fewest and the most over the prompts of a row. cut: whether they were fewer in
    any prompt than `last` asks for. in_blocks: whether `last` counts query blocks, not queries."""

    fewest: int
    most: int
    cut: bool
    in_blocks: bool = True

    @property
    def text(self) -> str:
        """Return how many there were, "1" or, where prompts differ, "1–2"."""
        return str(self.most) if self.fewest == self.most else f"{self.fewest}–{self.most}"

    @property
    def name(self) -> str:
        """Return what the name of a row says of them: "last 1", of a method whose `last` counts queries "last 1 block"."""
        unit = "" if self.in_blocks or self.most == 0 else " block" if self.most == 1 else " blocks"
        return f"{LAST} {self.text}{unit}"


def joined(several: Iterable[FullRows | None]) -> FullRows | None:
    """Return the full rows over the prompts of several rows; None where none is known."""
    known = [rows for rows in several if rows is not None]
    if not known:
        return None
    fewest, most = min(rows.fewest for rows in known), max(rows.most for rows in known)
    return FullRows(fewest, most, any(rows.cut for rows in known), known[0].in_blocks)


def full_rows(identity: Mapping[str, Any], tokens: Iterable[int]) -> FullRows | None:
    """Return what an arm kept in full of prompts of so many tokens, prefilled whole; None for a method that has no full rows,
    where a sparsity of 0 makes all of them full, and where no prompt is known. As released, it is what `last` asks for,
    whatever that costs. identity: as records hold it."""
    facts = method_facts(identity["method"]).full_rows
    last = asked_value(identity["method"], identity["knobs"], LAST)
    if not facts or not isinstance(last, int) or identity["sparsity"] == 0 or not (lengths := set(tokens)):
        return None
    in_blocks, sparsity = facts["unit"] == "blocks", None if identity["knobs"].get(RELEASED) else identity["sparsity"]
    pairs = [
        requested_and_full(last, in_blocks, sparsity, length, identity["block_size"], facts["own_blocks"]) for length in lengths
    ]
    counts = [full for _, full in pairs]
    return FullRows(min(counts), max(counts), any(requested > full for requested, full in pairs), in_blocks)


def with_full_rows(method: str, knobs: Mapping[str, Any], texts: Sequence[str], full: FullRows | None) -> tuple[str, ...]:
    """Return the texts of a name. Where full rows did not fit, they say how many there were instead of how many were asked for.
    knobs: as recorded."""
    if full is None or not full.cut:
        return tuple(texts)
    request = named(method, LAST, asked_value(method, knobs, LAST))
    place = texts.index(request) if request in texts else len(texts)
    return (*texts[:place], full.name, *texts[place + (request in texts) :])


def arm_name(identity: Mapping[str, Any]) -> str:
    """Return what an arm is called before its prompts are known: its method, the chunks of its prompts, the knobs that are not
    at their defaults, full rows that do not fit at its length, and what decodes where there is such a method, of which it says
    whether it runs as released. identity: as records hold it."""
    method, knobs = identity["method"], identity["knobs"]
    full = full_rows(identity, [identity["length"]])
    chunk, decode = identity.get("prefill_chunk"), identity.get("decode")
    texts = with_full_rows(method, knobs, knob_names(method, knobs), full)
    name = with_texts(method, texts if chunk is None else (f"chunk {chunk}", *texts))
    if decode is None:
        return name
    return f"{name} + {with_texts(decode['method'], [RELEASED.replace('_', ' ')] if decode['knobs'].get(RELEASED) else [])}"


@lru_cache(maxsize=4096)
def requested_and_full(
    last: int, in_blocks: bool, sparsity: float | None, tokens: int, block: int, own_blocks: bool
) -> tuple[int, int]:
    """Return how many full rows are asked for of a prompt, and how many half of the budget pays. own_blocks: whether the other
    rows' own blocks are paid from that half too."""
    rows = -(-tokens // block)
    in_full = last if in_blocks else (rows - max(0, tokens - last) // block if last > 0 else 0)
    requested = min(in_full, rows)
    if sparsity is None:
        return requested, requested
    total, spent, full = rows * (rows + 1) // 2, 0, 0
    while full < requested:
        causal, others = rows - full, rows - full - 1
        if spent + causal + (others if own_blocks else 0) > (1 - sparsity) * total / 2:
            break
        full, spent = full + 1, spent + causal
    return requested, full
