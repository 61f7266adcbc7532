"""What an item of the paper is: its name, what it shows, and what makes the rows that it is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from harness.core.conf_files import groups
from harness.report.figures.paper.published import of_item

if TYPE_CHECKING:
    from harness.report.figures.paper.drawing import Drawing
    from harness.report.figures.paper.recorded import Recorded


@dataclass(frozen=True)
class Item:
    """A figure or table of the paper.

    name: as `item=` takes it. number: as the paper calls it. shows: in a few words. module: of this package, whose function
    `draw` draws it. experiment: the choice of `experiment=` that makes its rows, or, where `command` is not empty, what that
    is instead. needs: what its rows need that can't be had everywhere, empty for nothing.
    """

    name: str
    number: str
    shows: str
    module: str
    experiment: str = ""
    arguments: str = "model=hf model.path=FOLDER"
    command: str = ""
    needs: str = ""

    @property
    def makes_rows(self) -> str:
        """Return the command that makes its rows; empty where no command does as yet."""
        if self.command:
            return self.command.format(tasks=",".join(dict.fromkeys(value.x for value in of_item(self.name))))
        known = self.experiment in groups().get("experiment", [])
        return f"python -m harness experiment={self.experiment} {self.arguments}".strip() if known else ""

    @property
    def how_to_make(self) -> str:
        """Return a text for a panel without rows: the command that makes them, or that there is none yet."""
        command = self.makes_rows
        if not command:
            return f"Not measured: no command makes these rows yet ({self.needs})."
        return f"Not measured: {command}" + (f" (needs {self.needs})" if self.needs else "")

    def draw(self, recorded: Recorded) -> list[Drawing]:
        """Return its pictures: one for each model and device whose rows fill it, at least one."""
        module = import_module(f"harness.report.figures.paper.{self.module}")
        drawings: Sequence[Drawing] = module.draw(self, recorded)
        return list(drawings)
