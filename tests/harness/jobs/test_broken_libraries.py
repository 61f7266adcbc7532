"""Half an installation of a library that is not needed hurts nobody; of one that is, a line names it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attention_kernels.block_sparse import flash4
from attention_kernels.dense import broken_dense, libraries, resolve_dense
from attention_kernels.optional import Unusable, is_broken, load, problem_of

import harness.report
from harness.core.mistakes import first_line, origin
from harness.measure.latency import attention as attention_timing
from harness.measure.latency import time_attention
from harness.study.resume import Attempt, one_line
from harness.study.store import Store
from methods.parts.registry import Registry, TakenName
from tests.harness import tiny
from tests.harness.report.support import DENSE, SPARSE, record_cell

Broken = Callable[..., None]
NO_CTK = "RuntimeError: No CTK flavor installed"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Puts packages before all others that raise when they are imported, as half an installation does."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(*names: str, code: str = "raise RuntimeError('No CTK flavor installed\\nmore')") -> None:
        for name in names:
            folder = tmp_path.joinpath(*name.split("."))
            folder.mkdir(parents=True)
            for parent in folder.relative_to(tmp_path).parents:
                if parent.name:
                    (tmp_path / parent / "__init__.py").touch()
            (folder / "__init__.py").write_text(code)
            for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
                monkeypatch.delitem(sys.modules, loaded)

    return add


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found of libraries is asked again, before and after."""
    caches = (libraries.find_library, libraries.call_problem, flash4._installed)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch, fresh: None) -> dict[str, Any]:
    """A Hopper GPU, as far as is asked before anything runs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return {"device": torch.device("cuda"), "dtype": torch.bfloat16, "head_dim": 64}


def test_why_a_library_cannot_be_used(broken: Broken) -> None:
    broken("half_there")
    broken("without_another", code="import nowhere_at_all")
    broken("exits", code="raise SystemExit(3)")
    assert problem_of("half_there", "f") == f"its package half_there is installed and fails: {NO_CTK}"
    assert "not installed: pip install" in str(problem_of("nowhere_at_all.cute", "f"))
    assert is_broken(problem_of("without_another", "f")) and is_broken(problem_of("exits", "f"))
    assert is_broken(problem_of("json", "no_such_function")) and problem_of("json", "loads") is None
    with pytest.raises(Unusable, match="half_there"):
        load("half_there", "f")


def test_flash_attention_4_half_installed(hopper: dict[str, Any], broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    broken("flash_attn.cute", "flash_attn.cute.interface")
    stand_in = ModuleType("flash_attn_interface")
    stand_in.flash_attn_func = lambda q, *_, **__: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", stand_in)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setattr(libraries, "find_library", _on_no_device(libraries.find_library))
    assert broken_dense(**hopper) == {"fa4": f"its package flash_attn is installed and fails: {NO_CTK}"}
    assert resolve_dense("auto", **hopper) == "fa3"
    with pytest.raises(ValueError, match="dense kernel fa4 can't run here: its package flash_attn is installed and fails"):
        resolve_dense("fa4", **hopper)
    reason = flash4.flash4_reason(**hopper, q_block=64, k_block=64, shared=2)
    assert reason == f"its package flash_attn is installed and fails: {NO_CTK}"


def _on_no_device(find: Any) -> Any:
    """A finder whose libraries take what is no tensor."""

    def found(name: str) -> Any:
        return None if find(name) is None else lambda *_: None

    found.cache_clear = find.cache_clear  # type: ignore[attr-defined]
    return found


def test_flash_attention_3_that_fails_when_it_is_called(hopper: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: Any) -> None:
        raise OSError("undefined symbol: x\nmore")

    monkeypatch.setattr(libraries, "find_library", lambda name: call)
    monkeypatch.setattr("attention_kernels.dense.libraries.torch.zeros", lambda *_, **__: None)
    says = "its package flash_attn_interface is installed and fails: OSError: undefined symbol: x"
    assert resolve_dense("auto", **hopper) == "sdpa" and broken_dense(**hopper)["fa3"] == says


def test_a_dense_kernel_that_fails_costs_no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises, before the first call or at it; the row names both, and the kernel that ran."""
    from harness.measure.latency import layer

    dense = layer.dense_attention

    def attend(*tensors: Any, kernel: str, **options: Any) -> Any:
        if kernel == "sdpa_math":
            raise KeyError("sm_90a")
        return dense(*tensors, kernel=kernel, **options)

    monkeypatch.setattr(layer, "dense_attention", attend)
    monkeypatch.setattr(attention_timing, "available_dense", lambda **_: ["sdpa", "sdpa_math"])
    monkeypatch.setattr(attention_timing, "ORACLES", ())
    monkeypatch.setattr(attention_timing, "broken_dense", lambda **_: {"fa4": "its package flash_attn fails"})
    timing = time_attention(tiny.shared("llama"), None, tiny.tokens(40).tolist(), repeats=1)
    assert timing.dense_failed == {"fa4": "its package flash_attn fails", "sdpa_math": "KeyError: 'sm_90a'"}
    assert timing.dense_kernel == "sdpa" and list(timing.dense_all) == ["sdpa"]


