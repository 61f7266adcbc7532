"""What a command says before workers begin with its jobs, and what it says while they last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from harness.core.activity import MINUTE, OVERALL, every
from harness.core.errors import UserError
from harness.jobs.announce import Compose, announce_jobs, command_that_sweeps, say_dimly, settings_in_advance
from harness.jobs.launcher_settings import DEVICES
from harness.jobs.plan import Site
from harness.jobs.worker_devices import devices_of
from harness.study.provenance import cpu_model


@contextmanager
def announced(compose: Compose, jobs: Sequence[Sequence[str]], place: Mapping[str, Any]) -> Iterator[None]:
    """Say what the jobs of a sweep are that workers share, and once a minute how far they are, as long as the block runs."""
    command = command_that_sweeps()
    settings = settings_in_advance(compose, jobs) if command is not None else []
    if command is None or not settings:
        yield
        return
    site = worker_site(place)
    site = replace(site, workers=min(site.workers, len(jobs)))
    announce_jobs(command, settings, len(jobs), site, workers=site.workers)
    with ExitStack() as stack:
        if settings[0].progress and OVERALL:
            stack.enter_context(every(MINUTE, lambda: say_dimly(command, OVERALL[-1]())))
        yield


def worker_site(place: Mapping[str, Any]) -> Site:
    """Return where workers will measure, as far as the settings of their launcher tell: on GPUs of this machine, on its CPU, or
    on machines that are not known here."""
    if DEVICES not in place:
        count = place.get("workers", 1)
        return Site(None, "cuda" if place.get("gpus") else None, count if isinstance(count, int) else 1)
    devices: list[str] = []
    with suppress(UserError):
        devices = devices_of(str(place[DEVICES]))
    if not devices or devices[0] == "cpu":
        return Site(f"cpu ({cpu_model()}, ", "cpu", max(1, len(devices)))
    import torch  # which counting its devices has imported

    return Site(torch.cuda.get_device_name(0) if torch.cuda.is_available() else None, "cuda", len(devices))
