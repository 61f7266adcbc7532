"""Whether a row has the density that it was asked for, so that it may stand beside others at that density."""

from __future__ import annotations

from enum import StrEnum

TOLERANCE = 0.02
"""How far a measured density may lie from the request, relative to the request, in a matched row."""


class Match(StrEnum):
    """How the measured density of a row, the mean over the prompts of its task set, compares with the request.

    MATCHED: within `TOLERANCE`. NEAREST: a knob that is a whole number can't come closer; the row of the next whole number
    is beside it, on the other side of the request. OFF_DENSITY: anything else, to be compared with nothing.
    """

    MATCHED = "matched"
    NEAREST = "nearest"
    OFF_DENSITY = "off_density"


def is_matched(sparsity: float, density: float) -> bool:
    """Return whether a measured density is within `TOLERANCE` of 1 - sparsity, relative to that."""
    request = 1 - sparsity
    return abs(density - request) <= TOLERANCE * request + 1e-12


def match_of(sparsity: float | None, density: float | None, *, neighbour: bool = False) -> Match | None:
    """Return how a density compares with the request; None where no sparsity was asked for or no density is known.

    neighbour: whether the arm is one of the two whole numbers beside the request that were both measured.
    """
    if sparsity is None or density is None:
        return None
    if is_matched(sparsity, density):
        return Match.MATCHED
    return Match.NEAREST if neighbour else Match.OFF_DENSITY
