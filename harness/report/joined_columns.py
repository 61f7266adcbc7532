"""The columns of the joined leaderboard: their order, types, units and meanings, from which docs/columns.md is made.

python -m harness.report.joined_columns > docs/columns.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

VERSION = 1
"""The version of the columns. A column that is added takes a place at the end of its section and leaves the version; one that
goes, is renamed, or means something else raises it."""

Type = Literal["text", "number", "whole number", "True or False"]


@dataclass(frozen=True)
class Column:
    """A column. meaning: one phrase. unit: of a number that has one. always: whether it has a value in every row."""

    name: str
    type: Type
    meaning: str
    unit: str = ""
    always: bool = False


def _text(name: str, meaning: str, *, always: bool = False) -> Column:
    return Column(name, "text", meaning, always=always)


def _number(name: str, meaning: str, unit: str = "") -> Column:
    return Column(name, "number", meaning, unit)


def _whole(name: str, meaning: str, *, unit: str = "", always: bool = False) -> Column:
    return Column(name, "whole number", meaning, unit, always)


def _truth(name: str, meaning: str) -> Column:
    return Column(name, "True or False", meaning, always=True)


SECTIONS: dict[str, tuple[Column, ...]] = {
    "What the row is": (
        _text("kind", "`average`, `times`, `mass` or `cell`", always=True),
        _truth("rankable", "may win: measured, `status` ok, no bound, not off its density"),
        _text("superseded_by", "study whose row of the same counts: more samples, or later"),
    ),
    "Who": (
        _text("model", "name of the model", always=True),
        _text("method", "name of the method", always=True),
        _text("knobs", "its native settings that have a value: `NAME=VALUE;NAME=VALUE`"),
        _truth("is_bound", "looks at what no usable method can: drawn, never ranked"),
        _truth("is_dense", "dense attention, at prefill and at decoding"),
        _text("decode", "how tokens after the first were made, and the kernels", always=True),
    ),
    "On what": (
        _text("benchmark", "`ruler`, `longbench`, `longbench_e` or `perplexity`"),
        _text("task", "name of the task; `avg` in averages"),
        _text("task_set", "of an average: the group that its tasks are, else their names joined by +"),
        _whole("length", "prompt and answer together", unit="tokens", always=True),
        _text("question", "`seen`, `after` or `reread`"),
        _whole("tasks", "how many an average averages, each weighing the same"),
        _whole("samples", "prompts of all tasks of the row; of perplexity documents"),
        _text("prompt_set", "equal where the prompts are: of two rows the first `samples` of the same"),
    ),
    "Accuracy": (
        _number("accuracy", "mean score, from 0 to 1"),
        _number("accuracy_low", "its 95 % interval, lower end"),
        _number("accuracy_high", "its 95 % interval, upper end"),
        _number("dense_accuracy", "dense attention on the same prompts"),
        _number("difference", "accuracy less dense attention's, in pairs"),
        _number("difference_low", "its 95 % interval, lower end"),
        _number("difference_high", "its 95 % interval, upper end"),
        _number("p_value", "that both are equally good; of this row alone"),
        _number("p_holm", "adjusted over the rows of its kind, model, length and study"),
        _text("noninferior", "`yes` where the loss is shown to be below the margin, else `no`"),
    ),
    "Perplexity": (
        _number("perplexity", "exponential of the mean loss"),
        _number("perplexity_low", "its 95 % interval, lower end"),
        _number("perplexity_high", "its 95 % interval, upper end"),
        _number("dense_perplexity", "dense attention on the same documents"),
        _number("perplexity_ratio", "perplexity ÷ dense attention's, in pairs"),
        _number("perplexity_ratio_low", "its 95 % interval, lower end"),
        _number("perplexity_ratio_high", "its 95 % interval, upper end"),
    ),
    "Density": (
        _number("requested_density", "1 − sparsity; empty where the knobs decide"),
        _number("density", "computed ÷ causal blocks at prefill, measured"),
        _text("match", "`matched` within 2 % of the request, `nearest` or `off_density`"),
        _number("effective_density", "to hold against a limit: `density` or, where matched, the request if that is less"),
        _number("token_density", "attended ÷ causal pairs of tokens, measured"),
        _number("decode_density", "kept ÷ all blocks of the cache while decoding, measured"),
        _number("kept_mass", "share of the true attention on kept blocks"),
        _text("full_rows", "last query blocks that were kept in full"),
    ),
    "Time and memory": (
        _number("total_ms", "attention of a layer with its selection", "ms"),
        _number("total_low", "10th percentile of that", "ms"),
        _number("total_high", "90th percentile of that", "ms"),
        _number("selection_ms", "choosing the blocks", "ms"),
        _number("attention_ms", "attending to them", "ms"),
        _number("dense_ms", "fastest dense kernel of the same rounds", "ms"),
        _number("speedup", "`dense_ms` ÷ `total_ms`"),
        _number("pct_ideal", "share of the speed-up that the density allows", "%"),
        _number("ttft_ms", "whole prefill: time to first token", "ms"),
        _number("ttft_low", "10th percentile of that", "ms"),
        _number("ttft_high", "90th percentile of that", "ms"),
        _number("dense_ttft_ms", "the same with dense attention", "ms"),
        _number("ttft_speedup", "`dense_ttft_ms` ÷ `ttft_ms`"),
        _number("peak_mib", "memory of a prefill, weights included", "MiB"),
        _whole("decode_batch", "the largest batch that was timed decoding", unit="sequences"),
        _number("decode_tokens_s", "of all its sequences together", "tokens a second"),
        _number("decode_speedup", "of that over dense attention, in turns"),
    ),
    "Where from": (
        _text("status", "`ok`, `gated` or `failed`", always=True),
        _text("reason", "why, and what to bear in mind"),
        _text("device", "its name", always=True),
        _text("dtype", "of weights and activations", always=True),
        _text("kernel", "of sparse attention, as it ran"),
        _text("dense_kernel", "the fastest dense one"),
        _whole("block_size", "of a block", unit="tokens"),
        _whole("seed", "of samples, and of methods that draw", always=True),
        _text("commit", "of this project"),
        _text("date", "day of the answers", always=True),
        _text("study", "folder that the row is from", always=True),
        _text("arm", "id of the method with all its settings", always=True),
        _text("group", "equal for an average and the cells that it averages, in a study"),
        _text("cell", "id of the cell"),
        _text("settings", "`python -m harness SETTINGS` measures the row again"),
        _whole("version", "of these columns", always=True),
    ),
}
"""The columns by what they say, in order."""

COLUMNS: dict[str, Column] = {column.name: column for section in SECTIONS.values() for column in section}
"""All columns by name, in the order of the file."""

BEFORE = f"""\
# Columns of the joined leaderboard

