"""A study of kernels: times every case that has no record yet, lengths from short to long, and writes each result when it is
there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_map import block_map
from attention_kernels.skip_softmax import SkipRule
from attention_kernels.sparse_attention import SparseIndex
from rich.console import Console

from harness.core.errors import UserError
from harness.core.progress import progress_bar
from harness.core.settings import Settings
from harness.measure.kernel_speed import timing
from harness.measure.kernel_speed.cases import BLOCK_MAP, DECODE, FULL, SELECTION, SPARSE, TRAINING, Case
from harness.measure.kernel_speed.indices import ModelIndices, Wish, of_model, random_index
from harness.measure.kernel_speed.inputs import Work
from harness.measure.kernel_speed.method_selection import plain_layer_inputs, selector
from harness.measure.kernel_speed.options import grid, left_out
from harness.measure.kernel_speed.recorder import Recorder, title
from harness.measure.kernel_speed.timing import Result, Timer
from harness.measure.sweep import SweepCache
from harness.study.resume import Attempt, one_line
from harness.study.store import Store
from methods.parts.base import Method

RIVAL = 1.25
"""How many times as long as the fastest dense kernel another may take and still be timed beside every sparse case: which is the
fastest is said anew in each."""


class Study:
    """One command's work on a study of kernels. sweep: what the jobs of the command share, among it the model."""

    def __init__(self, settings: Settings, store: Store, console: Console, sweep: SweepCache | None = None) -> None:
        self.settings, self.console, self.sweep = settings, console, sweep or SweepCache()
        self.grid = grid(settings)
        self.timer = Timer(settings.device, settings.latency_repeats, settings.latency_seconds, self.grid.phase == DECODE)
        self.log = Recorder(settings, self.grid, store, console)
        self.models: ModelIndices | None = None
        self._selectors: dict[tuple[str, int, float, bool, int], Method] = {}

    def go(self) -> int:
        """Time the cases that are missing. Returns how many failed that another run might not."""
        for name, reason in left_out(self.settings, self.grid).items():
            text = reason if name in reason else f"{name}: {reason}"
            self.console.print(f"not timed: {text}", style="dim", markup=False, highlight=False, soft_wrap=True)
        cases = self.grid.cases()
        missing = self.log.missing(cases)
        self._prepare(missing)
        failed = 0
        with progress_bar(self.console, self.settings.progress) as bar:
            task = bar.add_task("kernels", total=len(cases), completed=len(cases) - len(missing))
            for (length, batch), missing_here in groupby(missing, key=lambda c: (c.length, c.batch)):
                # Dense attention is timed again beside whatever is missing: a clock or a card may have changed since.
                dense = [c for c in cases if c.op == FULL and (c.length, c.batch) == (length, batch)]
                others = [c for c in missing_here if c.op != FULL]
                for timed, results in self._at(length, batch, dense, others, partial(bar.update, task)):
                    failed += sum(r.reason != "" and not r.final for r in results.values())
                    bar.advance(task, sum(c in missing for c in timed))
        return failed

    def _prepare(self, missing: Sequence[Case]) -> None:
        """Load the model that must select indices; a missing gate stops here and not in the middle."""
        if wishes := _wishes(missing):
            self.models = ModelIndices(self.settings, self.sweep.model(self.settings, self.console))
            self.models.check(wishes)
            self.log.about = self.models.about()

    # -- one length ----------------------------------------------------------------------------------------------------

    def _at(
        self, length: int, batch: int, dense: list[Case], others: list[Case], say: Callable[..., Any]
    ) -> Iterable[tuple[list[Case], dict[Case, Result]]]:
        """Time the cases of one length and batch, dense attention first; yields each turn's results when they are recorded."""
        say(description=f"{length:,} tokens: dense")
        fastest: tuple[float, str] | None = None
        with Attempt() as attempt:
            work = self._draw(length, batch)
            results = timing.time_dense(dense, work, self.timer)
        if attempt.error is not None:
            everything = dict.fromkeys([*dense, *others], self._failed(attempt.error))
            self.log.write(everything, None)
            yield [*dense, *others], everything
            return
        ran = {c.kernel: r.times[timing.TIMES_OF_ONE].median for c, r in results.items() if r.times and not r.wrong}
        if ran:
            fastest = min((ms, kernel) for kernel, ms in ran.items())
        rivals = [kernel for kernel, ms in ran.items() if ms <= RIVAL * min(ran.values())]
        self.log.write(results, fastest)
        yield dense, results
        no_model = self._model_prefill(length, others)
        for _, group in groupby(others, key=lambda c: c.turn):
            turn = list(group)
            say(description=title(turn[0]))
            with Attempt() as attempt:
                results = self._turn(turn, work, no_model, rivals)
            if attempt.error is not None:
                results = dict.fromkeys(turn, self._failed(attempt.error))
            self.log.write(results, fastest)
            yield turn, results

    def _draw(self, length: int, batch: int) -> Work:
        """Draw the inputs of one length and batch at random."""
        settings = self.settings
        return Work.draw(
            self.grid.phase, self.grid.shape, batch, length, dtype=settings.dtype, device=settings.device, seed=settings.seed
        )

    def _model_prefill(self, length: int, cases: list[Case]) -> Exception | None:
        """Let the model select at this length. Returns what went wrong, if anything did."""
        wishes = _wishes(cases)
        if not wishes or self.models is None:
            return None
        with Attempt() as attempt:
            self.models.prefill(length, wishes)
        if attempt.error is not None:
            self._failed(attempt.error)
        return attempt.error

    def _turn(self, cases: list[Case], work: Work, no_model: Exception | None, rivals: Sequence[str]) -> dict[Case, Result]:
        """Return the results of cases that share their turn; sparse ones beside the dense kernels `rivals`."""
        first = cases[0]
        training = self.grid.phase == TRAINING  # what is made in inference mode can't take part in a backward pass
        with torch.no_grad() if training else torch.inference_mode():
            if first.op == BLOCK_MAP:
                assert first.block is not None
                pooled = partial(
                    block_map, work.q, work.k, q_block=first.block, k_block=first.block, scale=work.scale, kernel=first.kernel
                )
                return timing.time_calls({c: pooled for c in cases}, self.timer)
            if first.op == SELECTION:
                return timing.time_calls({c: self._selection(c, work) for c in cases}, self.timer)
            if of_model(first.index) and no_model is not None:
                raise no_model
            one_of_each = {case.last: case for case in reversed(cases)}
            indices = {last: self._index(case, work) for last, case in one_of_each.items()}
            selects = {last: self._selection(case, work) for last, case in one_of_each.items() if case.selection}
            return timing.time_sparse(cases, work, indices, selects, self.timer, rivals)

    def _selection(self, case: Case, work: Work) -> Callable[[], SparseIndex]:
        """Return the call that a method's selection is timed by."""
        assert case.block is not None and case.sparsity is not None
        key = case.selection, case.block, case.sparsity, case.shared, case.last
        if key not in self._selectors:
            self._selectors[key] = selector(*key, self.grid.shape, seed=self.settings.seed, device=self.settings.device)
        method = self._selectors[key]
        inputs = plain_layer_inputs(method, work.q, work.k, work.scale)

        def select() -> SparseIndex:
            index = method.select(inputs)
            if index is None or isinstance(index, SkipRule):
                raise ValueError(f"method {case.selection} asks for dense attention: it selects nothing")
            return index

        return select

    def _index(self, case: Case, work: Work) -> BlockIndex:
        """Return the index of a case, of a model's selection or random."""
        assert case.block is not None and case.sparsity is not None
        heads = self.grid.shape.kv_heads if case.shared else self.grid.shape.heads
        if of_model(case.index):
            assert self.models is not None
            index = self.models.get(case.length, (case.index, case.block, case.sparsity, case.last), heads)
            counts, indices = (x.expand(case.batch, *x.shape[1:]).contiguous() for x in (index.counts, index.indices))
            return replace(index, counts=counts, indices=indices)
        return random_index(
            batch=case.batch,
            heads=heads,
            q_len=work.q.shape[2],
            k_len=case.length,
            block=case.block,
            sparsity=case.sparsity,
            seed=self.settings.seed,
            device=self.settings.device,
            last=case.last,
        )

    def _failed(self, error: Exception) -> Result:
        """Return the result of cases that raised. Raises UserError where the device is lost for good."""
        try:
            return timing.failed(error, self.settings.device)
        except RuntimeError as lost:
            raise UserError(
                f"the device can't go on after: {one_line(error)} ({one_line(lost)}). What is finished is recorded; run the "
                "same command again, leaving out what failed: job.kernels=[…]"
            ) from error


def _wishes(cases: Iterable[Case]) -> list[Wish]:
    """Return the indices of these cases that a model must select."""
    return sorted(
        {
            (c.index, c.block, c.sparsity, c.last)
            for c in cases
            if c.op == SPARSE and of_model(c.index) and c.block is not None and c.sparsity is not None
        }
    )
