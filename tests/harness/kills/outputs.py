"""What a command left in its folder, without what differs between any two runs of it: times, dates, names of processes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness.study.record_files import KEYS

VOLATILE = {
    *("run", "date", "commit", "training", "seconds", "threads", "share", "times", "repeats", "timing", "tflops", "gb_s"),
    *("speedup", "pct_ideal", "peak_mib", "attention_speedup", "attention_pct_ideal", "total_low", "total_high", "ttft_low"),
    *("extra_mib", "tokens_per_s", "decode_tokens_per_s", "generating", "dense", "ttft_high", "model_share"),
    *("ttft_speedup", "ttft_limit", "ttft_rounds"),
}
"""Fields that hold a time or what follows from one, or the name of a process."""
STATES = {"cells": "cell", "kernels": "case"}
"""Records of which the last with the same value of this field counts."""


@dataclass
class Difference:
    """How what a command left differs from what it leaves unharmed: numbers of rows, and names of files."""

    lost: int = 0
    doubled: int = 0
    different: int = 0
    torn: int = 0
    notes: list[str] = field(default_factory=list)
    files_left: list[str] = field(default_factory=list)
    files_lost: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.files_left or self.files_lost)


def snapshot(folder: Path) -> dict[str, Any]:
    """All files of a folder by name: rows of records and tables, hashes of weights, and of anything else."""
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.endswith("records/runs.jsonl"):
            files[name] = content(path)
    return files


def content(path: Path) -> Any:
    if path.suffix == ".png" or path.name == "multirun.yaml":  # a picture may show times; Hydra's file names the folder
        return path.stat().st_size > 0
    if path.suffix == ".csv":
        return [stable(row) for row in csv.DictReader(io.StringIO(path.read_text()))]
    if path.name.endswith((".jsonl", ".jsonl.xz")) and ("records" in path.parts or path.name == "train_log.jsonl"):
        raw = path.read_bytes()
        text = lzma.decompress(raw) if path.suffix == ".xz" else raw
        return rows(path.name.partition(".")[0], [json.loads(line) for line in text.splitlines()])
    if path.suffix == ".json":
        return stable(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return weights(load_file(path))
    if path.suffix == ".pth":
        return weights(torch.load(path, weights_only=True))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(kind: str, records: list[dict[str, Any]]) -> list[Any]:
    """Records as pairs of what names them and what they say. Of states, the last; of trainings, their place for a name."""
    if kind in STATES:
        return [(key, stable(record)) for key, record in sorted({record[STATES[kind]]: record for record in records}.items())]
    if kind in ("gate_steps", "finetune_steps"):
        places = {training: place for place, training in enumerate(dict.fromkeys(r["training"] for r in records))}
        return [((places[r["training"]], r["step"]), stable(r)) for r in records]
    return [(tuple(r[name] for name in KEYS.get(kind, ())) or number, stable(r)) for number, r in enumerate(records)]


def stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE and not k.endswith(("_ms", "_s", "_low_ms"))}
    return [stable(part) for part in value] if isinstance(value, list) else value


def weights(state: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(w.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest() for name, w in state.items()}


def compare(whole: dict[str, Any], left: dict[str, Any]) -> Difference:
    """What is lost, doubled, different or left over, beside an unharmed run."""
    result = Difference(torn=sum(name.endswith(".torn") for name in left))
    left = {name: value for name, value in left.items() if not name.endswith(".torn")}
    result.files_left, result.files_lost = sorted(left.keys() - whole.keys()), sorted(whole.keys() - left.keys())
    for name in whole.keys() & left.keys():
        one, two = whole[name], left[name]
        if isinstance(one, list) and isinstance(two, list) and all(isinstance(row, tuple) for row in [*one, *two]):
            counts = Counter(key for key, _ in two)
            result.lost += sum(key not in counts for key, _ in one)
            result.doubled += sum(count - 1 for count in counts.values()) + sum(key not in dict(one) for key in counts)
            changed = [key for key, row in two if key in dict(one) and dict(one)[key] != row]
            result.different += len(changed)
            result.notes += [f"{name}: {key}" for key in changed]
        elif one != two:
            result.different += 1
            result.notes.append(name)
    return result
