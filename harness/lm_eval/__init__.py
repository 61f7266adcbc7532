"""lm-eval both ways: any of its tasks under any method here, and the tasks of this harness inside lm-eval.

lm-eval has no entry point for models of other packages (its registry is filled from a table in lm_eval.models), so
`python -m harness.lm_eval …` registers ours and hands the command line on. docs/lm_eval.md says how and what differs.
"""

from __future__ import annotations

NAME = "sparse"
"""What the model class is called on lm-eval's command line: --model sparse."""


def register() -> None:
    """Make `--model sparse` known to lm-eval in this process; again is no error."""
    import lm_eval.models  # noqa: F401  # first: lm-eval fills its registry on demand only while that is empty
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="harness.lm_eval.model:SparseLM")