def test_a_report_goes_without_pictures_where_matplotlib_fails(
    command: Callable[..., int],
    broken: Broken,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = Store(tmp_path / "results" / "toy")
    for arm, scores in ((DENSE, [1.0, 1.0]), (SPARSE, [1.0, 0.0])):
        record_cell(store, arm, "vt", scores)
    monkeypatch.setattr(harness.report, "figures", None, raising=False)  # and what it was is there again afterwards
    for name in [name for name in sys.modules if name.startswith(("harness.report.figures", "harness.jobs.compare"))]:
        monkeypatch.delitem(sys.modules, name)
    broken("matplotlib")
    assert command("job=report", "study=toy") == 0
    out = capsys.readouterr().out
    assert f"no pictures: the package matplotlib is installed and fails: {NO_CTK} (harness/report/figures/" in out
    assert "accuracy %" in out and (store.folder / "leaderboard.csv").is_file()
    assert command("job=compare", "study=toy") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the package matplotlib is installed and fails: {NO_CTK} (harness/report/figures/")


@pytest.mark.parametrize(
    ("package", "module", "function"),
    [
        ("jieba", "harness.tasks.longbench.metrics", "_segmenter"),
        ("wonderwords", "harness.tasks.ruler.vocabulary", "nouns"),
    ],
)
def test_a_library_that_a_task_needs(broken: Broken, package: str, module: str, function: str) -> None:
    from importlib import import_module

    needs = getattr(import_module(module), function)
    for cached in (needs, getattr(import_module(module), "_listed", needs)):
        cached.cache_clear()
    broken(package)
    with Attempt() as attempt:
        needs()
    assert attempt.error is not None and origin(attempt.error).failing_package == package
    assert one_line(attempt.error).startswith(f"the package {package} is installed and fails: {NO_CTK} (harness/tasks/")


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.tasks.longbench.metrics import _segmenter

    monkeypatch.setitem(sys.modules, "jieba", None)
    _segmenter.cache_clear()
    with pytest.raises(ImportError) as error:
        _segmenter()
    assert first_line(error.value).startswith("the package jieba is not installed: ModuleNotFoundError: ")


def test_lm_eval_that_fails(broken: Broken, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.lm_eval.__main__ import main

    broken("lm_eval")
    assert main(["--help"]) == 2
    assert capsys.readouterr().err.startswith(f"error: the package lm_eval is installed and fails: {NO_CTK}")


def test_a_method_that_cannot_be_imported_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_methods"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "broken.py").write_text("import nowhere_at_all")
    (folder / "fine.py").write_text("from some_methods import registry\n\n@registry.register('fine')\nclass Fine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[Any] = Registry("method", "some_methods", [str(folder)])
    package = ModuleType("some_methods")
    package.__path__, package.registry = [str(folder)], registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_methods", package)
    assert registry.names() == ["fine"] and registry.get("fine").name == "fine"
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        registry.get("broken")
    with pytest.raises(ValueError, match=r"unknown method mine; choose one of: fine \(can't be imported: broken\)"):
        registry.get("mine")
    (folder / "fine_again.py").write_text("from some_methods import registry\n\n@registry.register('fine')\nclass Fine: pass\n")
    registry._imported = False
    with pytest.raises(TakenName, match="fine is registered twice"):
        registry.names()
