"""Small studies of kernels on a CPU, for tests, and their records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from harness.measure.kernel_speed.study import Study
from harness.study.store import Store
from tests.harness.measure.study_files import lines
from tests.harness.settings import composed, with_options

Command = Callable[..., int]
CPU = torch.device("cpu")
SMALL = [
    "job=kernel_speed",
    "study=speed",
    "device=cpu",
    "latency_repeats=1",
    "latency_seconds=1",
    "job.shape=bundled",
    "job.lengths=[192,300]",
    "job.sparsities=[0.5,0.8]",
    "job.blocks=[64]",
    "job.kernels=[sdpa,reference]",
    "job.indices=[uniform]",
    "job.selections=[block_topk]",
    "job.block_map=null",
]
DECODE = [
    *SMALL[:-4],
    "job.phase=decode",
    "job.batches=[1,2]",
    "job.kernels=[reference]",
    "job.indices=[uniform,uniform_shared]",
]
ONE: dict[str, Any] = {"lengths": [192], "sparsities": [0.5]}
"""Options of one length and sparsity."""


def records(folder: Path, kind: str = "kernels") -> list[dict[str, Any]]:
    return lines(folder, kind)


def sparse_records(folder: Path, by: str = "kernel") -> dict[str, dict[str, Any]]:
    """The last state of the sparse cases, by kernel or kind of index."""
    return {record["identity"][by]: record for record in records(folder) if record["identity"]["op"] == "sparse"}


def study(folder: Path, console: Console | None = None, *, settings: dict[str, Any] | None = None, **options: Any) -> int:
    """What the command SMALL measures, without its report, with other options of the job. Returns how many cases failed."""
    changed = replace(with_options(composed(*SMALL), **options), **(settings or {}))
    return Study(changed, Store(folder), console or Console(quiet=True)).go()
