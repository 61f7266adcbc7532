"""Sparse attention methods, one file each. A method is found by being in this folder: nothing else lists it.

@register("my_method")
class MyMethod(Method): ...

build("my_method", block_size=64, sparsity=0.9)
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from methods.base import Method

_M = TypeVar("_M", bound=type[Method])
_registry: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[_M], _M]:
    """Class decorator: makes a method known under `name`, which becomes its `name` attribute."""

    def add(cls: _M) -> _M:
        if name in _registry:
            raise ValueError(f"method {name} is registered twice: {_registry[name].__module__} and {cls.__module__}")
        cls.name = name
        _registry[name] = cls
        return cls

    return add


@functools.cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names() -> list[str]:
    """Names of all methods, sorted."""
    _discover()
    return sorted(_registry)


def get(name: str) -> type[Method]:
    """The class of a method. Raises ValueError listing all names where there is none."""
    if name not in names():
        raise ValueError(f"unknown method {name}; choose one of: {', '.join(names())}")
    return _registry[name]


def build(name: str, **knobs: Any) -> Method:
    """A method with its knobs. Raises ValueError listing the method's knobs where one is not among them."""
    cls = get(name)
    known = _knobs(cls)
    for knob in knobs:
        if knob not in known:
            raise ValueError(f"method {name} has no knob {knob}; it has: {', '.join(known)}")
    return cls(**knobs)


def _knobs(cls: type[Method]) -> list[str]:
    """Keyword arguments of the constructor: the shared ones and the method's own."""
    found: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and issubclass(base, Method):
            parameters = inspect.signature(base.__init__).parameters.values()
            found |= {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    return list(found)