Version {VERSION} of the columns of `results/leaderboard.csv`. [The joined leaderboard](leaderboard.md) says how to make and
read it. This page is made from the code: `python -m harness.report.joined_columns > docs/columns.md`.

A cell of the file is empty where nothing was measured, or where the column does not apply. **Bold** columns are
never empty. Accuracies and densities are fractions from 0 to 1. Times are those of the arm: its cells repeat them.

## Kinds of rows

| `kind` | one row for each |
| --- | --- |
| `average` | arm, length and set of tasks: the mean over its tasks |
| `times` | arm that was timed, and has no accuracy |
| `mass` | arm of which only the attention that it keeps is known |
| `cell` | cell: one arm on one task |

To average `cell` and `average` rows together counts every answer twice: choose one kind.
"""
AFTER = """
## Versions

A new column takes a place at the end of its section, and the version stays. A column that goes, is renamed or
changes its meaning raises the version. The column `version` holds it in every row.

| version | date | what changed |
| --- | --- | --- |
| 1 | 2026-12-01 | the first |
"""


def document() -> str:
    """Return docs/columns.md."""
    return "\n".join([BEFORE, *_tables()]) + AFTER


def _tables() -> Iterator[str]:
    """Yield the lines of the tables, one a section."""
    for title, columns in SECTIONS.items():
        yield from (f"## {title}", "", "| column | type | unit | meaning |", "| --- | --- | --- | --- |")
        for column in columns:
            name = f"**`{column.name}`**" if column.always else f"`{column.name}`"
            yield f"| {name} | {column.type} | {column.unit} | {column.meaning} |"
        yield ""


if __name__ == "__main__":
    print(document().rstrip())
