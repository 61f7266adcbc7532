"""Finding and building methods by name."""

from __future__ import annotations

import pkgutil
from types import ModuleType

import pytest

import methods
from methods import decode
from methods.parts.base import LayerInputs, Method
from methods.parts.registry import Registry

SHIPPED = {"block_topk", "dense", "oracle", "random", "seer", "streaming_llm"}


def test_every_file_with_a_method_is_found() -> None:
    assert methods.names() == sorted(methods.names())
    assert set(methods.names()) >= SHIPPED


@pytest.mark.parametrize("package", [methods, decode])
def test_the_folders_hold_methods_only_one_a_file(package: ModuleType) -> None:
    """Helpers lie in folders of their own."""
    files = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)
    registered = sorted(package.get(name).__module__.rpartition(".")[2] for name in package.names())
    assert files == registered


@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_what_it_is(name: str) -> None:
    cls = methods.get(name)
    assert cls.name == name
    assert cls.paper
    assert cls.knob
    assert cls.family in ("top-k", "threshold", "static", "none")
    assert cls.__doc__


def test_unknown_method_lists_all_names() -> None:
    with pytest.raises(ValueError, match=r"unknown method sear; choose one of: .*block_topk, .*seer"):
        methods.build("sear")


def test_unknown_knob_lists_the_knobs() -> None:
    with pytest.raises(ValueError, match=r"streaming_llm has no knob sink; it has: .*sparsity.*window, sinks"):
        methods.build("streaming_llm", sparsity=0.5, sink=4)


def test_a_name_can_be_taken_only_once() -> None:
    with pytest.raises(ValueError, match="dense is registered twice"):

        @methods.register("dense")
        class Other(Method):
            def select(self, x: LayerInputs) -> None:
                return None


def test_a_method_written_in_a_script_or_a_notebook_is_registered() -> None:
    registry: Registry[object] = Registry("method", "methods", [])

    class Own:
        pass

    Own.__module__ = "__main__"
    registry.register("own")(Own)
    assert registry.get("own") is Own


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0: must be at least 0 \(keep every block\) and below 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1: must be"),
        ({"sparsity": 0.5, "block_size": 60}, "block_size=60: must be a multiple of 16"),
        ({"sparsity": 0.5, "seed": -1}, "seed=-1: must be at least 0"),
        ({}, r"block_topk needs sparsity in \[0, 1\)"),
    ],
)
def test_shared_knobs_are_checked(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("block_topk", **knobs)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("streaming_llm", {}, "needs sparsity .* or a window in tokens"),
        ("streaming_llm", {"sparsity": 0.5, "window": 64}, "sparsity=0.5 and window=64: give one of them"),
        ("streaming_llm", {"window": 0}, "window=0: must be at least 1 token"),
        ("streaming_llm", {"window": 9, "sinks": -1}, "sinks=-1: must be at least 0 tokens"),
        ("oracle", {"sparsity": 0.5, "pool": "sum"}, "pool=sum: must be one of max, mass"),
        ("seer", {"sparsity": 0.5, "selection": "top"}, "selection=top: must be one of topk, threshold, nz_ratio"),
        ("seer", {"selection": "threshold"}, "needs sparsity .* or a threshold"),
        ("seer", {"sparsity": 0.5, "selection": "threshold", "threshold": 0.1}, "sparsity=0.5 and threshold=0.1: give one"),
        ("seer", {"sparsity": 0.5, "selection": "topk", "threshold": 0.1}, "threshold=0.1 has no effect with selection=topk"),
        ("seer", {"selection": "threshold", "threshold": 1.5}, "threshold=1.5: must be a probability"),
        ("seer", {"sparsity": 0.0, "selection": "threshold", "threshold": 0.1}, "sparsity=0.0 and threshold=0.1"),
        ("oracle", {"sparsity": 0.5, "selection": "top"}, "selection=top: must be one of topk, threshold, nz_ratio"),
        ("oracle", {"selection": "threshold"}, "needs sparsity .* or a threshold"),
        ("oracle", {"sparsity": 0.5, "nz_ratio": 0.1}, "has no effect with selection=topk"),
        ("seer", {"selection": "nz_ratio"}, "needs sparsity .* or an nz_ratio"),
        ("seer", {"selection": "nz_ratio", "nz_ratio": 0.0}, "nz_ratio=0.0: must be above 0"),
        ("seer", {"selection": "nz_ratio", "nz_ratio": 0.1, "sparsity": 0.9}, "give one of them"),
    ],
)
def test_native_knobs_are_checked(name: str, knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build(name, **knobs)


def test_methods_without_weights_refuse_them() -> None:
    with pytest.raises(ValueError, match="random has no trained weights"):
        methods.build("random", sparsity=0.5).load({}, layers=1, heads=1, kv_heads=1, head_dim=8)


def test_weights_are_named_by_block_size() -> None:
    assert methods.build("seer", sparsity=0.5, block_size=32).weights_name() == "gates-32.safetensors"
    assert methods.build("random", sparsity=0.5).weights_name() is None
