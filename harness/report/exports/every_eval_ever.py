"""Every Eval Ever 0.3.0: one aggregate file an evaluation, and one of its samples beside it.

https://github.com/evaleval/every_eval_ever says what the fields mean. Names of files and timestamps are made of the records, so
that the same records give the same bytes. Prompts are not recorded: a sample says how its prompt is made instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from pathlib import Path
from typing import Any

from harness.report.exports.evaluations import (
    DISTRIBUTION,
    Evaluation,
    Publication,
    command_of,
    facts,
    project_version,
    safe_name,
    write_json,
    write_text,
)
from harness.report.joined import JoinedRow
from harness.report.rows import Row
from harness.study.store import Record

VERSION = "0.3.0"
"""The version of the schema."""
COSTS: dict[str, tuple[str, str, float | str]] = {
    "density": ("proportion", "blocks computed ÷ causal blocks at prefill", 1.0),
    "ttft_ms": ("ms", "whole prefill: time to first token", "Infinity"),
    "total_ms": ("ms", "attention of a layer with its selection", "Infinity"),
    "peak_mib": ("MiB", "memory of a prefill, weights included", "Infinity"),
}
"""Columns that are results of their own: unit, what it is, the most that it can be."""


def write(folder: Path, evaluation: Evaluation, publication: Publication) -> list[Path]:
    """Write an evaluation below `folder`/data and return the paths. Raises UserError where a file can't be written."""
    model = evaluation.model(publication)
    developer, name = model.split("/", 1) if "/" in model else (publication.developer, model)
    place = Path("data", *map(safe_name, (evaluation.benchmark, developer, name)))
    stem = _uuid(evaluation.row.study, evaluation.id, evaluation.row.device)
    aggregate = _aggregate(evaluation, publication)
    paths = []
    if lines := [_line(_sample(aggregate, row, record)) for row, _ in evaluation.tasks for record in _samples(evaluation, row)]:
        content = "".join(lines)
        beside = place / f"{stem}_samples.jsonl"
        paths.append(write_text(folder / beside, content))
        aggregate["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": beside.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(content.encode()).hexdigest(),
            "total_rows": len(lines),
        }
    return [*paths, write_json(folder / place / f"{stem}.json", aggregate)]


def _uuid(*parts: str) -> str:
    """Return a random-looking UUID (version 4, as the schema wants it) that is the same for the same parts."""
    return str(uuid.UUID(bytes=hashlib.sha256("\0".join(parts).encode()).digest()[:16], version=4))


def _aggregate(evaluation: Evaluation, publication: Publication) -> dict[str, Any]:
    row, model = evaluation.row, evaluation.model(publication)
    seconds = str(int(evaluation.time.timestamp()))
    source = {
        "source_name": row.study,
        "source_type": "evaluation_run",
        "source_organization_name": publication.organization or "not given",
        "evaluator_relationship": "third_party",
    }
    if publication.url is not None:
        source["source_organization_url"] = publication.url
    results = [_score(evaluation, *named) for named in evaluation.named]
    return {
        "schema_version": VERSION,
        "evaluation_id": f"{evaluation.benchmark}/{model}/{row.study}-{evaluation.id}/{seconds}",
        "evaluation_timestamp": evaluation.time.isoformat(),
        "retrieved_timestamp": seconds,
        "source_metadata": source,
        "eval_library": {
            "name": DISTRIBUTION,
            "version": project_version(),
            "additional_details": _texts(commit=row.origin.commit, torch=row.origin.torch, triton=row.origin.triton),
        },
        "model_info": {
            "name": row.model,
            "id": model,
            **({} if "/" in model else {"developer": publication.developer}),
            "inference_engine": {"name": "transformers", "version": row.origin.transformers or "unknown"},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                **_texts(dtype=row.dtype),
            },
        },
        "evaluation_results": [*results, *_costs(evaluation)],
    }


def _texts(**values: str | None) -> dict[str, str]:
    """Return the values that are known."""
    return {name: value for name, value in values.items() if value}


