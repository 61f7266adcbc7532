"""How every method looks in every picture: colour, marker and dash as plain data, which any plotting library can take.

Bright colours are methods, black and greys are what methods are compared with (dense attention, the bound, random blocks), and
muted colours are anything else. A method's look stands in its own file, conf/method/NAME.yaml or conf/decode/NAME.yaml, under
`about`. No two that have the same marker are alike in colour, for readers with any kind of colour vision
(tests/harness/report/test_looks.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from harness.core.conf_files import about_of, conf_file, groups
from harness.core.errors import UserError
from harness.core.method_facts import decoding_is_bound, method_facts

INK, GREY = "#222222", "#6b6b6b"
"""Colours of text, and of small print and axes."""
PAPER, NIGHT = "#ffffff", "#111111"
"""Backgrounds of pictures, light and dark."""


class Look(NamedTuple):
    """Colour (#rrggbb, for a white background) and marker (one of MARKERS) of a method."""

    colour: str
    marker: str


Dash = str | tuple[int, tuple[float, ...]]
"""A line's style, as matplotlib takes it."""


class LineLook(NamedTuple):
    """Colour, marker and dash of a line, and which part of its markers has the full colour (one of FILLS)."""

    colour: str
    marker: str
    dash: Dash
    fill: str = "full"


MARKERS: Mapping[str, str] = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
    "X": "x",
    "*": "star",
    "p": "pentagon",
    "d": "diamond-tall",
    "h": "hexagon2",
}
"""Markers in the letters of matplotlib, and the names that plotly has for them. All can be filled: hollow has a meaning."""
COLOUR = re.compile(r"#[0-9A-Fa-f]{6}")
"""How a colour is written."""
FREE = tuple(
    Look(colour, marker)
    for marker in ("p", "h")
    for colour in (
        *("#0072B2", "#D55E00", "#08A65C", "#AA49D1", "#B88C00", "#006BFF", "#CA0D90", "#009CB4"),
        *("#788400", "#4700AD", "#975C00", "#E160C4", "#005A43", "#A90039", "#2B93FA", "#6E2500"),
    )
)
"""Looks of methods whose files state none; no file of this project states one of these markers."""
SERIES = (
    Look("#2A4E7F", "o"),
    Look("#C08190", "s"),
    Look("#34776D", "^"),
    Look("#6F6AA5", "D"),
    Look("#7F9556", "v"),
    Look("#6E3E50", "P"),
    Look("#7297C4", "X"),
    Look("#454E01", "d"),
)
"""Looks of what is no method: kernels, trainings, kinds of prompts. Muted, so that nobody takes a kernel for a method."""

SOLID: Dash = "-"
DASHES: tuple[Dash, ...] = (SOLID, (0, (4, 1.5, 1, 1.5)), (0, (4, 1.5, 1, 1.5, 1, 1.5)), (0, (9, 1.5, 1, 1.5)))
"""Dashes of a method's lines, by its settings: none is of dots alone, as the bound's is, or of strokes alone, as dense's."""
FILLS = ("full", "left", "right", "bottom")
"""Parts of a marker, in matplotlib's words, by which single points of the lines of one method are told apart."""
DENSE_DASH: Dash = (0, (5, 3))
"""The dash of dense attention, everywhere."""
BOUND_DASH: Dash = (0, (1, 1.5))
"""The dash of what no usable method reaches, everywhere: the bound of methods, and a prefill without attention."""
PLOTLY_DASHES: Mapping[Dash, str] = {
    **dict(zip(DASHES, ("solid", "8px,3px,2px,3px", "8px,3px,2px,3px,2px,3px", "18px,3px,2px,3px"), strict=True)),
    DENSE_DASH: "dash",
    BOUND_DASH: "dot",
}
"""The same dashes in plotly's words."""

OFF_DENSITY_SIGN = "Hollow: not at the density asked for, on no line"
GATED_SIGN = "Crossed out: held back by a check"
NATIVE_SIGN = "Ringed: at the method's own defaults"
BOUND_SIGN = "Dotted: the bound, which sees what no usable method can"
DENSE_SIGN = "Dashed: dense attention"
FRONT_SIGN = "Grey steps: the front of what is usable, as measured"
"""What signs mean, in the same words below every picture that has them."""


def method_look(name: str) -> Look:
    """Return colour and marker of a method of prefill or of decoding, the same in every picture. Raises UserError where the
    method's file states a look that is none."""
    return _stated().get(name) or _free_look(name, ())


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """Return colour and marker of every name as `method_look` does; of names that no file states a look for, such as methods of
    another version, no two alike in one picture."""
    stated, every = _stated(), sorted(set(names))
    looks = {name: stated[name] for name in every if name in stated}
    in_use = [look for look in looks.values() if look in FREE]
    for name in every:
        if name not in looks:
            looks[name] = _free_look(name, in_use)
            in_use.append(looks[name])
    return looks


