"""Names for classes that are found by lying in a folder: methods of prefill in one, methods of decoding in another."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from methods.parts.knob_types import check_type, declared_types
from methods.parts.release import Releasable

_T = TypeVar("_T", bound=Releasable)
_C = TypeVar("_C", bound=type[Any])


class TakenName(ValueError):
    """Two classes have one name: which of them a row is of, nobody could say."""


class Registry(Generic[_T]):
    """The classes that register themselves in the modules of a package.

    kind: what messages call one of them. package: its import name. folder: its `__path__`, whose modules are imported when
    names are first asked for; its sub-packages are not, since helpers lie there. broken: what modules raised that could not be
    imported, by their names: that costs what is in them alone.
    """

    def __init__(self, kind: str, package: str, folder: Iterable[str]) -> None:
        self.kind, self.package, self.folder = kind, package, folder
        self.classes: dict[str, type[_T]] = {}
        self.broken: dict[str, Exception] = {}
        self._imported = False

    def register(self, name: str) -> Callable[[_C], _C]:
        """Return a class decorator that makes a class known under `name`, which becomes its `name` attribute.

        The decorator raises ValueError where the name is taken.
        """

        def add(cls: _C) -> _C:
            cls.name = name
            if self._runs_as_demo(cls):
                return cls  # `names` imports its module again under its own name, and that class is the one to know
            if name in self.classes:
                both = f"{self.classes[name].__module__} and {cls.__module__}"
                raise TakenName(f"{self.kind} {name} is registered twice: {both}")
            self.classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """Return all names, sorted."""
        if not self._imported:
            for module in pkgutil.iter_modules(self.folder):
                if not module.ispkg:
                    self._import(module.name)
            self._imported = True
        return sorted(self.classes)

    def get(self, name: str) -> type[_T]:
        """Return the class of a name. Raises ValueError listing all names where there is none, and what the module of that name
        raised where it could not be imported."""
        if name not in self.names() and name in self.broken:
            raise self.broken[name]
        if name not in self.names():
            failed = f" (can't be imported: {', '.join(sorted(self.broken))})" if self.broken else ""
            raise ValueError(f"unknown {self.kind} {name}; choose one of: {', '.join(self.names())}{failed}")
        return self.classes[name]

    def knobs(self, name: str) -> list[str]:
        """Return the knobs of a class: the keyword arguments of its constructor, and of the base's where it hands others on."""
        return list(self._knob_types(name))

    def _knob_types(self, name: str) -> dict[str, Any]:
        """Return the declared types of the knobs of a class, by their names."""
        knobs: dict[str, Any] = {}
        for base in self.get(name).__mro__:
            if "__init__" in vars(base) and base is not object:
                constructor = vars(base)["__init__"]
                parameters, declared = inspect.signature(constructor).parameters.values(), declared_types(constructor)
                names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
                knobs |= {knob: declared.get(knob, Any) for knob in names if knob not in knobs}
                if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                    break
        return knobs

    def released(self) -> list[str]:
        """Return the names of the classes that have a release to follow, sorted."""
        return [name for name in self.names() if self.get(name).release is not None]

    def build(self, name: str, *, as_released: bool = False, **knobs: Any) -> _T:
        """Return an instance with these knobs. Raises ValueError, one line, where one is not among those of the class, which it
        lists, or has a value of another type than is declared there.

        as_released: whether it does what its release does, with the release's knobs under these (`methods.parts.release`); a
        class without a release is a ValueError then.
        """
        cls = self.get(name)
        if as_released and cls.release is None:
            have = ", ".join(self.released()) or "none"
            raise ValueError(f"{self.kind} {name} has no release to follow, so as_released changes nothing; these have: {have}")
        if as_released:
            knobs = cls.release_knobs(knobs)
        known = self._knob_types(name)
        for knob, value in knobs.items():
            if knob not in known:
                raise ValueError(f"{self.kind} {name} has no knob {knob}; it has: {', '.join(known)}")
            check_type(f"{self.kind} {name}, {knob}", value, known[knob])
        built = cls.__new__(cls)
        if as_released:  # before the constructor, which may ask for it
            built.as_released = True
        cls.__init__(built, **knobs)
        return built

    def _import(self, module: str) -> None:
        """Import a module of the folder, and keep what it raises. Raises TakenName."""
        try:
            importlib.import_module(f"{self.package}.{module}")
        except TakenName:
            raise
        except Exception as error:
            self.broken[module] = error

    def _runs_as_demo(self, cls: type[Any]) -> bool:
        """Return whether a class is of a module of the package that runs as `python -m` (a user's own `__main__` is not)."""
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        return cls.__module__ == "__main__" and spec is not None and spec.name.rpartition(".")[0] == self.package
