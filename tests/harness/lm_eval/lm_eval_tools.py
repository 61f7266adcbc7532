"""lm-eval in this process, on tasks of a folder: what the tests of both directions share."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from harness.lm_eval import register

ENVIRONMENT = "torch.utils.collect_env.get_pretty_env_info"
"""Lists the machine and its packages for the results file: a dozen processes, longer than a short evaluation."""


def evaluate(folder: Path, tasks: list[str], model: str, batch_size: int = 1, **model_args: Any) -> dict[str, Any]:
    """Return lm-eval's results, samples among them, of a registered model on a CPU."""
    register()
    with patch(ENVIRONMENT, return_value=""):
        results = simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=tasks,
            batch_size=batch_size,
            device="cpu",
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )
    assert results is not None
    return dict(results)


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """Return what the model answered, in the order of the documents."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]
