"""What is logged, for tests that look at it."""

from __future__ import annotations

import logging


class LogLines(logging.Handler):
    """The lines that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        return "\n".join(map(self.format, self.records))
