"""The versions of RULER's prompts, task by task: a cell's identity holds its own, so that one task's change leaves the cells of
all others what they are.

1: vt's worked example has five lines of noise. In a chat template, the answer prefix has lost its leading space, and cwe's
   worked example stands in the question's turn. Commits up to b722ad1 make these.
2: vt's worked example fills 500 tokens; in a chat template, prefix and worked example are as NVIDIA's.
"""

from __future__ import annotations

FIRST = 1
PLAIN = {"vt": 2}
"""Versions of prompts without a chat template, of tasks whose prompts have changed."""
TEMPLATED = 2
"""The version of prompts in a chat template, of all tasks."""


def version(task: str, chat: bool) -> int:
    """Return the version of a task's prompts, in a chat template or without one."""
    return TEMPLATED if chat else PLAIN.get(task, FIRST)
