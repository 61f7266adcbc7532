"""The attention mass that methods keep, by layer: the rows of kept_mass.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.report.csv_file import write_csv
from harness.report.density_match import judge_densities
from harness.report.leaderboard import mass_row
from harness.report.row_texts import knobs_text
from harness.report.rows import Row
from harness.report.study_records import read_study
from harness.study.identity import digest
from harness.study.store import Record, Store

PROMPTS = ("seed", "tasks", "text", "chat", "versions", "sizing")
"""What of a record's identity says which prompts it is of."""
COLUMNS = (
    "study",
    "model",
    "method",
    "knob",
    "sparsity",
    "length",
    "block_size",
    "layer",
    "kept_mass",
    "lowest_head",
    "lowest_kept_mass",
    "density",
    "match",
    "prompts",
    "dtype",
    "device",
    "torch",
    "commit",
    "seed",
    "command",
    "date",
)
"""Of kept_mass.csv: `kept_mass` is the mean (see `schema.MassRecord`) over a layer's query heads and `prompts`, `lowest_head`
the head that keeps the least, `density` that of the layer; `match`
whether the arm's is the one asked for (`harness.report.density_match`)."""


@dataclass(frozen=True)
class LayerMass:
    """What one layer keeps: the mass of each query head, the mean over prompts, and the layer's density."""

    layer: int
    heads: Sequence[float]
    density: float

    @property
    def mean(self) -> float:
        """Return the mean over the query heads."""
        return fmean(self.heads)


@dataclass(frozen=True)
class MassRow:
    """The mass that one arm keeps: its row, its layers and the number of prompts. seen: equal for rows of a length that are of
    the same prompts."""

    row: Row
    layers: Sequence[LayerMass]
    prompts: int
    seen: str = ""

    @property
    def mean(self) -> float:
        """Return the mean over layers and heads."""
        return fmean(layer.mean for layer in self.layers)


def mass_rows(store: Store) -> list[MassRow]:
    """Return what every arm keeps, by model, length, method and sparsity, native knobs last. Raises RecordError for corrupt
    records."""
    if not store.mass.exists():
        return []
    records = read_study(store)
    rows = []
    for record in records.masses.values():
        parts = zip(record["layers"], record["kept"], record["density"], strict=True)
        layers = [LayerMass(layer, heads, density) for layer, heads, density in parts]
        rows.append(MassRow(mass_row(record, records), layers, record["prompts"], _seen(record)))
    judged = judge_densities([mass.row for mass in rows])
    return sorted((replace(mass, row=row) for mass, row in zip(rows, judged, strict=True)), key=_order)


def _seen(record: Record) -> str:
    """Return what is equal for records of the same prompts: where those come from, their number and their mean length."""
    named = {name: record["identity"].get(name) for name in PROMPTS}
    return digest(named | {"prompts": record["prompts"], "tokens": record["tokens"]})


def _order(mass: MassRow) -> tuple[Any, ...]:
    row = mass.row
    return row.model, row.length, row.method, row.sparsity is None, row.sparsity or 0, knobs_text(row.knobs)


def write_masses(path: Path, rows: Sequence[MassRow]) -> Path:
    """Write kept_mass.csv, a line per arm and layer. Raises UserError where it can't be written."""
    lines = [_layer_columns(row, layer) for row in rows for layer in row.layers]
    return write_csv(path, COLUMNS, ([line[name] for name in COLUMNS] for line in lines))


def _layer_columns(mass: MassRow, layer: LayerMass) -> dict[str, Any]:
    lowest = min(range(len(layer.heads)), key=layer.heads.__getitem__)
    return {
        **vars(mass.row),
        **vars(mass.row.origin),
        "knob": knobs_text(mass.row.knobs),
        "prompts": mass.prompts,
        "layer": layer.layer,
        "kept_mass": layer.mean,
        "lowest_head": lowest,
        "lowest_kept_mass": layer.heads[lowest],
        "density": layer.density,
    }
