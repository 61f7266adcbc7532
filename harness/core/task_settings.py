"""What the settings of tasks are called: task.NAME on the command line and in Python, where `task` itself is a value, which has
no settings below it; so a file of conf/ has them in a section of their own."""

from __future__ import annotations

TASK_SETTINGS = "task_settings"
"""The section."""


def in_files(name: str) -> str:
    """Return what a file of conf/ calls a setting of the command line."""
    return f"{TASK_SETTINGS}{name[4:]}" if name.startswith("task.") else name


def as_given(text: str) -> str:
    """Return a name of a setting, or a text with such names, as the command line has them."""
    return text.replace(f"{TASK_SETTINGS}.", "task.")