def _score(evaluation: Evaluation, name: str, row: Row, columns: JoinedRow) -> dict[str, Any]:
    """Return the result of one task, or of the average over all."""
    measured, called = ("perplexity", "perplexity") if evaluation.is_perplexity else ("accuracy", "score")
    metric = {
        "evaluation_description": f"{name} at {row.length} tokens: {called}",
        "metric_id": called if evaluation.is_perplexity else f"{evaluation.benchmark}.{called}",
        "metric_name": called,
        "metric_kind": measured,
        "metric_unit": measured if evaluation.is_perplexity else "proportion",
        "lower_is_better": evaluation.is_perplexity,
        "score_type": "continuous",
        "min_score": 1.0 if evaluation.is_perplexity else 0.0,
        "max_score": "Infinity" if evaluation.is_perplexity else 1.0,
    }
    low, high = columns[f"{measured}_low"], columns[f"{measured}_high"]
    uncertainty: dict[str, Any] = {"num_samples": columns["samples"] or 0}
    if low is not None and high is not None and math.isfinite(high):
        method = "bootstrap over documents" if evaluation.is_perplexity else "Wilson, for an average combined by MOVER"
        uncertainty["confidence_interval"] = {"lower": low, "upper": high, "confidence_level": 0.95, "method": method}
    return _result(evaluation, row, name, metric, {"score": columns[measured], "uncertainty": uncertainty}, columns)


def _costs(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return density, times and memory as results of their own, where they were measured."""
    results = []
    for column, (unit, description, most) in COSTS.items():
        value = evaluation.columns[column]
        if value is None:
            continue
        metric = {
            "evaluation_description": description,
            "metric_id": f"{DISTRIBUTION}.{column}",
            "metric_name": column,
            "metric_kind": column,
            "metric_unit": unit,
            "lower_is_better": True,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": most,
        }
        name = f"{evaluation.tasks_name} {column}"
        results.append(_result(evaluation, evaluation.row, name, metric, {"score": value}, evaluation.columns))
    return results


def _result(
    evaluation: Evaluation, row: Row, name: str, metric: dict[str, Any], score: dict[str, Any], columns: JoinedRow
) -> dict[str, Any]:
    data = _texts(haystack=row.haystack, generator=row.generator, length=str(row.length))
    return {
        "evaluation_result_id": name,
        "evaluation_name": name,
        "source_data": {"dataset_name": evaluation.benchmark, "source_type": "other", "additional_details": data},
        "evaluation_timestamp": row.origin.date,
        "metric_config": metric,
        "score_details": score,
        "generation_config": {
            "generation_args": {"temperature": 0.0, "execution_command": command_of(evaluation)},
            "additional_details": facts(columns),
        },
    }


def _samples(evaluation: Evaluation, row: Row) -> list[Record]:
    """Return the records of the samples of a row, none of perplexity."""
    return [] if evaluation.is_perplexity else list(evaluation.samples.get(row.cell, []))


def _sample(aggregate: dict[str, Any], row: Row, record: Record) -> dict[str, Any]:
    """Return the line of one sample."""
    prompt = f"not recorded: number {record['index']} of {row.task} at {row.length} tokens, seed {row.seed}, {row.samples_seen}"
    known = {name: record.get(name) for name in ("tokens", "density", "token_density", "decode_density", "status", "reason")}
    return {
        "schema_version": VERSION,
        "evaluation_id": aggregate["evaluation_id"],
        "model_id": aggregate["model_info"]["id"],
        "evaluation_name": row.task,
        "evaluation_result_id": row.task,
        "sample_id": f"{row.task}-{record['index']}",
        "sample_hash": _hash({"raw": prompt, "reference": record["answers"]}),
        "interaction_type": "single_turn",
        "input": {"raw": prompt, "reference": record["answers"]},
        "output": {"raw": [record["prediction"]]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": record["prediction"],
                "extraction_method": "none",
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": record["score"], "is_correct": record["score"] >= 1.0},
        "metadata": {name: str(value) for name, value in known.items() if value not in (None, "")},
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"
