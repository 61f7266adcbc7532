"""A run reads top to bottom: where the settings go, that no call leads back into its caller's module, and one name for one
thing. Counted on one evaluation of a toy model, and in the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from harness.core.conf_files import conf_dir
from harness.core.settings import Settings, read_settings
from harness.measure.run import measure
from harness.study.store import Store

HARNESS = Path(__file__).resolve().parents[3] / "harness"
ROOMS = ("measure", "arms", "study", "models")
STANDARD_NAMES = {
    "Settings": {"settings"},
    "RunContext": {"context"},
    "RunnableArm": {"arm"},
    "Store": {"store"},
    "LoadedModel": {"loaded"},
    "Console": {"console"},
    "Bridge": {"bridge"},
}
"""The name of a parameter of each of these types."""


class Trace:
    """The calls of the modules of ROOMS, by `sys.setprofile`. visits: modules that the settings went through; returns: calls
    from one module into another that is waiting for it, as (caller, callee, function)."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.visits: set[str] = set()
        self.returns: set[tuple[str, str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        module = module_of(frame.f_code) if event == "call" else None
        if module is None:
            return
        self.modules.add(module)
        if any(holds_settings(value) for value in arguments(frame)):
            self.visits.add(module)
        waiting = list(modules_below(frame))
        if waiting and waiting[0] != module and module in waiting:
            self.returns.add((waiting[0], module, frame.f_code.co_qualname))


def module_of(code: CodeType) -> str | None:
    """The module of a function, as a path below harness/; None outside ROOMS."""
    if not code.co_filename.startswith(str(HARNESS)):
        return None
    path = code.co_filename.removeprefix(f"{HARNESS}/")
    return path if path.partition("/")[0] in ROOMS else None


def modules_below(frame: FrameType) -> Iterator[str]:
    """The modules of the calls that wait for this one, its caller's first."""
    caller = frame.f_back
    while caller is not None:
        if (module := module_of(caller.f_code)) is not None:
            yield module
        caller = caller.f_back


def arguments(frame: FrameType) -> Iterator[Any]:
    """The arguments of a call."""
    code = frame.f_code
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        yield frame.f_locals.get(name)


def holds_settings(value: Any) -> bool:
    """Whether a value is the settings, or has them as an attribute."""
    attributes = getattr(value, "__dict__", None)
    return isinstance(value, Settings) or (
        isinstance(attributes, dict) and any(isinstance(attribute, Settings) for attribute in attributes.values())
    )


@pytest.fixture(scope="module")
def trace(brief_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """An evaluation of dense and of a method whose knob is calibrated, self-checked, the question after its context."""
    folder, trace = tmp_path_factory.mktemp("flow"), Trace()
    overrides = [
        "model=hf",
        f"model.path={brief_folder}",
        "model.name=toy",
        "model.chat_template=false",
        "device=cpu",
        "length=512",
        "samples=1",
        "task=niah_single_1",
        "method=xattention",
        "sparsity=0.5",
        "question=after",
        "latency=false",
        f"results={folder}",
    ]
    with initialize_config_dir(version_base=None, config_dir=str(conf_dir())):
        settings = read_settings(compose("config", overrides))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sys.setprofile(trace)
        try:
            done = measure(settings, Store(folder), Console(quiet=True))
        finally:
            sys.setprofile(None)
    assert done.failed == 0 and len(done.arms) == 2
    return trace


def test_settings_visit_few_modules(trace: Trace) -> None:
    """A module is visited when one of its functions is called with the settings, or with an object that has them as an
    attribute. While the context of a run held the settings, these were 8 modules in this evaluation and 11 over all jobs, all
    that measure among them; those get what they need now."""
    assert len(trace.modules) > 15, "most of a run is seen"
    assert {"measure/run.py", "measure/context.py", "arms/build.py"} <= trace.visits
    assert len(trace.visits) <= 8, trace.visits
    measuring = {f"measure/{name}.py" for name in ("accuracy", "generate_batches", "self_check", "cells")}
    assert measuring <= trace.modules and not measuring & trace.visits


def test_no_call_leads_back_into_a_module_that_waits_for_it(trace: Trace) -> None:
    """A return is a call from module B of a function of module A while a call of A that led to B is under way: a closure or
    a method that A handed down. Counted as distinct (B, A, function), without times: a clock must call what it times. There
    were 6."""
    assert trace.returns == set()


def test_one_name_for_one_thing() -> None:
    """A parameter counts whose annotation is one of STANDARD_NAMES, or that or None, and whose name is another one, anywhere
    in harness/. There were 73 (`wanted` for Settings, `each` for an arm, …)."""
    others = []
    for path in sorted(HARNESS.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not any(kind in source for kind in STANDARD_NAMES):
            continue  # parsing takes most of the time
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef):
                continue
            for parameter in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
                kind = "" if parameter.annotation is None else ast.unparse(parameter.annotation).removesuffix(" | None")
                if kind in STANDARD_NAMES and parameter.arg not in STANDARD_NAMES[kind]:
                    others.append(f"{path.relative_to(HARNESS)}:{function.name}({parameter.arg}: {kind})")
    assert len(others) <= 3, others


def test_a_closure_that_leads_back_is_seen() -> None:
    """The trace sees what it must: a function of one module that another calls for it."""
    trace = Trace()
    codes = [compile(text, f"{HARNESS}/{name}", "exec") for name, text in PLANTED.items()]
    namespace: dict[str, Any] = {}
    for code in codes:
        exec(code, namespace)
    sys.setprofile(trace)
    try:
        namespace["outer"]()
    finally:
        sys.setprofile(None)
    assert trace.returns == {("models/b.py", "measure/a.py", "outer.<locals>.closure")}


PLANTED = {
    "measure/a.py": "def outer():\n    def closure(): pass\n    inner(closure)",
    "models/b.py": "def inner(call):\n    call()",
}
