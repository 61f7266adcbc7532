"""The study: every case that has no record yet, lengths from short to long, each result written when it is there."""

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
from harness.core.settings import Settings
from harness.measure.context import one_line, progress_bar
from harness.measure.kernel_speed import timing
from harness.measure.kernel_speed.cases import BLOCK_MAP, FULL, SELECTION, SPARSE, Case
from harness.measure.kernel_speed.indices import ModelIndices, Wish, of_model, random_index
from harness.measure.kernel_speed.inputs import Work
from harness.measure.kernel_speed.method_selection import plain_layer_inputs, selector
from harness.measure.kernel_speed.options import grid, left_out
from harness.measure.kernel_speed.recorder import Recorder, title
from harness.measure.kernel_speed.timing import Result, Timer
from harness.measure.run import model_of
from harness.study.store import Store
from methods.parts.base import Method


class Study:
    """One command's work on a study of kernels."""

    def __init__(self, settings: Settings, store: Store, console: Console) -> None:
        self.settings, self.console = settings, console
        self.grid = grid(settings)
        self.timer = Timer(settings.device, settings.latency_repeats, settings.latency_seconds, self.grid.phase == "decode")
        self.log = Recorder(settings, self.grid, store, console)
        self.models: ModelIndices | None = None
        self._selectors: dict[tuple[str, int, float, bool], Method] = {}

    def go(self) -> int:
        """Time what is missing. Returns how many cases failed that another run might not."""
        for name, reason in left_out(self.settings, self.grid).items():
            text = reason if name in reason else f"{name}: {reason}"
            self.console.print(f"not timed: {text}", style="dim", markup=False, highlight=False, soft_wrap=True)
        cases = self.grid.cases()
        missing = self.log.missing(cases)
        self._prepare(missing)
        failed = 0
        with progress_bar(self.console, self.settings.progress) as bar:
            task = bar.add_task("kernels", total=len(cases), completed=len(cases) - len(missing))
            for (length, batch), here in groupby(missing, key=lambda c: (c.length, c.batch)):
                # Dense attention is timed again beside whatever is missing: a clock or a card may have changed since.
                dense = [c for c in cases if c.op == FULL and (c.length, c.batch) == (length, batch)]
                rest = [c for c in here if c.op != FULL]
                for some, results in self._at(length, batch, dense, rest, partial(bar.update, task)):
                    failed += sum(r.reason != "" and not r.final for r in results.values())
                    bar.advance(task, sum(c in missing for c in some))
        return failed

    def _prepare(self, missing: Sequence[Case]) -> None:
        """Load the model whose indices are wanted; a missing gate stops here and not in the middle."""
        if wishes := _wishes(missing):
            self.models = ModelIndices(self.settings, model_of(self.settings))
            self.models.check(wishes)
            self.log.about = self.models.about()

    # -- one length ----------------------------------------------------------------------------------------------------

    def _at(
        self, length: int, batch: int, dense: list[Case], rest: list[Case], say: Callable[..., Any]
    ) -> Iterable[tuple[list[Case], dict[Case, Result]]]:
        """Time the cases of one length and batch; yields each turn's when it is recorded."""
        say(description=f"{length:,} tokens: dense")
        fastest: tuple[float, str] | None = None
        try:
            work = self._draw(length, batch)
            results = timing.time_dense(dense, work, self.timer)
        except Exception as error:
            everything = dict.fromkeys([*dense, *rest], self._failed(error))
            self.log.write(everything, None)
            yield [*dense, *rest], everything
            return
        ran = {c.kernel: r.times[timing.TIMES_OF_ONE].median for c, r in results.items() if r.times and not r.wrong}
        if ran:
            fastest = min((ms, kernel) for kernel, ms in ran.items())
        self.log.write(results, fastest)
        yield dense, results
        no_model = self._model_prefill(length, rest)
        for _, group in groupby(rest, key=lambda c: c.turn):
            some = list(group)
            say(description=title(some[0]))
            try:
                results = self._turn(some, work, no_model)
            except Exception as error:
                results = dict.fromkeys(some, self._failed(error))
            self.log.write(results, fastest)
            yield some, results

    def _draw(self, length: int, batch: int) -> Work:
        settings = self.settings
        return Work.draw(
            self.grid.phase, self.grid.shape, batch, length, dtype=settings.dtype, device=settings.device, seed=settings.seed
        )

    def _model_prefill(self, length: int, cases: list[Case]) -> Exception | None:
        """Let the model select at this length; what went wrong, if anything did."""
        wishes = _wishes(cases)
        if not wishes or self.models is None:
            return None
        try:
            self.models.prefill(length, wishes)
        except Exception as error:
            self._failed(error)
            return error
        return None

    def _turn(self, cases: list[Case], work: Work, no_model: Exception | None) -> dict[Case, Result]:
        """Time cases that share their turn."""
        first = cases[0]
        with torch.inference_mode():
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
            select = self._selection(first, work) if first.selection else None
            return timing.time_sparse(cases, work, self._index(first, work), select, self.timer)

    def _selection(self, case: Case, work: Work) -> Callable[[], SparseIndex]:
        assert case.block is not None and case.sparsity is not None
        which = case.selection, case.block, case.sparsity, case.shared
        if which not in self._selectors:
            self._selectors[which] = selector(*which, self.grid.shape, seed=self.settings.seed, device=self.settings.device)
        method = self._selectors[which]
        inputs = plain_layer_inputs(method, work.q, work.k, work.scale)

        def select() -> SparseIndex:
            index = method.select(inputs)
            if index is None or isinstance(index, SkipRule):
                raise ValueError(f"method {case.selection} asks for dense attention: it selects nothing")
            return index

        return select

    def _index(self, case: Case, work: Work) -> BlockIndex:
        assert case.block is not None and case.sparsity is not None
        heads = self.grid.shape.kv_heads if case.shared else self.grid.shape.heads
        if of_model(case.index):
            assert self.models is not None
            index = self.models.get(case.length, (case.index, case.block, case.sparsity), heads)
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
        )

    def _failed(self, error: Exception) -> Result:
        try:
            return timing.failed(error, self.settings.device)
        except RuntimeError as lost:
            raise UserError(
                f"the device can't go on after: {one_line(error)} ({one_line(lost)}). What is finished is recorded; run the "
                "same command again, leaving out what failed: job.kernels=[…]"
            ) from error


def _wishes(cases: Iterable[Case]) -> list[Wish]:
    """The indices of these cases that a model must select."""
    return sorted(
        {
            (c.index, c.block, c.sparsity)
            for c in cases
            if c.op == SPARSE and of_model(c.index) and c.block is not None and c.sparsity is not None
        }
    )
