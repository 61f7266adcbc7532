"""Names for classes that are found by lying in a folder: methods of prefill in one, methods of decoding in another."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_C = TypeVar("_C", bound=type[Any])


class Registry(Generic[_T]):
    """The classes that register themselves in the modules of a package. kind: what messages call them."""

    def __init__(self, kind: str, package: str, folder: Iterable[str]) -> None:
        self.kind, self.package, self.folder = kind, package, folder
        self.found: dict[str, type[_T]] = {}
        self._looked = False

    def register(self, name: str) -> Callable[[_C], _C]:
        """Class decorator: makes a class known under `name`, which becomes its `name` attribute."""

        def add(cls: _C) -> _C:
            if name in self.found:
                both = f"{self.found[name].__module__} and {cls.__module__}"
                raise ValueError(f"{self.kind} {name} is registered twice: {both}")
            cls.name = name
            self.found[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        if not self._looked:
            for module in pkgutil.iter_modules(self.folder):
                importlib.import_module(f"{self.package}.{module.name}")
            self._looked = True
        return sorted(self.found)

    def get(self, name: str) -> type[_T]:
        """The class of a name. Raises ValueError listing all names where there is none."""
        if name not in self.names():
            raise ValueError(f"unknown {self.kind} {name}; choose one of: {', '.join(self.names())}")
        return self.found[name]

    def build(self, name: str, **knobs: Any) -> _T:
        """One with its knobs. Raises ValueError listing the knobs it has where one is not among them."""
        cls = self.get(name)
        known = _knobs(cls)
        for knob in knobs:
            if knob not in known:
                raise ValueError(f"{self.kind} {name} has no knob {knob}; it has: {', '.join(known)}")
        return cls(**knobs)


def _knobs(cls: type[Any]) -> list[str]:
    """Keyword arguments of the constructor: the shared ones and the class's own."""
    found: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    return list(found)
