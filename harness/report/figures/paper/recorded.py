"""The rows of all studies that the paper's items are drawn from, each study read once, and only for an item that needs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.core.errors import UserError
from harness.measure.head_patterns import PatternRecord, read_patterns
from harness.report.kernel_rows import KernelRow, kernel_rows
from harness.report.leaderboard import leaderboard_rows
from harness.report.rows import Row
from harness.study.columns import AVERAGE
from harness.study.schema import Status
from harness.study.store import Store

MOST_MODELS = 3
"""Models of an item at most that get a picture."""
Some = TypeVar("Some")
Key = TypeVar("Key", bound=tuple[str, ...])


@dataclass
class Recorded:
    """The studies of a folder. problems: a line on each of them that can't be read whole, and is left out."""

    stores: Sequence[Store]
    problems: list[str] = field(default_factory=list)
    _rows: dict[str, list[Row]] = field(default_factory=dict)
    _kernels: dict[str, list[KernelRow]] = field(default_factory=dict)

    def kernel_rows(self, phase: str) -> list[KernelRow]:
        """Return the cases that were timed in studies of kernels, of one phase ("prefill" or "decode")."""
        rows = [row for store in self.stores for row in self._of(store, self._kernels, kernel_rows, holds_kernels)]
        return [row for row in rows if row.phase == phase and row.status == Status.OK]

    def perplexity_rows(self) -> list[Row]:
        """Return the rows of studies that hold perplexities, which are those of every kind."""
        return self._rows_where(lambda store: store.perplexity.exists())

    def timed_rows(self) -> list[Row]:
        """Return the rows of studies that timed models: an average, or a row of times alone, of every arm with times."""
        rows = self._rows_where(lambda store: store.latency.exists())
        return [row for row in rows if row.times is not None and row.task in ("", AVERAGE)]

    def task_rows(self, tasks: Collection[str]) -> dict[str, list[Row]]:
        """Return the rows of studies that ran some of these tasks, by study."""
        rows = self._rows_where(lambda store: any(cell["identity"]["task"] in tasks for cell in store.cells.read()))
        return grouped(rows, lambda row: row.study)

    def patterns(self) -> dict[str, PatternRecord]:
        """Return the records of head patterns of all studies, by the study and the file's name. A file that is none is among
        the problems."""
        records = {}
        for path in sorted(path for store in self.stores for path in (store.folder / "maps").glob("patterns_*.json")):
            try:
                records[f"{path.parent.parent.name}/{path.stem}"] = read_patterns(path)
            except UserError as error:
                self.say(str(error))
        return records

    def store_of(self, study: str) -> Store:
        """Return the study of a name. Raises StopIteration for one that is not among them."""
        return next(store for store in self.stores if store.folder.name == study)

    def _rows_where(self, holds: Callable[[Store], bool]) -> list[Row]:
        return [row for store in self.stores for row in self._of(store, self._rows, leaderboard_rows, holds)]

    def _of(
        self, store: Store, read: dict[str, Any], rows_of: Callable[[Store], list[Any]], holds: Callable[[Store], bool]
    ) -> list[Any]:
        """Return the rows of a study that holds what is asked for, read once; none of one that can't be read whole."""
        name = store.folder.name
        try:
            if not holds(store):
                return []
            if name not in read:
                read[name] = rows_of(store)
        except (UserError, OSError) as error:
            read[name] = []
            self.say(f"study={name} is left out: {error}")
        return list(read.get(name, []))

    def say(self, problem: str) -> None:
        """Note what is left out, once."""
        if problem not in self.problems:
            self.problems.append(problem)


def holds_kernels(store: Store) -> bool:
    """Return whether a study is one of kernels."""
    return store.kernels.exists()


def grouped(rows: Iterable[Some], key: Callable[[Some], Any]) -> dict[Any, list[Some]]:
    """Return things by their key, in the order in which they come."""
    groups: dict[Hashable, list[Some]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def timed_alike(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of prefills of whole prompts whose times compare: those of a model, device and length come from the one
    study that timed most methods there, of several the one that timed dense prefills in the same rounds, then the latest."""
    plain = [row for row in rows if row.decode.method is None and row.prefill_chunk is None and row.times is not None]
    chosen: list[Row] = []
    for members in grouped(plain, lambda row: (row.model, row.device, row.length)).values():
        studies = grouped(members, lambda row: row.study)
        chosen += studies[max(studies, key=lambda study: _weight(studies[study]))]
    return list({(row.study, row.arm): row for row in chosen}.values())


def _weight(rows: Sequence[Row]) -> tuple[int, bool, str, str]:
    """Return what is larger for the study whose times stand, of several."""
    beside_dense = all(row.times is not None and row.times.dense_ttft_ms is not None for row in rows)
    return len({row.method for row in rows}), beside_dense, max(row.origin.date for row in rows), rows[0].study


def notices_of(rows: Sequence[Row]) -> str:
    """Return what the reasons of rows of times alone say alike, such as that the weights are random, as sentences; nothing
    where one is an average over tasks, whose reason is of its accuracy."""
    parts = [row.reason.split("; ") if not row.task else [] for row in rows]
    alike = [part for part in parts[0] if part and all(part in others for others in parts)] if parts else []
    return "".join(f"{part[0].upper()}{part[1:]}. " for part in alike)


def fullest(
    sets: dict[Key, list[Some]], fill: Callable[[list[Some]], int], is_enough: Callable[[list[Some]], bool]
) -> list[Key]:
    """Return the keys of the sets that get a picture, those with the largest `fill` first: one set for each of
    MOST_MODELS models, which all keys begin with. Beside the first, a set needs to be enough for a picture of its own."""
    of_models: dict[str, Key] = {}
    for key in sorted(sets, key=lambda key: (-fill(sets[key]), key)):
        of_models.setdefault(key[0], key)
    keys = [key for number, key in enumerate(of_models.values()) if not number or is_enough(sets[key])]
    return keys[:MOST_MODELS]
