"""What the harness adds to the time of a model, of any command of its own, in this process.

    python -m tests.harness.overhead -m method=block_topk,random sparsity=0.5,0.75 latency=false study=mine

The last lines say how many cells were generated for, and the seconds of the command within the model's forward passes
(generating, and in self-checks and searches), and outside of them: by the clock, and of the processor, which other work on the
machine changes less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.jobs.command import run_command
from harness.measure import generate_batches
from harness.models import loading

Seconds = tuple[float, float]
"""By the clock, and of the processor."""


class Within:
    """Adds up the time within some calls, the outermost alone of those in each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, Seconds] = {}
        self.calls, self.depth = 0, 0

    @contextmanager
    def call(self, kind: str) -> Iterator[None]:
        began, self.depth = now(), self.depth + 1
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                clock, processor = self.seconds.get(kind, (0.0, 0.0))
                ended = now()
                self.seconds[kind] = clock + ended[0] - began[0], processor + ended[1] - began[1]

    def timed(self, function: Any, kind: str) -> Any:
        """A function whose calls are added up."""

        def run(*args: Any, **options: Any) -> Any:
            self.calls += kind == "generating"
            with self.call(kind):
                return function(*args, **options)

        return run


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


def main(arguments: list[str]) -> int:
    within, load = Within(), loading.load_model

    def timed_model(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        for module in {id(part): part for part in (loaded.model, loaded.model.get_decoder())}.values():
            module.forward = within.timed(module.forward, "other forward passes")
        return loaded

    generate_batches.generate = within.timed(generate_batches.generate, "generating")
    loading.load_model = timed_model
    began = now()
    code = run_command(arguments)
    whole = tuple(end - start for end, start in zip(now(), began, strict=True))
    left = [total - sum(parts) for total, parts in zip(whole, zip(*within.seconds.values(), strict=True), strict=False)]
    print(f"\n{within.calls} calls of generate")
    for name, (clock, processor) in {**within.seconds, "outside": tuple(left), "in all": whole}.items():
        print(f"{name:>20}: {clock:8.1f} s, processor {processor:8.1f} s")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
