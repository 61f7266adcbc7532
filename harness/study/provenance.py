"""Where a row comes from, so that someone else can measure it again: command, commit, versions, device, date."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.task_settings import as_given
from harness.study.schema import RunRecord

if TYPE_CHECKING:
    import torch  # takes seconds, which what reads records doesn't need
    from torch import Tensor

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy", "flash-attn", "flash-attn-4", "fa3-fwd")
"""The packages whose version can change a number; those not installed are left out."""
DISTRIBUTION_MARKER = Path(__file__).resolve().parents[2] / "pyproject.toml"
"""A file that is there in a checkout and not in an installed wheel."""


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command(argv: list[str] | None = None) -> str:
    """Return the command line of this process as one types it: `python -m harness …`."""
    return as_given(shlex.join(["python", "-m", "harness", *(sys.argv[1:] if argv is None else argv)]))


@lru_cache(maxsize=1)
def commit() -> str:
    """Return the commit of the checkout the code comes from, "+dirty" with uncommitted changes (results/ aside); the installed
    version for a wheel; "unknown" where neither can be had. HARNESS_COMMIT says it where the code was copied without
    its history, to a container say. One that a CSV's reader would take for a number (5e56630 is infinity) has a g before it, as
    `git describe` writes it."""
    text = _commit()
    try:
        float(text)
    except ValueError:
        return text
    return f"g{text}"


def _commit() -> str:
    """Return what `commit` does, as git or the environment says it."""
    if os.environ.get("HARNESS_COMMIT"):
        return os.environ["HARNESS_COMMIT"]
    if not DISTRIBUTION_MARKER.exists():
        return _installed()
    root = DISTRIBUTION_MARKER.parent
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return _installed()
    changed = _git(root, "status", "--porcelain", "--", ".", ":!results")
    return head + ("+dirty" if changed else "")


def _installed() -> str:
    for name in metadata.packages_distributions().get("harness", []):
        return f"v{metadata.version(name)}"
    return "unknown"


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number, and of CUDA where torch was built with it."""
    return dict(_installed_versions())


@lru_cache(maxsize=1)
def _installed_versions() -> tuple[tuple[str, str], ...]:
    """Read the versions once: a process keeps what it has imported."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    import torch

    if torch.version.cuda:
        installed["cuda"] = torch.version.cuda
    return tuple(installed.items())


def device_name(device: torch.device) -> str:
    """Return the model name of the device: "NVIDIA H100 80GB HBM3", or "cpu (Intel(R) Xeon(R) …, 2 threads)"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({cpu_model()}, {torch.get_num_threads()} threads)"


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """Return what the processor of this machine calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def run_record(device: torch.device) -> RunRecord:
    """Return the record of this process on this device; its id is new every time."""
    import torch

    return RunRecord(
        run=uuid.uuid4().hex[:12],
        date=now(),
        command=command(),
        commit=commit(),
        versions=versions(),
        device=device_name(device),
        device_type=device.type,
        threads=torch.get_num_threads(),
    )


def tensors_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of tensors by name: of their names, types, shapes and bytes, in the order of the names.

    However often the same tensors are saved, in whatever file, with whatever metadata, it is the same: a file's own hash isn't,
    as safetensors writes metadata in another order at every save.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        weight = state[name].detach().cpu().contiguous()
        dtype = str(weight.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(weight.shape)]).encode() + b"\0")
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def json_hash(content: Any) -> str:
    """Return the SHA-256 (hex) of what JSON says: the order of keys, the indentation and the escapes don't count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 (hex) of a file's bytes: for text that a user gives, and for what others publish, whose pages say it.

    What is written anew here has another one every time: see `tensors_hash` and `json_hash`.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
