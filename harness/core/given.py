"""Which settings the user gave: a composed config holds those and the defaults of conf/ alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harness.core.conf_files import MAIN, NO_SETTINGS, defaults, groups

_NAMES: ContextVar[frozenset[str]] = ContextVar("names of the settings given", default=frozenset())


@contextmanager
def giving(names: Iterable[str]) -> Iterator[None]:
    """Let settings that are read in the `with` block count as given under these dotted names, at their defaults too."""
    token = _NAMES.set(frozenset(names))
    try:
        yield
    finally:
        _NAMES.reset(token)


def given_settings(raw: Mapping[str, Any]) -> frozenset[str]:
    """Return the dotted names of the settings that were given: those of `giving`, and all that differ from their file's."""
    changed = _changed("", MAIN, raw)
    for group in groups():
        section = raw.get(group)
        if isinstance(section, Mapping) and section.get("name") in groups()[group]:
            changed |= {f"{group}.{name}" for name in _changed(group, section["name"], section)}
    return _NAMES.get() | changed


def _changed(group: str, choice: str, settings: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings, none below another, that are not as in a choice's file."""
    standing = defaults(group, choice)
    own = {name: value for name, value in settings.items() if name not in NO_SETTINGS and not isinstance(value, Mapping)}
    return {name for name, value in own.items() if name in standing and value != standing[name]}