def series_looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the looks of names that are no methods, in the order of the names: muted colours."""
    ordered = list(dict.fromkeys(names))
    return {
        name: Look(SERIES[i % len(SERIES)].colour, SERIES[(i + i // len(SERIES)) % len(SERIES)].marker)
        for i, name in enumerate(ordered)
    }


def is_bound(name: str) -> bool:
    """Return whether a method of prefill or of decoding is a bound, which is drawn and never ranked."""
    return method_facts(name).bound or decoding_is_bound(name)


def line_look(look: Look, number: int = 0, *, bound: bool = False) -> LineLook:
    """Return how the line `number` (from 0) of a method is drawn: all in its colour and with its marker, the later ones with
    another dash and their markers filled in part; those of a bound are dotted."""
    dash = BOUND_DASH if bound else DASHES[number % len(DASHES)]
    return LineLook(*look, dash, FILLS[(number + number // len(DASHES)) % len(FILLS)])


def line_looks(methods: Mapping[str, str], *, bounds: Collection[str] = (), dense: Collection[str] = ()) -> dict[str, LineLook]:
    """Return how every line of a picture is drawn. methods: by the name of a line, whose colour it has; of one method's lines
    the first one is solid. bounds, dense: names of the lines of bounds, and of dense attention."""
    looks, drawn, line_looks = looks_of(methods.values()), Counter[str](), {}
    for name, method in methods.items():
        line_looks[name] = line_look(looks[method], drawn[method], bound=name in bounds)
        if name in dense:
            line_looks[name] = LineLook(INK, "o", DENSE_DASH)
        drawn[method] += 1
    return line_looks


def looks_of_one_method(names: Sequence[str]) -> dict[str, LineLook]:
    """Return how lines are drawn in a picture that has no other method: each in a muted colour and with a marker of its own."""
    looks = series_looks(names)
    return {
        name: LineLook(*look, DASHES[place // len(SERIES) % len(DASHES)]) for place, (name, look) in enumerate(looks.items())
    }


def text_colour(colour: str, background: str = PAPER) -> str:
    """Return a colour in which text is readable on a background (contrast 4.5, WCAG AA): itself, or another shade of it."""
    return _apart_from(colour, background, 4.5)


def line_colour(colour: str, background: str = NIGHT) -> str:
    """Return a colour in which lines and markers are seen on a background (contrast 3, WCAG AA): itself, or another shade."""
    return _apart_from(colour, background, 3.0)


def _apart_from(colour: str, background: str, least: float) -> str:
    towards = INK if _luminance(background) > 0.2 else PAPER
    shades = (mixed(colour, towards, step / 20) for step in range(21))
    return next((shade for shade in shades if contrast(shade, background) >= least), towards)


def mixed(colour: str, other: str, share: float) -> str:
    """Return the mix of two colours with a share (0 to 1) of the other."""
    pairs = zip(_channels(colour), _channels(other), strict=True)
    return "#" + "".join(f"{round(255 * (a + share * (b - a))):02X}" for a, b in pairs) if share else colour


def contrast(colour: str, background: str) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2.2)."""
    high, low = sorted((_luminance(colour), _luminance(background)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


@lru_cache(maxsize=1)
def _stated() -> Mapping[str, Look]:
    """Return the looks of all methods that have a file: what it states, or else one of FREE."""
    names = {name: group for group in ("decode", "method") for name in groups().get(group, [])}
    looks = {name: look for name, group in names.items() if (look := _look_in_file(group, name)) is not None}
    for name in sorted(set(names) - set(looks)):
        looks[name] = _free_look(name, looks.values())
    return looks


def _look_in_file(group: str, name: str) -> Look | None:
    """Return the look that a method's file states, None where it states none."""
    entry: Any = about_of(group, name).get("look")
    if entry is None:
        return None
    if not isinstance(entry, dict) or set(entry) != set(Look._fields):
        raise UserError(f"{conf_file(group, name)}: about.look={entry}: it holds colour and marker, as the other files do")
    look = Look(str(entry["colour"]), str(entry["marker"]))
    if not COLOUR.fullmatch(look.colour):
        raise UserError(f'{conf_file(group, name)}: about.look.colour={look.colour}: write it as "#0072B2"')
    if look.marker not in MARKERS:
        raise UserError(f"{conf_file(group, name)}: about.look.marker={look.marker}: one of {' '.join(MARKERS)}")
    return look


def _free_look(name: str, others: Iterable[Look]) -> Look:
    """Return the look of a name that no file states one for: where its hash points, or the next one whose colour no other has,
    or that no other is."""
    start = int.from_bytes(sha256(name.encode("utf-8", "surrogatepass")).digest()[:4]) % len(FREE)
    in_use = set(others)
    colours = {look.colour for look in in_use}
    turned = [*FREE[start:], *FREE[:start]]
    free = [look for look in turned if look not in in_use]
    return next((look for look in free if look.colour not in colours), free[0] if free else turned[0])
