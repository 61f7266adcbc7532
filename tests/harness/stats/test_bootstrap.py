"""Bootstrap intervals over documents: seeded, and as wide as they should be."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats import bootstrap


def test_the_interval_is_over_documents() -> None:
    assert bootstrap.ratio_interval([3.0], [1.0]) is None
    assert bootstrap.ratio_interval([2.0, 4.0], [1.0, 2.0]) == (2.0, 2.0), "equal means, whatever the documents' lengths"
    losses = np.random.default_rng(1).normal(3.0, 0.5, 400).tolist()
    low, high = bootstrap.ratio_interval(losses, [1.0] * 400) or (0.0, 0.0)
    half = 1.96 * np.std(losses) / 20
    assert (low, high) == pytest.approx((np.mean(losses) - half, np.mean(losses) + half), abs=0.006)
    assert bootstrap.ratio_interval(losses, [1.0] * 400) == (low, high), "seeded"
    with pytest.raises(ValueError, match="2 sums and 1 counts"):
        bootstrap.ratio_interval([1.0, 2.0], [1.0])


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = rng.normal(2.0, 1.0, 40)
        low, high = bootstrap.ratio_interval(sample.tolist(), [1.0] * 40) or (0.0, 0.0)
        hits += low <= 2.0 <= high
    assert 180 <= hits <= 198
