"""lm-eval's results_DATE.json: one file an evaluation, in a folder of its model, method and id.

The keys are those of lm-eval 0.4 (`lm_eval.result_schema.EvalResults`); `harness` is one more, with what lm-eval has no place
for.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from harness.report.exports.evaluations import (
    Evaluation,
    Publication,
    command_of,
    facts,
    project_version,
    safe_name,
    write_json,
)
from harness.report.joined import JoinedRow
from harness.report.rows import Row

FILTER = "none"
"""The filter of lm-eval that changes nothing."""


def write(folder: Path, evaluation: Evaluation, publication: Publication) -> list[Path]:
    """Write an evaluation below `folder` and return the path. Raises UserError where it can't be written."""
    row = evaluation.row
    name = "__".join(map(safe_name, (evaluation.model(publication), row.method, evaluation.id)))
    date = evaluation.time.replace(tzinfo=None).isoformat().replace(":", "-")
    return [write_json(folder / name / f"results_{date}.json", _results(evaluation, publication))]


def _results(evaluation: Evaluation, publication: Publication) -> dict[str, Any]:
    row, model = evaluation.row, evaluation.model(publication)
    names = [task.task for task, _ in evaluation.tasks]
    results = {name: _metrics(name, part, columns) for name, part, columns in evaluation.named}
    group = {name: metrics for name, metrics in results.items() if name not in names}
    direction = {"perplexity": False} if evaluation.is_perplexity else {"score": True, "density": False}
    samples = {task.task: task.samples or 0 for task, _ in evaluation.tasks}
    versions = {task.task: task.generator for task, _ in evaluation.tasks}
    return {
        "results": results,
        "groups": group,
        "group_subtasks": dict.fromkeys(group, names),
        "configs": {task.task: _config(task) for task, _ in evaluation.tasks},
        "versions": {name: "+".join(sorted(set(versions.values()))) for name in group} | versions,
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": dict.fromkeys(results, direction),
        "n-samples": {name: {"original": count, "effective": count} for name, count in samples.items()},
        "config": {
            "model": "sparse",
            "model_args": {"pretrained": model}
            | facts(evaluation.columns, ("method", "knobs", "decode", "block_size", "kernel")),
            "model_dtype": row.dtype,
            "device": row.device,
            "batch_size": None,
            "bootstrap_iters": 0,
            "gen_kwargs": {"do_sample": False, "temperature": 0.0},
            "random_seed": row.seed,
        },
        "git_hash": row.origin.commit,
        "date": evaluation.time.timestamp(),
        "transformers_version": row.origin.transformers,
        "model_source": "sparse",
        "model_name": model,
        "model_name_sanitized": safe_name(model),
        "max_length": row.length,
        "harness": facts(evaluation.columns) | {"version": project_version(), "command": command_of(evaluation)},
    }


def _metrics(name: str, row: Row, columns: JoinedRow) -> dict[str, Any]:
    """Return the metrics of a task, or of the average over all; no standard error of an average: lm-eval's own is of pooled
    samples, which weighs tasks by their size."""
    entry: dict[str, Any] = {"alias": name, "sample_len": columns["samples"] or 0}
    if row.perplexity is not None:
        return entry | {f"perplexity,{FILTER}": row.perplexity.perplexity, f"perplexity_stderr,{FILTER}": "N/A"}
    entry |= {f"score,{FILTER}": columns["accuracy"], f"score_stderr,{FILTER}": _standard_error(row)}
    return entry | ({f"density,{FILTER}": columns["density"]} if columns["density"] is not None else {})


def _standard_error(row: Row) -> float | str:
    """Return the standard error of the mean score of a task, as lm-eval computes it."""
    scores = [answer.score for answer in row.answers.values()]
    return float(statistics.stdev(scores)) / math.sqrt(len(scores)) if len(scores) > 1 else "N/A"


def _config(row: Row) -> dict[str, Any]:
    return {
        "task": row.task,
        "output_type": "loglikelihood_rolling" if row.perplexity is not None else "generate_until",
        "num_fewshot": 0,
        "generation_kwargs": {"do_sample": False, "temperature": 0.0},
        "metadata": {
            "version": row.generator or None,
            "haystack": row.haystack or None,
            "length": row.length,
            "seed": row.seed,
        },
    }
