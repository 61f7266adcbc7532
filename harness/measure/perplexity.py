"""Perplexity of long documents, every arm on the same tokens.

One pass, the default: the first `length` tokens of a document in one prefill, the loss on all but the first, as in
SeerAttention's PG19 table. With `job.stride` whole documents, in windows of `length` tokens; each token counts once, in the
first window that reaches it. Every window begins with BOS where the tokenizer sets one. Nothing is decoded.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.arms.build import RunnableArm
from harness.core.activity import CURRENT
from harness.core.checks import whole_number_or_null
from harness.core.clock import elapsed_ms, mark, sync
from harness.core.device_memory import release_frames
from harness.core.errors import NotFiniteError, UserError
from harness.core.time_limit import time_limit
from harness.measure.cells import arm_label, is_passed_over, record_failure, record_state
from harness.measure.context import RunContext
from harness.measure.knob_values import OWN_PROMPTS
from harness.models.bridge import Bridge
from harness.models.loss import check_head, nll
from harness.study.columns import PERPLEXITY
from harness.study.failures import failures_of
from harness.study.identity import Cell, Samples
from harness.study.provenance import now
from harness.study.resume import Attempt, is_settled, missing_indices
from harness.study.schema import PerplexityRecord, Status
from harness.tasks import documents
from harness.tasks.documents import Document
from harness.tasks.tokenizer_hash import tokenizer_hash
from harness.tasks.tokens import sets_bos

VERSION = "1"
"""Raised when the same documents would give other numbers; part of every cell's identity."""


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + body) of a document, of which those from `first` on count."""

    start: int
    first: int


@dataclass(frozen=True)
class Texts:
    """The documents of a command, and what makes their numbers what they are (`data`, part of the cells' identity).

    name: what rows call them; rows of other documents, or of other windows, don't compare and don't share a picture. bos: the
    token that begins every window, or None; body: tokens of a window without it; stride: see the module, None for one pass.
    """

    name: str
    documents: list[Document]
    data: dict[str, Any]
    bos: int | None
    body: int
    stride: int | None


@dataclass(frozen=True)
class DocumentPrompts:
    """The windows of documents as what a method will prefill, each document for a task of its own."""

    texts: Texts

    def identity(self, context: RunContext) -> dict[str, Any]:
        """Return what determines the windows, but for the number of documents."""
        return {"tasks": [PERPLEXITY], "prompts": OWN_PROMPTS, "text": self.texts.data, "chat": False}

    def prompts(self, context: RunContext) -> dict[str, list[Sequence[int]]]:
        """Return the windows of each document, with BOS where it has one."""
        texts, bos = self.texts, [] if self.texts.bos is None else [self.texts.bos]
        prompts: dict[str, list[Sequence[int]]] = {}
        for document in texts.documents:
            spans = windows(len(document.ids), texts.body, texts.stride, bos=bool(bos))
            members = [[*bos, *document.ids[span.start : span.start + texts.body]] for span in spans]
            prompts.setdefault(document.name, []).extend(members)
        return prompts


def windows(tokens: int, body: int, stride: int | None, *, bos: bool) -> list[Window]:
    """Return the windows of a document of `tokens` ≥ `body` tokens, BOS not counted; the last one ends with the document.

    Without BOS the first token of a window has nothing before it: a window begins a token before those it counts, at least.
    """
    spans = [Window(0, 0 if bos else 1)]
    while stride is not None and spans[-1].start + body < tokens:
        end = spans[-1].start + body
        move = stride if bos else min(stride, body - 1)
        spans.append(Window(min(spans[-1].start + move, tokens - body), end))
    return spans


def check_options(options: dict[str, Any]) -> None:
    """Raise UserError for settings of the job that are wrong whatever the model."""
    for name in ("stride", "min_tokens"):
        whole_number_or_null(f"job.{name}", options[name], 1)


def read_texts(context: RunContext, options: dict[str, Any]) -> Texts:
    """Return the documents that the settings of the job (`text`, `stride`, `min_tokens`) ask for. Raises UserError where there
    is none of this length, or for a model whose loss can't be had."""
    length, tokenizer = context.length, context.loaded.tokenizer
    check_head(context.loaded)
    bos = int(tokenizer.bos_token_id) if sets_bos(tokenizer) else None
    body = length - (bos is not None)
    if body < 2:
        raise UserError(f"length={length}: must be at least {length - body + 2} for a loss")
    stride = whole_number_or_null("job.stride", options["stride"], 1, body)
    min_tokens = whole_number_or_null("job.min_tokens", options["min_tokens"], 1)
    text = documents.load_text(str(options["text"]), context.data.get("text_dir"))
    least = max(body, min_tokens or 0)
    chosen = documents.cut_documents(text, tokenizer, body, least, context.sample_count, whole=stride is not None)
    if not chosen:
        raise UserError(
            f"{text.name}: no document of {least} tokens; give longer ones, or a smaller length= or job.min_tokens="
        )
    if len(chosen) < context.sample_count:
        context.console.print(f"{len(chosen)} documents: no more of {text.name} have {least} tokens", style="dim")
    data = {"text": text.name, "tokenizer": tokenizer_hash(tokenizer), "least": least, "stride": stride}
    name = text.name + (f" from {least} tokens" if least > body else "") + ("" if stride is None else f" in steps of {stride}")
    return Texts(name, chosen, data, bos, body, stride)


def measure_perplexity(context: RunContext, arm: RunnableArm, texts: Texts) -> int:
    """Record the loss of an arm on the documents that its cell lacks. Returns 1 where that failed, else 0."""
    cell = Cell(arm.identity, Samples(PERPLEXITY, VERSION, texts.data, False))
    failures = failures_of(context.store.cells.read()).get(cell.id)
    if (told := is_passed_over(context, arm, cell, failures)) is not None:
        return told
    recorded_indices = {record["index"] for record in context.store.perplexity.read() if record["cell"] == cell.id}
    lacking = missing_indices(recorded_indices, len(texts.documents))
    if not lacking and is_settled(context.store.latest_cells().get(cell.id)):
        return 0
    record_state(context, arm, cell, Status.RUNNING, haystack=texts.name)
    finished = 0
    with Attempt() as attempt, context.progress() as progress, time_limit(context.cell_seconds):
        bar = progress.add_task(f"{arm_label(arm)} {context.length}", total=len(lacking))
        CURRENT.open_cells(context.length, {cell.id: len(lacking)})
        sparse_kernel, dense_kernel = context.kernels.sparse, context.kernels.dense
        with Bridge(context.loaded, arm.method, sparse_kernel=sparse_kernel, dense_kernel=dense_kernel) as bridge:
            for index in lacking:
                context.store.perplexity.append(_measure_document(context, bridge, cell, texts, index))
                finished += 1
                progress.advance(bar)
                CURRENT.count([cell.id])
    if attempt.error is not None:
        release_frames(attempt.error, context.loaded.device)
        label = f"perplexity with {arm_label(arm)}"
        return record_failure(context, arm, cell, attempt.error, label=label, haystack=texts.name, finished=finished)
    record_state(context, arm, cell, Status.OK, haystack=texts.name)  # gates are read from the documents' records
    return 0


def _measure_document(context: RunContext, bridge: Bridge, cell: Cell, texts: Texts, index: int) -> PerplexityRecord:
    """Return the loss of one document under the bridge's method, window by window."""
    document, device = texts.documents[index], context.loaded.device
    ids = torch.tensor(document.ids, dtype=torch.int64, device=device)
    bos = ids.new_tensor([] if texts.bos is None else [texts.bos])
    total = torch.zeros((), dtype=torch.float64, device=device)
    read = scored = 0
    bridge.reset()
    began = mark(device)
    for window in windows(len(ids), texts.body, texts.stride, bos=texts.bos is not None):
        part = torch.cat([bos, ids[window.start : window.start + texts.body]])
        first = len(bos) + window.first - window.start
        total += nll(context.loaded, part, first)
        read, scored = read + len(part), scored + len(part) - first
    ended = mark(device)
    sync(device)
    loss = float(total)
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss of {document.name} is NaN or infinite: a kernel, the dtype or the weights are at fault")
    return PerplexityRecord(
        cell=cell.id,
        run=context.run.run,
        index=index,
        document=document.name,
        tokens=scored,
        nll=loss,
        read=read,
        seconds=elapsed_ms(began, ended) / 1e3,
        density=_mean(bridge.prefill_densities()),
        token_density=_mean(bridge.prefill_densities(tokens=True)),
        kernels=sorted({name for layer in bridge.stats() for name in layer["kernel"].split("+")}),
        status=Status.OK,
        reason="",
        date=now(),
    )


def _mean(values: list[float]) -> float | None:
    """Return the mean, or None of nothing."""
    return statistics.fmean(values) if values else None
