"""What the harness must know of a method by name alone: reports read it for every row, and import no method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from harness.core.conf_files import ABOUT, about_of, conf_file, groups
from harness.core.errors import UserError


@dataclass(frozen=True)
class MethodFacts:
    """The entry `about` of conf/method/NAME.yaml.

    bound: whether the method is the bound of what blocks can keep, which others are measured against: with fewer of them its
    accuracy can only fall. added_knobs: knobs that are newer than recorded rows, with the values that those rows stand for:
    arms leave them out there, so that what was recorded counts. formula: knobs with which a formula gives the sparsity, for
    job=kernel_speed, which has no prompts to search on; none where the defaults do.
    """

    bound: bool = False
    added_knobs: Mapping[str, Any] = field(default_factory=dict)
    formula: Mapping[str, Any] = field(default_factory=dict)


@lru_cache
def method_facts(name: str) -> MethodFacts:
    """Return the facts of a method, the defaults where its file states none or there is no such file: recorded rows may be of a
    method of another version. Raises UserError for facts that are not known."""
    if name not in groups().get("method", []):  # never a path made of it: a record may call a method anything
        return MethodFacts()
    path, about = conf_file("method", name), about_of("method", name)
    try:
        return MethodFacts(**about)
    except TypeError:
        known = ", ".join(MethodFacts.__dataclass_fields__)
        raise UserError(f"{path}: {ABOUT} holds {', '.join(about)}; it may hold: {known}") from None
