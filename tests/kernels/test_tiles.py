"""Powers of two, and the prefetch depth that fits in shared memory."""

from __future__ import annotations

import pytest
from attention_kernels.tiles import power_of_two, prefetch_depth

H100, A100 = 227 << 10, 163 << 10


def test_powers_of_two() -> None:
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 16, 17, 1000)] == [1, 2, 4, 4, 8, 16, 32, 1024]


def test_deep_where_there_is_room() -> None:
    assert prefetch_depth(64, 2 * 64, 64, 2, H100) == 3
    assert prefetch_depth(128, 2 * 128, 128, 2, H100) == 3
    assert prefetch_depth(128, 2 * 128, 128, 2, A100) == 2
    assert prefetch_depth(128, 2 * 128, 256, 2, H100) == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"384 KiB of shared memory .* the GPU has 227; use smaller blocks"):
        prefetch_depth(128, 2 * 128, 256, 4, H100)
