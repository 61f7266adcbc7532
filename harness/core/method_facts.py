"""What the harness must know of a method by name alone: reports read it for every row, and import no method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    job=kernel_speed, which has no prompts to search on; none where the defaults do. searched: what is searched for a
    sparsity where no formula gives it, of which rows hold one. instead: knobs that a sparsity takes the place of: where it is
    given, rows hold what was made of it. recorded_as: by knob, words that rows hold in place of what was asked for, with that.
    bare: knobs whose words say enough without the knob's name. full_rows: of a method that may keep its last query blocks in
    full (its knob `last`), the unit of `last`, "blocks" or "queries", and own_blocks: whether half of the budget pays the other
    rows' own blocks beside them. look: colour and marker of the method in every picture (`harness.report.figures.looks`).
    released: knobs whose release has another value than this file, with that: rows that ran as released need not name it.
    """

    bound: bool = False
    added_knobs: Mapping[str, Any] = field(default_factory=dict)
    formula: Mapping[str, Any] = field(default_factory=dict)
    searched: Sequence[str] = ()
    instead: Sequence[str] = ()
    recorded_as: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    bare: Sequence[str] = ()
    full_rows: Mapping[str, Any] = field(default_factory=dict)
    look: Mapping[str, str] = field(default_factory=dict)
    released: Mapping[str, Any] = field(default_factory=dict)


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


@lru_cache
def decoding_is_bound(name: str | None) -> bool:
    """Return whether a method of decoding is the bound that others are held to (the entry `about` of conf/decode/NAME.yaml);
    False for full attention (None) and for a method of another version."""
    return name in groups().get("decode", []) and bool(about_of("decode", str(name)).get("bound"))
