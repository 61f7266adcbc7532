"""Five kinds of pattern in block maps of attention, how much of each a map has, and the heads of a model that show them best.

SeerAttention's Fig 8 shows one gate map of each kind. A map is float64 [n, n], causal, its rows summing to 1. Mass is the
mean over the rows below the first eighth, which have too few keys to show a pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.input_files import read_json_object

SCHEMA = 1
"""The version of the file, raised when a field changes its meaning."""
LOCAL = 2
"""Diagonals from the main one on that are a row's own neighbourhood."""
FEW = 16
"""One column or diagonal of so many is a line of a pattern."""
FEWEST_BLOCKS = 16
"""Rows of a map at least in which patterns can be told apart."""
NUMBERS = re.compile(r"\[\s+([-+\d.e,\s]+?)\s+\]")
"""A list of numbers in a JSON text with line ends."""
DIGITS = 3
"""Digits of a value in the file."""
PLAIN: Mapping[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float)}
"""What a field of the file holds, by how it is annotated."""

Map = NDArray[np.float64]
"""A causal map [n, n], its rows summing to 1."""


@dataclass(frozen=True)
class Lines:
    """A map's mass on lines: on its first column, on its LOCAL diagonals, on each other column and on each other diagonal."""

    sink: float
    local: float
    columns: Map
    diagonals: Map


