"""leaderboard.csv: the columns of its rows, written whole from the records of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.report.csv_file import value_text, write_csv
from harness.report.leaderboard import leaderboard_rows
from harness.report.row_texts import decode_text, knobs_text
from harness.report.rows import Perplexity, Row, Times
from harness.report.significance import MARGIN
from harness.study.columns import COLUMNS
from harness.study.command_settings import as_command_line
from harness.study.store import Store


def write_leaderboard(store: Store, margin: float = MARGIN) -> tuple[Path, list[Row]]:
    """Rebuild `leaderboard.csv` of a study and return its path and rows; `margin` as in `leaderboard_rows`.

    Raises RecordError for corrupt records, UserError where the file can't be written.
    """
    rows = leaderboard_rows(store, margin)
    path = write_csv(store.folder / "leaderboard.csv", COLUMNS, (row_columns(row).values() for row in rows))
    return path, rows


def row_columns(row: Row) -> dict[str, Any]:
    """Return the value of every column of leaderboard.csv in its order, None where the row has none."""
    values = vars(row) | vars(row.origin) | _times(row.times) | _perplexity(row.perplexity)
    values |= row.score.as_dict() if row.score is not None else {}
    values |= {
        "knob": knobs_text(row.knobs),
        "decode": decode_text(row.decode),
        "kernel": "+".join(row.kernels),
        "settings": as_command_line(row.settings),
        "full_rows": None if row.full_rows is None else row.full_rows.text,
        "noninferior": None if row.noninferior is None else "yes" if row.noninferior else "no",
    }
    return {name: values.get(name) for name in COLUMNS}


def _times(times: Times | None) -> dict[str, Any]:
    """Return the columns of times; the density of the prompt that was timed is none of them."""
    if times is None:
        return {}
    measured = {name: value for name, value in vars(times).items() if name not in ("density", "decode")}
    derived = ("speedup", "pct_ideal", "ttft_speedup", "ttft_limit", "rest_ms")
    return measured | {name: getattr(times, name) for name in derived} | _decoding(times)


def _decoding(times: Times) -> dict[str, Any]:
    """Return the columns of decoding: each has a value for every batch."""
    return {
        "decode_tokens_s": _by_batch({batch: speed.tokens_s for batch, speed in times.decode.items()}),
        "dense_decode_tokens_s": _by_batch({batch: speed.dense_tokens_s for batch, speed in times.decode.items()}),
        "decode_speedup": _by_batch({batch: speed.speedup for batch, speed in times.decode.items()}),
        "decode_peak_mib": _by_batch({batch: speed.peak_mib for batch, speed in times.decode.items()}),
        "decode_failed": _by_batch(times.decode_failed),
        "decode_timing": _by_batch({batch: speed.timing for batch, speed in times.decode.items()}),
    }


def _by_batch(values: Mapping[int, float | str | None]) -> str:
    """Return "BATCH=value;…", nothing for values that are not known."""
    return ";".join(f"{batch}={value_text(value)}" for batch, value in values.items() if value is not None)


def _perplexity(perplexity: Perplexity | None) -> dict[str, Any]:
    """Return the columns of perplexity and of its comparison with dense attention."""
    if perplexity is None:
        return {"perplexity": None}
    return vars(perplexity) | (vars(perplexity.comparison) if perplexity.comparison is not None else {})
