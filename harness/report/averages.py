"""Average rows: the mean of an arm over its tasks, each weighing the same."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harness.report.rows import Row
from harness.report.study_records import StudyRecords, arm_row, mean_known, mean_of_all, noticed, origin_of, with_times
from harness.stats.scores import average_interval
from harness.study import verdict
from harness.study.columns import AVERAGE
from harness.study.command_settings import sample_settings
from harness.study.full_rows import joined
from harness.study.schema import Status
from harness.study.store import Record


def average_row(group: str, members: Sequence[tuple[Record, Row]], records: StudyRecords) -> Row:
    """Return the average over the cells of an arm and their rows. It has no accuracy, and says why, where a task has none or
    comes twice: a mean over fewer tasks than the others have would not be comparable."""
    cells, rows = [cell for cell, _ in members], [row for _, row in members]
    runs = [records.runs[run] for cell in cells for run in {cell["run"], *(s["run"] for s in records.samples_of(cell))}]
    row = arm_row(cells[0], records.study, origin_of(runs, date=max(row.origin.date for row in rows)))
    row = replace(
        row,
        settings=(*row.settings, *_sample_settings(cells, rows)),
        group=group,
        task=AVERAGE,
        tasks=len(rows),
        question=rows[0].question,
        haystack="+".join(sorted({row.haystack for row in rows})),
        samples=sum(row.samples or 0 for row in rows),
        truncated=sum(row.truncated or 0 for row in rows),
        decode=rows[0].decode,
        dense_kernel=rows[0].dense_kernel,
        kernels=tuple(sorted({kernel for row in rows for kernel in row.kernels})),
        density=mean_known(row.density for row in rows),
        token_density=mean_of_all([row.token_density for row in rows]),
        decode_density=mean_known(row.decode_density for row in rows),
        full_rows=joined(row.full_rows for row in rows),
    )
    row = with_times(row, records.timings.get((row.arm, row.device)))
    if repeated := sorted(task for task, count in Counter(row.task for row in rows).items() if count > 1):
        reason = f"{', '.join(repeated)} from several versions of a file: one to a study"
        return replace(row, status=Status.FAILED, reason=reason)
    if failed := sorted(row.task for row in rows if row.score is None):
        return replace(row, status=Status.FAILED, reason=f"no accuracy for {', '.join(failed)}")
    score = replace(mean_score(rows), comparison=_comparison(cells, records, row.seed))
    status, reason = _verdict(rows, score)
    notices = noticed(*cells) if status == Status.OK else ""
    return replace(row, score=score, status=status, reason=f"{reason}; {notices}" if notices else reason)


def latest_prompts(members: Sequence[tuple[Record, Row]]) -> tuple[list[tuple[Record, Row]], list[Row]]:
    """Return the cells of an arm and their rows, without those of earlier versions of a task's prompts, and the rows of these:
    each is a row by itself, in no average, which says so."""
    latest: dict[str, int] = defaultdict(int)
    for _, row in members:
        latest[row.task] = max(latest[row.task], _number(row.generator))
    averaged = [(cell, row) for cell, row in members if _number(row.generator) == latest[row.task]]
    earlier = [row for _, row in members if _number(row.generator) < latest[row.task]]
    return averaged, [_by_itself(row) for row in earlier]


def _by_itself(row: Row) -> Row:
    """Return the row of an earlier version of a task's prompts, in a group of its own."""
    notice = f"an earlier version of its prompts ({row.generator}): in no average"
    return replace(row, group=f"{row.group}-{row.task}-{row.generator}", reason="; ".join(filter(None, [row.reason, notice])))


def _number(generator: str) -> int:
    """Return the number of a generator's version, the last part of its name."""
    number = generator.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _sample_settings(cells: Sequence[Record], rows: Sequence[Row]) -> list[str]:
    """Return the settings of all samples of an average, from its cells and their rows."""
    files = {name: digest for cell in cells for name, digest in cell["identity"].get("files", {}).items()}
    prose = next((cell["identity"] for cell in cells if "haystack" in cell["identity"]["data"]), cells[0]["identity"])
    return sample_settings(prose | {"files": files}, [row.task for row in rows], max(row.samples or 0 for row in rows))


def mean_score(rows: Sequence[Row]) -> verdict.Score:
    """Return the mean accuracy and its interval over rows of single tasks, each weighing the same. Raises ValueError for a row
    without accuracy."""
    scores = [row.scored for row in rows]
    means = [score.accuracy for score in scores]
    low, high = average_interval(means, [(score.accuracy_low, score.accuracy_high) for score in scores])
    return verdict.Score(statistics.fmean(means), low, high)


def _comparison(cells: Sequence[Record], records: StudyRecords, seed: int) -> verdict.Comparison | None:
    """Return the comparison with dense attention over all tasks; None where one has no samples in pairs."""
    method_scores, dense_scores = [], []
    for cell in cells:
        dense = records.dense_of(cell)
        if dense is None:
            return None
        scores = verdict.paired_scores(records.samples_of(cell), records.samples_of(dense))
        if not scores[0]:
            return None
        method_scores.append(scores[0])
        dense_scores.append(scores[1])
    return verdict.compare(method_scores, dense_scores, seed)


def _verdict(rows: Sequence[Row], score: verdict.Score) -> tuple[str, str]:
    """Return status and reason of an average: gated with its tasks, or by its own comparison with dense attention."""
    if gated := sorted(row.task for row in rows if row.status == Status.GATED):
        return Status.GATED, f"gated tasks: {', '.join(gated)}"
    status, reason = verdict.verdict([], score)
    return (status, reason) if status != Status.OK else (Status.OK, f"mean of {len(rows)} tasks")
