"""Whether the value of a knob is of the type that its constructor declares, and the words for that type."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    types.NoneType: "null",
}
"""What a type is called; a hint of any other is not checked."""


def declared_types(constructor: Any) -> dict[str, Any]:
    """Return the declared types of a constructor's parameters by name; none where they name what can't be looked up."""
    try:
        return typing.get_type_hints(constructor)
    except NameError:  # imported for type checkers alone
        return {}


def check_type(name: str, value: Any, declared: Any) -> None:
    """Raise ValueError, one line, where the value of a knob is not of its declared type."""
    hints = typing.get_args(declared) if typing.get_origin(declared) in (types.UnionType, typing.Union) else (declared,)
    known = all(hint in WORDS or typing.get_origin(hint) is Literal for hint in hints)
    if not known or any(_fits(value, hint) for hint in hints):
        return
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    raise ValueError(f"{name}={shown}: must be {' or '.join(map(_in_words, hints))}")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))  # True is an int to Python


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return WORDS[hint]
