"""Into how many programs one list of blocks is split, so that a GPU has enough of them to read memory at its full rate."""

from __future__ import annotations

from functools import lru_cache

import torch

from attention_kernels.tiles import shared_bytes

MOST_PER_SM = 3
MAX_SPLITS = 128
START_TILES = 1
"""What a program costs before its first tile has arrived, in tiles that it could have read meanwhile."""
COMBINE_TILES = 1
"""What combining costs, in tiles: 2 to 3 µs for a second launch."""


@lru_cache
def program_slots(device: torch.device, shared: int) -> int:
    """Return how many programs run at once where each takes `shared` bytes; an H100's where there is no GPU to ask."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return int(processors) * max(1, min(MOST_PER_SM, shared_bytes(device) // shared))


@lru_cache(maxsize=4096)
def split_count(lists: int, tiles: int, slots: int) -> int:
    """Return the splits of each of `lists` lists of up to `tiles` tiles where `slots` programs run at once.

    The least time, counted in tiles that run one after another: waves of programs × (tiles of a program and its start), and
    the price of combining where there is more than one split. More splits must save a twentieth:
    programs drift apart, and waves with them.
    """
    best, least = 1, -(-lists // slots) * (tiles + START_TILES)
    for splits in range(2, min(tiles, MAX_SPLITS) + 1):
        waves, tiles_per_split = -(-lists * splits // slots), -(-tiles // splits)
        cost = waves * (tiles_per_split + START_TILES) + COMBINE_TILES
        if cost < 0.95 * least:
            best, least = splits, cost
    return best
