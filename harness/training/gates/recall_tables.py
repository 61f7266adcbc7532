"""The recall of gates on held-out text, as tables and a picture in a study's folder: by layer, and by layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from harness.core.files import write_atomically
from harness.report.figures.gates import draw_head_recall
from harness.training.gates.recall import Recall

BY_HEAD = ("heads", "heads_kept")
SHOWN = 0.1
"""The density of the picture; the nearest that was measured."""


def title(model: str, suffix: str) -> str:
    """Return the title of the picture for a model and what its file's name ends in: block size, and name of the training."""
    return f"{model}, gates {suffix}: best blocks that the gates find at density {SHOWN:g}"


def by_layer(recall: Sequence[Recall]) -> pd.DataFrame:
    """Return a row a layer and density."""
    return pd.DataFrame([{name: value for name, value in row.items() if name not in BY_HEAD} for row in recall])


def by_head(recall: Sequence[Recall]) -> pd.DataFrame:
    """Return a row a layer, density and head of the gate: its recall, what chance reaches, its share of the oracle's mass."""
    return pd.DataFrame(
        [
            {
                "layer": row["layer"],
                "density": row["density"],
                "head": head,
                "recall": head_recall,
                "chance": row["chance"],
                "kept_ratio": kept_ratio,
                "tokens": row["tokens"],
                "sequences": row["sequences"],
            }
            for row in recall
            for head, (head_recall, kept_ratio) in enumerate(zip(row["heads"], row["heads_kept"], strict=True))
        ]
    )


def write(recall: Sequence[Recall], folder: Path, suffix: str, title: str) -> list[Path]:
    """Write gate_recall_SUFFIX.csv and, where there are rows, gate_recall_heads_SUFFIX.csv and .png; return the paths."""
    paths = [write_table(folder / f"gate_recall_{suffix}.csv", by_layer(recall))]
    if recall:
        heads = by_head(recall)
        paths.append(write_table(folder / f"gate_recall_heads_{suffix}.csv", heads))
        density = min(heads["density"].unique(), key=lambda density: abs(density - SHOWN))
        shown = heads[heads["density"] == density]
        paths.append(draw_head_recall(shown, title, folder / f"gate_recall_heads_{suffix}.png"))
    return paths


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV, whole or not at all; return `path`. Raises UserError where it can't be written."""
    text = table.to_csv(index=False)
    return write_atomically(path, lambda file: file.write(text.encode()))


def show(recall: Sequence[Recall], console: Console) -> None:
    """Print the means over layers."""
    if recall:
        shown = by_layer(recall).groupby("density")[["recall", "chance", "kept_mass", "oracle_mass", "kept_ratio"]].mean()
        console.print(Text(shown.round(3).to_string()))