def lines_of(values: Map) -> Lines:
    """Return the mass of a map on each of its lines."""
    n = len(values)
    rows = range(n // 8, n)
    offsets = np.array([np.mean([values[i, i - o] if o <= i else 0.0 for i in rows]) for o in range(n)])
    beyond = np.tril(values, -LOCAL)[n // 8 :].mean(0)
    return Lines(float(values[n // 8 :, 0].mean()), float(offsets[:LOCAL].sum()), beyond[1:], offsets[LOCAL:])


def a_shape(values: Map) -> float:
    """Return how much of a map lies on its first column and its diagonal alike: twice the smaller of both."""
    lines = lines_of(values)
    return 2 * min(lines.sink, lines.local)


def vertical(values: Map) -> float:
    """Return how much of a map lies on its few largest columns, above what equal columns would have."""
    return _above_equal(lines_of(values).columns, len(values))


def slash(values: Map) -> float:
    """Return how much of a map lies on its few largest diagonals away from the main one, above what equal ones would have."""
    return _above_equal(lines_of(values).diagonals, len(values))


def diagonal_blocks(values: Map) -> float:
    """Return how much more of a map lies in squares along its diagonal than if each diagonal were the same all along."""
    n = len(values)
    place = np.arange(n)
    distance = place[:, None] - place[None]
    excess = []
    for size in {max(LOCAL + 1, n // parts) for parts in (16, 8, 4)}:
        own = (place[:, None] // size == place[None] // size) & (distance >= LOCAL)
        lines = np.array([np.mean(np.diagonal(values, -o)) for o in range(size)])
        level = np.where(own, lines[np.clip(distance, 0, size - 1)], 0.0)
        excess.append(float((np.where(own, values, 0.0) - level)[n // 8 :].sum(1).mean()))
    return max(excess)


def scattered(values: Map) -> float:
    """Return how much of a map is on no line, times how far its rows are from being flat."""
    n = len(values)
    lines = lines_of(values)
    rest = 1 - lines.sink - lines.local - _above_equal(lines.columns, n) - _above_equal(lines.diagonals, n)
    rows = values[n // 8 :]
    entropy = -(rows * np.log(np.where(rows > 0, rows, 1.0))).sum(1) / np.log(np.arange(n // 8, n) + 2)
    return max(0.0, rest) * float(1 - entropy.mean())


def _above_equal(masses: Map, n: int) -> float:
    few = max(1, n // FEW)
    return float(np.sort(masses)[-few:].sum() - few * masses.mean())


KINDS: Mapping[str, Callable[[Map], float]] = {
    "A-shape": a_shape,
    "vertical": vertical,
    "slash": slash,
    "diagonal blocks": diagonal_blocks,
    "scattered": scattered,
}
"""The kinds of pattern, in the paper's order, with how much of it a map has."""


@dataclass(frozen=True)
class HeadPattern:
    """The head that shows a kind best: its layer and number, how much of it its map has, and how many standard deviations
    of all heads that is above their mean; the map, rows of lists, each up to its diagonal."""

    kind: str
    layer: int
    head: int
    score: float
    deviations: float
    rows: list[list[float]]


@dataclass(frozen=True)
class PatternRecord:
    """The heads of one model on one prompt that show each kind best, with what measures it again. block: tokens of a row
    and of a column of their maps. maps: how many were looked at."""

    model: str
    method: str
    knobs: dict[str, Any]
    task: str
    length: int
    block: int
    seed: int
    dtype: str
    device: str
    commit: str
    command: str
    versions: dict[str, str]
    date: str
    maps: int
    patterns: list[HeadPattern]
    schema: int = SCHEMA


def best_heads(maps: Mapping[tuple[int, int], Map]) -> list[HeadPattern]:
    """Return a head for each kind, by layer and head: the one that stands out most among all, no head twice. Raises
    ValueError for fewer maps than kinds, or maps of fewer than FEWEST_BLOCKS rows."""
    heads = sorted(maps)
    smallest = min((len(values) for values in maps.values()), default=0)
    if len(heads) < len(KINDS) or smallest < FEWEST_BLOCKS:
        raise ValueError(
            f"{len(heads)} maps of {smallest} rows: {len(KINDS)} maps of {FEWEST_BLOCKS} rows are needed to tell patterns apart"
        )
    scores = {kind: np.array([measure(maps[head]) for head in heads]) for kind, measure in KINDS.items()}
    outstanding = {kind: (values - values.mean()) / (values.std() + 1e-12) for kind, values in scores.items()}
    chosen: dict[str, int] = {}
    while len(chosen) < len(KINDS):
        free = [
            (kind, place) for kind in KINDS if kind not in chosen for place in range(len(heads)) if place not in chosen.values()
        ]
        kind, place = max(free, key=lambda pair: (outstanding[pair[0]][pair[1]], -pair[1]))
        chosen[kind] = place
    return [
        HeadPattern(
            kind, *heads[place], float(scores[kind][place]), float(outstanding[kind][place]), _as_rows(maps[heads[place]])
        )
        for kind, place in ((kind, chosen[kind]) for kind in KINDS)
    ]


def _as_rows(values: Map) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row[: i + 1]] for i, row in enumerate(values)]


def as_map(pattern: HeadPattern) -> Map:
    """Return the map of a pattern [n, n], 0 above its diagonal."""
    values = np.zeros((len(pattern.rows),) * 2)
    for i, row in enumerate(pattern.rows):
        values[i, : i + 1] = row
    return values


def write_patterns(path: Path, record: PatternRecord) -> Path:
    """Write a record as JSON, each row of a map in one line. Raises UserError where it can't be written."""
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
    text = NUMBERS.sub(lambda match: f"[{' '.join(match.group(1).split())}]", text)
    return write_atomically(path, lambda file: file.write((text + "\n").encode()))


def read_patterns(path: Path) -> PatternRecord:
    """Read a record that `write_patterns` wrote. Raises UserError for a file that is none."""
    raw = read_json_object(path)
    try:
        if raw["schema"] != SCHEMA:
            raise ValueError(f"schema {raw['schema']}, not {SCHEMA}")
        record = PatternRecord(**(raw | {"patterns": [HeadPattern(**pattern) for pattern in raw["patterns"]]}))
        _check_fields(record)
        for pattern in record.patterns:
            _check_fields(pattern)
            _check(pattern)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no record of head patterns ({error}); make it again with job=maps job.patterns=true"
        ) from None
    return record


def _check_fields(part: PatternRecord | HeadPattern) -> None:
    """Raise ValueError for a text or a number that is none, or not finite: a picture would stumble on it."""
    for field in fields(part):
        value, plain = getattr(part, field.name), PLAIN.get(str(field.type))
        if plain is None:
            continue
        if not isinstance(value, plain) or isinstance(value, bool) or (isinstance(value, float) and not np.isfinite(value)):
            raise ValueError(f"{field.name}={value!r}: no {field.type}")


def _check(pattern: HeadPattern) -> None:
    """Raise ValueError for a pattern whose map is no causal map of finite numbers."""
    lengths: Sequence[int] = [len(row) for row in pattern.rows]
    if pattern.kind not in KINDS or lengths != list(range(1, len(lengths) + 1)) or not lengths:
        raise ValueError(f"{pattern.kind}: its map has rows of {sorted(set(lengths))[:4]} values")
    if not np.isfinite(as_map(pattern)).all():
        raise ValueError(f"{pattern.kind}: its map has values that are no numbers")
