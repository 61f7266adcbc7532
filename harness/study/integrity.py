"""Whether the files of a study belong together: every line is of a process, every sample of a cell, nothing finished is lost.

A file that was deleted, emptied or cut leaves lines behind that name what it held. A leaderboard made without it would be of
less than was measured, and look like any other.
"""

from __future__ import annotations

from collections import Counter

from harness.study import verdict
from harness.study.columns import PERPLEXITY
from harness.study.lines import shown
from harness.study.pruning import check_finished
from harness.study.record_io import RecordError
from harness.study.schema import Status
from harness.study.store import Store, StudyFile

RESTORED = "restore that file (a backup, git checkout)"
UNTRACED = ("checks", "calibrations", "gate_steps", "finetune_steps")
"""Kinds whose process no row needs: their lines may have been brought over from another study."""


def check_study(store: Store) -> None:
    """Read all records of a study. Raises RecordError where one is corrupt, where no leaderboard can be made of them, or where
    something that was finished is lost."""
    check_records(store)
    if problem := lost(store):
        raise RecordError(problem)


def check_records(store: Store) -> None:
    """Read all records of a study. Raises RecordError where one is corrupt, or of a process that isn't recorded, which can't be
    measured again, or where a process died as it took records out."""
    check_finished(store)
    records = [(file, file.read()) for file in store.files() if file is not store.runs]
    runs = {run["run"] for run in store.runs.read()}  # read last: a process is recorded before anything that it measures
    for file, lines in records:
        if file.kind in UNTRACED:
            continue
        for position, record in enumerate(lines):
            if record["run"] not in runs:
                raise RecordError(
                    f"{file.place(position)}: run {shown(record['run'])} is not in {store.runs.path}: {RESTORED}, mend the "
                    f"line, or move {store.runs.path.parent} aside and measure again"
                )


def lost(store: Store) -> str:
    """Return what was recorded once and is gone, in one line; "" where nothing is. What measured it brings it back."""
    cells, counts = store.cells.read(), Counter[str]()  # before their samples: a cell is finished after those
    samples = [(file, file.read()) for file in (store.samples, store.perplexity)]
    known = {cell["cell"] for cell in store.cells.read()}  # and after them: a cell is begun before those
    for file, lines in samples:
        for position, record in enumerate(lines):
            if record["cell"] not in known:
                return _line(store, file, position, f"cell {shown(record['cell'])} is not in {store.cells.path}")
            counts[record["cell"]] += 1
    checked = {verdict.arm_as_run(record) for record in store.checks.read()}
    finished = {cell["cell"]: position for position, cell in enumerate(cells) if cell["status"] != Status.RUNNING}
    for position in finished.values():
        cell = cells[position]
        if cell["status"] == Status.FAILED:
            continue
        file = store.perplexity if cell["identity"]["task"] == PERPLEXITY else store.samples
        count, least = counts[cell["cell"]], cell.get("summary", {}).get("samples", 1)
        if count < least:
            return _line(
                store,
                store.cells,
                position,
                f"cell {shown(cell['cell'])} had {least} or more lines in {file.path}, which holds {count}",
            )
        if cell["reason"].startswith(verdict.SELF_CHECK) and verdict.arm_as_run(cell) not in checked:
            return _line(store, store.cells, position, f"the self-check that gated this cell is not in {store.checks.path}")
    return ""


def left_out(store: Store) -> list[str]:
    """Return what the last reading of all records went without although a report can be made, in a line each."""
    lines = [
        f"{file.unfinished}: left out: an unfinished last line, as a kill leaves it; "
        "the command that measured it brings it back"
        for file in store.files()
        if file.unfinished
    ]
    checks = {record["check"] for record in store.checks.read()}
    positions = {cell["cell"]: (position, cell) for position, cell in enumerate(store.cells.read())}
    missing = [position for position, cell in positions.values() if cell.get("summary", {}).get("check") not in (None, *checks)]
    if missing:
        problem = (
            f"the self-check of this cell is not in {store.checks.path} ({len(missing)} of {len(positions)} cells): "
            "its row is shown as it was recorded, although a later check may have held it back"
        )
        lines.append(_line(store, store.cells, missing[0], problem))
    return lines


def _line(store: Store, file: StudyFile, position: int, problem: str) -> str:
    """Return a problem with where it shows and what helps."""
    run = file.read()[position]["run"]
    commands = (shown(record["command"], 1000)[1:-1] for record in store.runs.read() if record["run"] == run)
    again = next((f", or measure again: {command}" for command in commands), "")
    return f"{file.place(position)}: {problem}: {RESTORED}{again}"
