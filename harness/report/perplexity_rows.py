"""The leaderboard's rows of perplexity: one for each arm, length and text, accuracy left empty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from harness.report.rows import Perplexity, PerplexityComparison, Row
from harness.report.study_records import StudyRecords, cell_row, is_perplexity, mean_of_all, with_times
from harness.stats import bootstrap, scores
from harness.study import verdict
from harness.study.command_settings import document_settings
from harness.study.full_rows import full_rows
from harness.study.schema import Status
from harness.study.store import Record


def perplexity_rows(records: StudyRecords) -> list[Row]:
    """Return a row for every cell of perplexity of a study."""
    return [_row(cell, records) for cell in records.cells.values() if is_perplexity(cell)]


def _row(cell: Record, records: StudyRecords) -> Row:
    documents = records.documents_of(cell)
    row = cell_row(cell, records, documents)
    row = replace(
        row,
        settings=(*row.settings, *document_settings(cell["identity"], len(documents))),
        documents={document["index"]: document for document in documents},
    )
    if cell["identity"]["kernel"] is not None and documents:
        row = replace(
            row,
            full_rows=full_rows(cell["identity"], _windows(documents, cell["identity"]["length"])),
            density=mean_of_all([document["density"] for document in documents]),
            token_density=mean_of_all([document["token_density"] for document in documents]),
        )
    if documents and cell["status"] != Status.FAILED:
        dense = records.dense_of(cell)
        row = _with_perplexity(row, documents, [] if dense is None else records.documents_of(dense))
    return with_times(row, records.timings.get((row.arm, row.device)))


def _windows(documents: Sequence[Record], length: int) -> set[int]:
    """Return the tokens of the windows that documents were read in: whole ones, and what was left for the last."""
    reads = [document["read"] for document in documents]
    return {length for read in reads if read >= length} | {read % length for read in reads if read % length}


def _with_perplexity(row: Row, documents: Sequence[Record], dense: Sequence[Record]) -> Row:
    """Return a row with the perplexity of its documents and the comparison on those that dense attention has too, or gated
    without numbers where a document is."""
    gated = [document for document in documents if document["status"] == Status.GATED]
    if gated:
        reason = f"{len(gated)} of {len(documents)} documents: {gated[0]['reason']}"
        return replace(row, status=Status.GATED, reason=reason)
    perplexity = perplexity_of(documents, dense, row.seed)
    compared = perplexity.comparison
    if compared is not None and compared.perplexity_ratio < 1 and compared.p_value < verdict.SUSPICIOUS:
        reason = f"below dense by more than noise (p={compared.p_value:.2g}): suspected bug"
        row = replace(row, status=Status.GATED, reason=reason)
    return replace(row, perplexity=perplexity)


def perplexity_of(documents: Sequence[Record], dense: Sequence[Record], seed: int) -> Perplexity:
    """Return the perplexity over all tokens of documents and, on those that dense attention has too, the comparison in pairs.
    seed: of the bootstrap and of the sign flips."""
    tokens, losses = [d["tokens"] for d in documents], [d["nll"] for d in documents]
    mean_loss = math.fsum(losses) / sum(tokens)
    low, high = bootstrap.perplexity_bounds(bootstrap.ratio_interval(losses, tokens, seed=seed))
    dense_losses = {d["index"]: d["nll"] for d in dense if d["nll"] is not None}
    pairs = [(d["tokens"], d["nll"], dense_losses[d["index"]]) for d in documents if d["index"] in dense_losses]
    return Perplexity(
        nll=mean_loss,
        perplexity=bootstrap.perplexity(mean_loss),
        perplexity_low=low,
        perplexity_high=high,
        tokens_s=statistics.median(d["read"] / d["seconds"] for d in documents),
        comparison=_compare(pairs, seed) if pairs else None,
    )


def _compare(pairs: Sequence[tuple[int, float, float]], seed: int) -> PerplexityComparison:
    """Compare with dense attention, from (tokens, loss, dense loss) of each document, losses summed over its tokens."""
    tokens, differences = [count for count, _, _ in pairs], [loss - dense for _, loss, dense in pairs]
    low, high = bootstrap.perplexity_bounds(bootstrap.ratio_interval(differences, tokens, seed=seed))
    return PerplexityComparison(
        dense_perplexity=bootstrap.perplexity(math.fsum(dense for _, _, dense in pairs) / sum(tokens)),
        perplexity_ratio=bootstrap.perplexity(math.fsum(differences) / sum(tokens)),
        perplexity_ratio_low=low,
        perplexity_ratio_high=high,
        p_value=scores.sign_flip_p(differences, seed=seed),
    )
