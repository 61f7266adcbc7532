"""Dense attention: every back end that runs here against the formula, chunked, decoding, padded, windowed."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from attention_kernels.block_map import log_sum_exp
from attention_kernels.dense import (
    available_dense,
    dense_attention,
    dense_attention_and_lse,
    resolve_dense,
    sliding_window_attention,
)
from attention_kernels.dense.libraries import LIBRARIES, find_library
from attention_kernels.dense.reference import dense_reference

CPU = torch.device("cpu")


def tensors(q_len: int, k_len: int, dtype: torch.dtype = torch.float32, device: str = "cpu", heads: int = 4, kv: int = 2):
    generator = torch.Generator().manual_seed(q_len + k_len)
    return [
        torch.randn(2, h, n, 64, generator=generator).to(device, dtype) for h, n in ((heads, q_len), (kv, k_len), (kv, k_len))
    ]


@pytest.mark.parametrize(("q_len", "k_len"), [(65, 65), (1, 80), (30, 97)])
@pytest.mark.parametrize("kernel", ["sdpa", "sdpa_math", "reference"])
def test_equals_the_formula(kernel: str, q_len: int, k_len: int) -> None:
    q, k, v = tensors(q_len, k_len)
    exact = dense_reference(q.double(), k.double(), v.double(), scale=0.125).float()
    torch.testing.assert_close(dense_attention(q, k, v, kernel=kernel), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("q_len", "k_len"), [(650, 650), (1, 800), (300, 970)])
def test_every_kernel_of_the_gpu(q_len: int, k_len: int) -> None:
    q, k, v = tensors(q_len, k_len, torch.bfloat16, "cuda")
    exact = dense_reference(q.double(), k.double(), v.double(), scale=0.125)
    for kernel in available_dense(device=q.device, dtype=q.dtype, head_dim=64):
        try:
            out = dense_attention(q, k, v, kernel=kernel).double()
        except RuntimeError:  # a back end may refuse a chunk, loudly
            assert q_len not in (1, k_len)
            continue
        assert (out - exact).norm() / exact.norm() < 1e-2, kernel


def test_kernels_of_torch_return_no_log_sum_exp() -> None:
    q, k, v = tensors(30, 97)
    out, lse = dense_attention_and_lse(q, k, v)
    assert lse is None and torch.equal(out, dense_attention(q, k, v))


def test_a_library_is_asked_for_its_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(q: torch.Tensor, *_: object, return_attn_probs: bool, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        assert return_attn_probs
        return q, q.float().sum(-1).transpose(1, 2)

    module = ModuleType("flash_attn_interface")
    module.flash_attn_func = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("attention_kernels.dense.resolve_dense", lambda *_, **__: "fa3")
    q, k, v = tensors(30, 97)
    find_library.cache_clear()
    try:
        out, lse = dense_attention_and_lse(q, k, v)
    finally:
        find_library.cache_clear()
    assert torch.equal(out, q) and torch.equal(lse, q.sum(-1))


@pytest.mark.gpu
@pytest.mark.parametrize(("q_len", "k_len"), [(650, 650), (1, 800), (300, 970)])
def test_the_log_sum_exp_of_libraries(q_len: int, k_len: int) -> None:
    q, k, v = tensors(q_len, k_len, torch.bfloat16, "cuda", heads=6)
    exact = log_sum_exp(q.double(), k.double(), scale=0.125, kernel="reference")
    for kernel in set(available_dense(device=q.device, dtype=q.dtype, head_dim=64)) & set(LIBRARIES):
        out, lse = dense_attention_and_lse(q, k, v, kernel=kernel)
        assert lse is not None and lse.dtype == torch.float32 and lse.shape == exact.shape
        torch.testing.assert_close(lse, exact, rtol=1e-3, atol=1e-3)
        assert torch.equal(out, dense_attention(q, k, v, kernel=kernel))


@pytest.mark.parametrize("q_len", [1, 20])
def test_key_mask(q_len: int) -> None:
    q, k, v = tensors(q_len, 50)
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[1, :13] = False
    exact = dense_reference(q.double(), k.double(), v.double(), scale=0.125, key_mask=mask).float()
    torch.testing.assert_close(dense_attention(q, k, v, kernel="sdpa", key_mask=mask), exact, rtol=1e-4, atol=1e-5)
    alone = dense_attention(q[1:], k[1:, :, 13:], v[1:, :, 13:], kernel="reference")
    torch.testing.assert_close(exact[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("q_len", "k_len"), [(300, 300), (40, 300)])
@pytest.mark.parametrize("window", [1, 16, 150, 400])
def test_sliding_window(window: int, q_len: int, k_len: int) -> None:
    q, k, v = tensors(q_len, k_len)
    position = torch.arange(q_len)[:, None] + k_len - q_len
    key = torch.arange(k_len)
    mask = (key <= position) & (key > position - window)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(sliding_window_attention(q, k, v, window=window), exact, rtol=1e-4, atol=1e-5)


def test_names() -> None:
    shape = {"device": CPU, "dtype": torch.float32, "head_dim": 64}
    assert available_dense(**shape) == ["sdpa"]
    assert resolve_dense("auto", **shape) == "sdpa"
    with pytest.raises(ValueError, match="choose one of: auto, sdpa_flash"):
        resolve_dense("flashiest", **shape)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        resolve_dense("sdpa_cudnn", **shape)
    with pytest.raises(ValueError, match=r"compute capability 9\.x only"):
        resolve_dense("fa3", **shape)


@pytest.mark.parametrize(("queries", "splits"), [(1, {"num_splits": 0}), (512, {"num_splits": 0}), (513, {})])
def test_fa3_splits_the_keys_of_few_queries(monkeypatch: pytest.MonkeyPatch, queries: int, splits: dict[str, int]) -> None:
    seen: dict[str, object] = {}

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: object) -> torch.Tensor:
        seen.update(given)
        return q

    module = ModuleType("flash_attn_interface")
    module.flash_attn_func = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    find_library.cache_clear()
    try:
        run = find_library("fa3")
        assert run is not None
        q, keys = torch.ones(1, queries, 2, 16), torch.zeros(1, 600, 2, 16)
        out, lse = run(q, keys, keys, 0.25)
        assert out is q and lse is None
        assert "return_attn_probs" not in seen  # releases that do not take it return a tuple
    finally:
        find_library.cache_clear()
    assert seen == {"softmax_scale": 0.25, "causal": True, **splits}


@pytest.mark.parametrize(("package", "auto"), [("flash_attn_interface", "fa3"), ("fa3_fwd_interface", "sdpa")])
def test_a_package_without_a_backward_pass_is_not_differentiated(
    monkeypatch: pytest.MonkeyPatch, package: str, auto: str
) -> None:
    module = ModuleType(package)
    module.flash_attn_func = lambda q, *_, **__: q  # type: ignore[attr-defined]
    other = {"flash_attn_interface", "fa3_fwd_interface"} - {package}
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setitem(sys.modules, other.pop(), None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr("attention_kernels.dense.call_problem", lambda *_: None)
    site = {"device": torch.device("cuda", 0), "dtype": torch.bfloat16, "head_dim": 64}
    find_library.cache_clear()
    try:
        assert resolve_dense("auto", **site) == "fa3" and resolve_dense("auto", **site, grad=True) == auto
        assert ("fa3" in available_dense(**site, grad=True)) == (auto == "fa3") and "fa3" in available_dense(**site)
        if auto != "fa3":
            with pytest.raises(ValueError, match="dense kernel fa3 can't run here: its package fa3_fwd has no backward pass"):
                resolve_dense("fa3", **site, grad=True)
    finally:
        find_library.cache_clear()
