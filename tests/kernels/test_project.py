"""The linear map and RoPE of pooled vectors against float64."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.project import project

from tests.kernels.test_pool import tables

GPU = pytest.mark.gpu


@pytest.mark.parametrize(
    ("kernel", "device"),
    [
        ("reference", "cpu"),
        pytest.param("triton", "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")),
        pytest.param("triton", "cuda", marks=GPU),
    ],
)
@pytest.mark.parametrize(
    ("own", "heads", "length", "inner", "dim", "rotary", "scaling"),
    [
        (2, 4, 37, 48, 16, 16, 1.0),
        (1, 3, 20, 72, 48, 40, 1.3),
        (3, 3, 70, 20, 40, 0, 1.0),
        (2, 2, 1, 16, 16, 16, 1.0),
        (2, 14, 33, 48, 16, 16, 1.0),
    ],
)
@pytest.mark.parametrize("linear", [True, False])
def test_equals_the_formula(
    kernel: str, device: str, own: int, heads: int, length: int, inner: int, dim: int, rotary: int, scaling: float, linear: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, length, own, inner if linear else dim, generator=generator).transpose(1, 2)
    weight = torch.randn(heads, inner, dim, generator=generator) * inner**-0.5
    cos, sin = tables(4 * length, rotary, scaling)
    cos, sin = cos[::4], sin[::4]  # the positions of blocks of four tokens
    true = x.double()
    if linear:
        true = torch.einsum("bhmi,hid->bhmd", true.repeat_interleave(heads // own, 1), weight.double())
    half = rotary // 2
    turned = torch.complex(true[..., :half], true[..., half:rotary]) * torch.complex(cos.double(), sin.double())
    true = torch.cat((turned.real, turned.imag, true[..., rotary:]), -1)
    given = {"cos": cos.to(device), "sin": sin.to(device)} if rotary else {}
    result = project(x.to(device), weight.to(device) if linear else None, kernel=kernel, **given)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.cpu().double(), true, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")),
        pytest.param("cuda", marks=GPU),
    ],
)
def test_infinities_and_nan_are_those_of_float32(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 1, 20, 48, generator=generator), torch.randn(1, 48, 32, generator=generator)
    x[0, 0, 2, 5], x[0, 0, 3, 7], x[0, 0, 4, 9], weight[0, 3, 4] = float("inf"), -float("inf"), float("nan"), 3e38
    given = {"cos": torch.ones(20, 16), "sin": torch.zeros(20, 16)}
    result = project(x.to(device), weight.to(device), kernel="triton", **{n: t.to(device) for n, t in given.items()})
    expected = project(x, weight, kernel="reference", **given)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=2e-5, equal_nan=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
def test_what_is_neither_mapped_nor_turned_needs_no_launch() -> None:
    x = torch.randn(1, 2, 5, 16)
    assert project(x, None, kernel="triton") is x
    assert torch.equal(project(x.half(), None, kernel="triton"), x.half().float())


def test_the_reference_has_gradients() -> None:
    weight = torch.randn(2, 16, 16, requires_grad=True)
    cos, sin = tables(5, 16)
    project(torch.randn(1, 1, 5, 16), weight, cos=cos, sin=sin, kernel="reference").square().sum().backward()
    assert weight.grad is not None and bool((weight.grad.abs().sum((1, 2)) > 0).all())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.zeros(3, 16, 16)}, "H a multiple of 2"),
        ({"weight": torch.zeros(2, 8, 16)}, r"expected \[H,16,D\]"),
        ({"x": torch.zeros(5, 16)}, r"expected \[B,Hx,M,I\]"),
        ({"sin": torch.zeros(5, 8)}, "go together"),
        ({"kernel": "fast"}, "choose one of: auto, reference, triton"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict, says: str) -> None:
    given = {"x": torch.zeros(1, 2, 5, 16), "weight": torch.zeros(2, 16, 16), **change}
    with pytest.raises(ValueError, match=says) as caught:
        project(given.pop("x"), given.pop("weight"), **given)
    assert "\n" not in str(caught.value)
