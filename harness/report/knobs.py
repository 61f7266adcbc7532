"""The `knob` column of a row: "name=value;…"."""

from __future__ import annotations


def pairs(text: str | None) -> dict[str, str]:
    """The knobs and their values, as text; {} of a row without any."""
    items = (item.partition("=") for item in (text or "").split(";") if item)
    return {name: value for name, _, value in items}


def is_number(value: str) -> bool:
    """Whether a value is a number, or empty."""
    try:
        float(value or 0)
    except ValueError:
        return False
    return True
