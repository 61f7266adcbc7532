"""What was measured with which versions: the processes of studies, those alike together."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from harness.study.store import Record, Store


def read_versions(store: Store) -> list[dict[str, Any]]:
    """Return, for each device and set of versions that a study was measured with: `study`, `device`, `packages` (name and
    version), `commits`, `first` and `last` day, and `runs`, how many processes. Raises RecordError for corrupt records."""
    alike: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for run in store.runs.read():
        alike[run["device"], tuple(sorted(run["versions"].items()))].append(run)
    return [
        {
            "study": store.folder.name,
            "device": device,
            "packages": " ".join(f"{name}={version}" for name, version in packages),
            "commits": sorted({run["commit"] for run in runs}),
            "first": min(run["date"] for run in runs)[:10],
            "last": max(run["date"] for run in runs)[:10],
            "runs": len(runs),
        }
        for (device, packages), runs in sorted(alike.items())
    ]
