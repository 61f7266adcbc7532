"""What a task's totals say that its reader must not overlook: an arm that was not as sparse as was asked for."""

from __future__ import annotations

from harness.lm_eval.run_totals import RunTotals
from harness.study.identity import ArmIdentity

MISS = 0.1
"""How far a density may lie from what was asked for, relative to that, without a word."""
NOTHING_LEFT_OUT = 0.999
"""The density from which on dense attention ran, to rounding."""


def misses(totals: RunTotals, arm: ArmIdentity, *, dense: bool) -> list[str]:
    """Return a line for each way in which a task ran otherwise than the arm says. dense: its prefill leaves out nothing on
    purpose."""
    lines = [] if dense else _at_prefill(totals, arm)
    if arm.decode is not None:
        decode = f"decode={arm.decode.method}"
        density = totals.decode_density.value
        if density is None:
            lines.append(f"{decode} changed nothing: no token after the first was decoded here")
        elif density >= NOTHING_LEFT_OUT:
            lines.append(f"{decode} left nothing out: density {density:.3f} at decode, as {_lengths(totals)} fit its budget")
    return lines


def _at_prefill(totals: RunTotals, arm: ArmIdentity) -> list[str]:
    """Return what is to be said of the density of prefills: one line, or none."""
    density, block = totals.density.value, arm.block_size or 1
    if density is None:
        return [f"method={arm.method} acted in no layer: none attends to the whole prompt"] if totals.lengths.prompts else []
    blocks = -(-round(totals.lengths.mean) // block)
    fewest = 2 / (blocks + 1)  # every row of blocks keeps its own at least
    why = f"{_lengths(totals)} are {blocks} block{'s' * (blocks != 1)} of {block}, of which {fewest:.3f} must be kept"
    if arm.sparsity is None:
        return [f"method={arm.method} left nothing out: density {density:.3f}; {why}"] if density >= NOTHING_LEFT_OUT else []
    target = 1 - arm.sparsity
    if abs(density - target) <= MISS * target:
        return []
    reason = why if fewest > (1 - MISS) * target else f"{_lengths(totals)} in blocks of {block}"
    return [f"density {density:.3f}, where sparsity={arm.sparsity:g} asks for {target:.3f}: {reason}"]


def _lengths(totals: RunTotals) -> str:
    """Return the lengths of the prompts in words."""
    low, high = totals.lengths.shortest, totals.lengths.longest
    return f"prompts of {low} tokens" if low == high else f"prompts of {low} to {high} tokens"
