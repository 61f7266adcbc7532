"""Rows of perplexity that may stand in one picture: on the same documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harness.report.density_match import judge_densities
from harness.report.perplexity_rows import perplexity_of
from harness.report.prompt_sets import Prompts, prompt_sets, titles
from harness.report.rows import Row
from harness.report.study_records import mean_of_all


def on_common_documents(rows: Sequence[Row]) -> list[Row]:
    """Return rows of perplexity, those of a model, device, text and length brought to sets of documents that arms have in
    common (`prompt_sets`): numbers and verdicts are of those alone. In the first of several sets `prompt_set` is empty, in the
    others it says how many documents they have."""
    panels: dict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        panels[row.model, row.device, row.haystack, row.length].append(row)
    return [row for members in panels.values() for row in _on_sets(members)]


def _on_sets(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one length on each of their sets of documents."""
    arms = {str(place): row for place, row in enumerate(rows)}
    seen: dict[str, Prompts] = {arm: frozenset(("", index) for index in row.documents) for arm, row in arms.items()}
    sparse = {arm: documents for arm, documents in seen.items() if not arms[arm].is_baseline}
    sets = prompt_sets(sparse, {arm: documents for arm, documents in seen.items() if arm not in sparse})
    placed = []
    for documents, title in zip(sets, titles(sets, "document"), strict=True):
        indices = {index for _, index in documents.prompts}
        placed += judge_densities([replace(_on(arms[arm], indices), prompt_set=title) for arm in documents.arms])
    return placed


def _on(row: Row, indices: set[int]) -> Row:
    """Return a row as it is on these of its documents; compared with nothing, unless that is all of them."""
    if row.documents.keys() == indices:
        return row
    documents = [document for index, document in row.documents.items() if index in indices]
    dense = row.block_size is None
    return replace(
        row,
        samples=len(documents),
        perplexity=perplexity_of(documents, [], row.seed),
        density=row.density if dense else mean_of_all([document["density"] for document in documents]),
        token_density=row.token_density if dense else mean_of_all([document["token_density"] for document in documents]),
    )
