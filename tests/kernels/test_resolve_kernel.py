"""How a block-sparse kernel is chosen: by name, or by architecture and shape; and the index that it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attention_kernels.block_sparse as front
import pytest
import torch
from attention_kernels.block_sparse import as_run, block_sparse_attention, resolve_kernel
from attention_kernels.block_sparse.table import BACKENDS, Backend, preferred

from tests.kernels.oracle import Case, attention, error

LLAMA = {"device": torch.device("cuda", 0), "dtype": torch.bfloat16, "head_dim": 128, "q_block": 128, "k_block": 128}
ON_CPU = {"device": torch.device("cpu"), "dtype": torch.float32, "head_dim": 64, "q_block": 64, "k_block": 64}


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Pretend to have a GPU of a compute capability."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        front._resolve.cache_clear()

    yield pretend
    front._resolve.cache_clear()


@pytest.mark.parametrize(
    ("major", "hopper_runs", "expected"),
    [(9, True, "hopper"), (9, False, "triton"), (8, True, "triton"), (10, True, "triton"), (12, True, "triton")],
)
def test_auto_goes_by_architecture_and_shape(
    capability: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, major: int, hopper_runs: bool, expected: str
) -> None:
    capability(major, 0)
    asked: list[dict[str, Any]] = []

    def reason(**where: Any) -> str | None:
        asked.append(where)
        return None if hopper_runs else "not this shape"

    monkeypatch.setitem(BACKENDS, "hopper", Backend(reason, BACKENDS["hopper"].run))
    assert resolve_kernel("auto", **LLAMA, shared=4) == expected
    assert asked == ([{**LLAMA, "shared": 4}] if major == 9 else [])


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_auto_on_hopper_is_what_its_kernel_says(capability: Callable[[int, int], None], block: int, shared: int) -> None:
    capability(9, 0)
    where = {**LLAMA, "q_block": block, "k_block": block, "shared": shared}
    runs = BACKENDS["hopper"].reason(**where) is None
    assert resolve_kernel("auto", **where) == ("hopper" if runs else "triton")
    if runs:
        assert resolve_kernel("hopper", **where) == "hopper"
    else:
        with pytest.raises(ValueError, match="kernel=hopper can't run here"):
            resolve_kernel("hopper", **where)


def test_auto_on_a_cpu_is_sdpa() -> None:
    assert resolve_kernel("auto", **ON_CPU) == "sdpa"
    assert preferred(torch.device("cpu")) == ("sdpa",)


def test_auto_never_takes_another_kernel_silently(capability: Callable[[int, int], None]) -> None:
    capability(9, 0)
    with pytest.raises(ValueError, match=r"kernel=triton can't run here: it takes blocks of 16, 32, 64, 128, not 8 and 8"):
        resolve_kernel("auto", **LLAMA | {"q_block": 8, "k_block": 8})


@pytest.mark.parametrize(
    ("kernel", "change", "says"),
    [
        ("cutlass", {}, "choose one of: auto, reference, sdpa, triton, hopper, flash4, flash4_merged, flex"),
        ("triton", {"q_block": 48}, "not 48 and 64; kernel=sdpa runs everywhere"),
        ("triton", {"dtype": torch.float64}, "not torch.float64"),
        ("triton", {"head_dim": 80}, "not 80"),
        ("hopper", {}, "Hopper"),
        ("flash4", {}, r"compute capability 9.x and 10.x only"),
        ("flash4_merged", {"k_block": 48}, "divide 128, not 64 and 48"),
        ("flash4_merged", {}, r"compute capability 9.x and 10.x only"),
        ("flex", {"q_block": 8}, "multiples of 16, not 8 and 64"),
        ("flex", {"dtype": torch.float64}, "not torch.float64"),
        ("flex", {"head_dim": 512}, "not 512"),
        ("flex", {"device": torch.device("meta")}, "not on meta"),
    ],
)
def test_a_name_is_checked(kernel: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        resolve_kernel(kernel, **ON_CPU | change)


def test_merged_blocks_are_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU through a stand-in that merges: the union of the blocks is attended to, and `as_run` says so."""
    monkeypatch.setitem(BACKENDS, "merging", Backend(BACKENDS["sdpa"].reason, BACKENDS["sdpa"].run, merges=128))
    case = Case(1, 4, 2, 300, 330, 64, 32, 64, 4)
    q, k, v = case.tensors(torch.float64, "cpu")
    index = case.index("cpu", share=0.1)
    ran = as_run(index, "merging")
    assert (ran.q_block, ran.k_block) == (128, 128) and (ran.density() > index.density()).all()
    assert as_run(ran, "merging") is ran and as_run(index, "sdpa") is index
    out = block_sparse_attention(q, k, v, index, kernel="merging")
    assert error(out, attention(q, k, v, ran)) < 1e-12
    assert error(out, attention(q, k, v, index)) > 1e-2
