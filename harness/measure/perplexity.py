"""Perplexity of long documents, every arm on the same tokens.

One pass, the default: the first `length` tokens of a document in one prefill, the loss on all but the first, as in
SeerAttention's PG19 table. With `job.stride` whole documents, in windows of `length` tokens; each token counts once, in the
first window that reaches it. Every window begins with BOS where the tokenizer sets one. Nothing is decoded.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from harness import tasks
from harness.arms.build import RunnableArm
from harness.core.checks import whole_number_or_null
from harness.core.clock import elapsed_ms, mark, sync
from harness.core.errors import UserError
from harness.measure.context import RunContext, one_line
from harness.models.bridge import Bridge
from harness.models.loss import check_head, nll
from harness.study import identity
from harness.study.identity import Cell
from harness.study.provenance import now
from harness.study.schema import PERPLEXITY, CellRecord, PerplexityRecord, Status
from harness.study.store import RecordError
from harness.tasks import documents
from harness.tasks.cache import tokenizer_hash
from harness.tasks.documents import Document

VERSION = "1"
"""Raised when the same documents would give other numbers; part of every cell's identity."""


@dataclass(frozen=True)
class Window:
    """Tokens [start, start + body) of a document, of which those from `first` on count."""

    start: int
    first: int


@dataclass(frozen=True)
class Texts:
    """The documents of a command, and what makes their numbers what they are (`data`, part of the cells' identity). `name`
    is what rows call them: rows of other documents, or of other windows, don't compare and don't share a picture."""

    name: str
    documents: list[Document]
    data: dict[str, Any]
    bos: int | None
    body: int
    stride: int | None


def windows(tokens: int, body: int, stride: int | None, *, bos: bool) -> list[Window]:
    """The windows of a document of `tokens` ≥ `body` tokens, BOS not counted. The last one ends with the document. Without BOS
    the first token of a window has nothing before it: a window begins a token before those it counts, at least."""
    found = [Window(0, 0 if bos else 1)]
    while stride is not None and found[-1].start + body < tokens:
        end = found[-1].start + body
        move = stride if bos else min(stride, body - 1)
        found.append(Window(min(found[-1].start + move, tokens - body), end))
    return found


def read(context: RunContext) -> Texts:
    """The documents that the settings ask for. Raises UserError where there is none of this length, or for a model whose
    loss can't be had."""
    settings, tokenizer = context.settings, context.loaded.tokenizer
    check_head(context.loaded)
    bos = int(tokenizer.bos_token_id) if tasks.sets_bos(tokenizer) else None
    body = settings.length - (bos is not None)
    if body < 2:
        raise UserError(f"length={settings.length}: must be at least {settings.length - body + 2} for a loss")
    stride = whole_number_or_null("job.stride", settings.options["stride"], 1, body)
    least = whole_number_or_null("job.min_tokens", settings.options["min_tokens"], 1)
    found = documents.text(str(settings.options["text"]), settings.data.get("text_dir"))
    least = max(body, least or 0)
    texts = documents.documents(found, tokenizer, body, least, settings.samples, whole=stride is not None)
    if not texts:
        raise UserError(
            f"{found.name}: no document of {least} tokens; give longer ones, or a smaller length= or job.min_tokens="
        )
    if len(texts) < settings.samples:
        context.console.print(f"{len(texts)} documents: no more of {found.name} have {least} tokens", style="dim")
    data = {"text": found.name, "tokenizer": tokenizer_hash(tokenizer), "least": least, "stride": stride}
    name = found.name + (f" from {least} tokens" if least > body else "") + ("" if stride is None else f" in steps of {stride}")
    return Texts(name, texts, data, bos, body, stride)


def measure(context: RunContext, arm: RunnableArm, texts: Texts) -> int:
    """Record the loss of an arm on the documents it lacks. Returns 1 where that failed, else 0."""
    cell = Cell(arm.identity, identity.Samples(PERPLEXITY, VERSION, texts.data, False))
    have = {r["index"] for r in context.store.perplexity.read() if r["cell"] == cell.id}
    lacking = identity.missing(have, len(texts.documents))
    last = context.store.latest_cells().get(cell.id, {}).get("status")
    if not lacking and last in (Status.OK, Status.GATED):
        return 0
    _note(context, arm, cell, texts, Status.RUNNING)
    try:
        with context.progress() as progress:
            bar = progress.add_task(f"{arm.identity.method} {context.settings.length}", total=len(lacking))
            bridge = Bridge(
                context.loaded, arm.method, sparse_kernel=context.settings.kernel, dense_kernel=context.settings.dense_kernel
            )
            with bridge:
                for index in lacking:
                    context.store.perplexity.append(_record(context, bridge, cell, texts, index))
                    progress.advance(bar)
    except RecordError:
        raise
    except Exception as error:  # out of memory, a kernel that fails, …: the sweep goes on, the next run tries again
        if context.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        _note(context, arm, cell, texts, Status.FAILED, one_line(error))
        context.complain(f"failed: perplexity with {arm.identity.method}: {one_line(error)}")
        return 1
    _note(context, arm, cell, texts, Status.OK)  # gates are read from the documents' records
    return 0


def _record(context: RunContext, bridge: Bridge, cell: Cell, texts: Texts, index: int) -> PerplexityRecord:
    """Run one document."""
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
    reason = "" if math.isfinite(loss) else "the loss is NaN or infinite: a kernel, the dtype or the weights are at fault"
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
        status=Status.GATED if reason else Status.OK,
        reason=reason,
        date=now(),
    )


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _note(context: RunContext, arm: RunnableArm, cell: Cell, texts: Texts, status: str, reason: str = "") -> None:
    context.store.cells.append(
        CellRecord(
            cell=cell.id,
            arm=arm.identity.id,
            pair=cell.pair,
            run=context.run.run,
            identity=cell.as_dict(),
            status=status,
            reason=reason,
            date=now(),
            knobs=arm.identity.knobs,
            haystack=texts.name,
        )
    )
