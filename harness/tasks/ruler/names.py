"""The names of RULER's thirteen tasks (arXiv 2404.06654) and of their groups; importing this loads no other module."""

from __future__ import annotations

NEEDLES = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
)
"""Needles in a haystack."""
GENERATED = (*NEEDLES, "vt", "cwe", "fwe")
"""The tasks that need no data file."""
QUESTION_ANSWERING = ("qa_1", "qa_2")
"""The tasks that read SQuAD and HotpotQA."""
TASKS = (*GENERATED, *QUESTION_ANSWERING)
GROUPS: dict[str, tuple[str, ...]] = {"niah": NEEDLES, "ruler_core": GENERATED, "ruler": TASKS}
