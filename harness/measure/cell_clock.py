"""The time that each cell has had of what a command may give it (`cell_minutes`), where the samples of several run together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class CellClock:
    """Counts the seconds of cells, by id. A batch's seconds are shared out by the samples that each cell has in it. minutes:
    that a cell may take, None for all."""

    minutes: float | None
    seconds: dict[str, float] = field(default_factory=dict)

    def left(self, cells: Sequence[str]) -> float | None:
        """Return the seconds that a batch may take before one of its cells has none left; None for all. cells: the cell of each
        of its samples."""
        if self.minutes is None:
            return None
        return min(self._left(cell) * len(cells) / count for cell, count in Counter(cells).items())

    def take(self, cells: Sequence[str], seconds: float) -> None:
        """Count the seconds that a batch took."""
        for cell, count in Counter(cells).items():
            self.seconds[cell] = self.seconds.get(cell, 0.0) + seconds * count / len(cells)

    def over(self, cells: Sequence[str]) -> list[str]:
        """Return which of these cells have no time left, in their order."""
        return [cell for cell in dict.fromkeys(cells) if self.minutes is not None and self._left(cell) <= 0]

    def end(self, cells: Sequence[str]) -> None:
        """Count the time of a batch's cells that it was cut short for as over: of those that are over, or else of the one that
        is nearest to it."""
        counts = Counter(cells)
        if self.minutes is not None and not self.over(cells):
            nearest = min(counts, key=lambda cell: self._left(cell) / counts[cell])
            self.seconds[nearest] = 60 * self.minutes

    def _left(self, cell: str) -> float:
        assert self.minutes is not None
        return 60 * self.minutes - self.seconds.get(cell, 0.0)
