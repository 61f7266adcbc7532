"""What tells a method's rows apart by name: those of its knobs that are not at their defaults in conf/method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from harness.core.conf_files import ABOUT, defaults, groups
from harness.core.method_facts import method_facts

RELEASED = "as_released"
"""The knob that says that a method ran as its authors released it: its other knobs are then its release's."""


@lru_cache
def usual_knobs(method: str) -> Mapping[str, Any]:
    """Return the knobs of a method that a name need not say, with their values: the defaults of its file, but for those that
    are null, which stand for whatever the method makes of them; those that came later may be null. Without what a sparsity
    decides: it is found for each row. Nothing for a method that has no file: recorded rows may be of another version's."""
    if method not in groups().get("method", []):
        return {}
    facts, file = method_facts(method), defaults("method", method)
    others = ("name", ABOUT, *facts.searched, *facts.instead)
    knobs = {name: value for name, value in file.items() if name not in others}
    return {name: value for name, value in knobs.items() if value is not None or name in facts.added_knobs}


def asked_value(method: str, knobs: Mapping[str, Any], name: str) -> Any:
    """Return the value of a knob as a command asks for it, from recorded knobs: one that came later stands for what it was
    before, and any other that is not recorded is at its default."""
    facts = method_facts(method)
    value = knobs.get(name, facts.added_knobs.get(name, usual_knobs(method).get(name)))
    return facts.recorded_as.get(name, {}).get(value, value) if isinstance(value, str) else value


def knob_name(method: str, knobs: Mapping[str, Any], name: str) -> str:
    """Return what a name says of a knob, "last 0" or "topk", of recorded knobs: nothing where it is at its default
    (as released: its release's)."""
    value, usual = asked_value(method, knobs, name), usual_knobs(method)
    if knobs.get(RELEASED):
        usual = {**usual, **method_facts(method).released}
    return "" if value == usual.get(name) else named(method, name, value)


def named(method: str, name: str, value: Any) -> str:
    """Return a knob and its value as names say them: "last 0"; a word that says enough alone (`MethodFacts.bare`): "topk", and
    of a switch its name: "no block rope"."""
    if name in method_facts(method).bare and isinstance(value, bool):
        return f"{'' if value else 'no '}{name.replace('_', ' ')}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if name in method_facts(method).bare and isinstance(value, str) else f"{name.split('_')[0]} {text}"


def knob_names(method: str, knobs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what names say of recorded knobs: ("topk", "last 0"); nothing where all are at their defaults."""
    released = (RELEASED.replace("_", " "),) if knobs.get(RELEASED) else ()
    return (*released, *(text for name in usual_knobs(method) if (text := knob_name(method, knobs, name))))


def with_texts(method: str, texts: Sequence[str]) -> str:
    """Return a method with what tells its rows apart: "seer (topk, last 0)", or "seer" where nothing does."""
    return f"{method} ({', '.join(texts)})" if texts else method
