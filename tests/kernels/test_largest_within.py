"""The largest entries of a map within a mass against sorting, and both kernels against each other."""

from __future__ import annotations

import attention_kernels.largest_within as operation
import pytest
import torch
from attention_kernels.largest_within import largest_within

GPU = pytest.mark.gpu
CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
WHERE = [
    pytest.param("reference", "cpu", torch.float32),
    pytest.param("reference", "cpu", torch.float64),
    pytest.param("triton", "cpu", torch.float32, marks=CPU_TRITON),
    pytest.param("triton", "cuda", torch.float32, marks=GPU),
]


@pytest.mark.parametrize(("kernel", "device", "dtype"), WHERE)
def test_keeps_the_largest_that_fit(kernel: str, device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(2, 2, 9, 11, dtype=dtype, generator=generator).mul(3).softmax(-1)
    probs[..., -1] = 0.0  # the future has no share
    for mass in (0.0, 4.0, 10.0):
        mask = largest_within(probs.to(device), mass, kernel=kernel).cpu()
        for b in range(2):
            for h in range(2):
                ordered = probs[b, h].flatten().sort(descending=True).values
                fitting = ordered[ordered.double().cumsum(0) <= mass]
                # zeros add nothing: they are kept with everything, or where nothing would be
                assert torch.equal(mask[b, h], probs[b, h] >= fitting.min()) if len(fitting) else not mask[b, h].any()


@pytest.mark.parametrize(("kernel", "device", "dtype"), WHERE)
def test_keeps_or_leaves_equals_together(kernel: str, device: str, dtype: torch.dtype) -> None:
    probs = torch.tensor([0.25, 0.5, 0.25], dtype=dtype, device=device).expand(1, 1, 1, 3)
    assert largest_within(probs.contiguous(), 0.8, kernel=kernel).flatten().tolist() == [False, True, False]
    assert largest_within(probs, 1.0, kernel=kernel).all()


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [64, 128, 256])  # the last one is more than the kernel takes
def test_kernels_agree_at_the_sizes_of_prompts(blocks: int) -> None:
    probs = torch.randn(1, 32, blocks, blocks, device="cuda").mul(3).softmax(-1)
    for mass in (0.3 * blocks, 0.9 * blocks):
        same = largest_within(probs, mass) == largest_within(probs, mass, kernel="reference")
        assert same.float().mean() > 0.9999


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
def test_what_triton_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.rand(1, 2, 4, 5)
    monkeypatch.setattr(operation, "MOST_ENTRIES", 19)
    with pytest.raises(ValueError, match=r"at most 19 entries a head, not .* of 20; use kernel=reference"):
        largest_within(probs, 1.0, kernel="triton")
