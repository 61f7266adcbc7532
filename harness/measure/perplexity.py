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
from harness.arms.build import Ready
from harness.core.clock import elapsed_ms, mark, sync
from harness.core.errors import UserError
from harness.measure.context import Bench, one_line
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


def read(bench: Bench) -> Texts:
    """The documents that the settings ask for. Raises UserError where there is none of this length, or for a model whose
    loss can't be had."""
    wanted, tokenizer = bench.wanted, bench.loaded.tokenizer
    check_head(bench.loaded)
    bos = int(tokenizer.bos_token_id) if tasks.sets_bos(tokenizer) else None
    body = wanted.length - (bos is not None)
    if body < 2:
        raise UserError(f"length={wanted.length}: must be at least {wanted.length - body + 2} for a loss")
    stride, least = _number(wanted.options, "stride", body), _number(wanted.options, "min_tokens")
    found = documents.text(str(wanted.options["text"]), wanted.data.get("text_dir"))
    least = max(body, least or 0)
    texts = documents.documents(found, tokenizer, body, least, wanted.samples, whole=stride is not None)
    if not texts:
        raise UserError(
            f"{found.name}: no document of {least} tokens; give longer ones, or a smaller length= or job.min_tokens="
        )
    if len(texts) < wanted.samples:
        bench.console.print(f"{len(texts)} documents: no more of {found.name} have {least} tokens", style="dim")
    data = {"text": found.name, "tokenizer": tokenizer_hash(tokenizer), "least": least, "stride": stride}
    name = found.name + (f" from {least} tokens" if least > body else "") + ("" if stride is None else f" in steps of {stride}")
    return Texts(name, texts, data, bos, body, stride)


def _number(options: dict[str, Any], name: str, most: int | None = None) -> int | None:
    value = options[name]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        up_to = "" if most is None else f" and at most {most}"
        raise UserError(f"job.{name}={value}: must be null or a whole number of at least 1{up_to}")
    return value


def measure(bench: Bench, each: Ready, texts: Texts) -> int:
    """Record the loss of an arm on the documents it lacks. Returns 1 where that failed, else 0."""
    cell = Cell(each.arm, identity.Samples(PERPLEXITY, VERSION, texts.data, False))
    have = {r["index"] for r in bench.store.perplexity.read() if r["cell"] == cell.id}
    lacking = identity.missing(have, len(texts.documents))
    last = bench.store.latest_cells().get(cell.id, {}).get("status")
    if not lacking and last in (Status.OK, Status.GATED):
        return 0
    _note(bench, each, cell, texts, Status.RUNNING)
    try:
        with bench.progress() as progress:
            bar = progress.add_task(f"{each.arm.method} {bench.wanted.length}", total=len(lacking))
            bridge = Bridge(
                bench.loaded, each.method, sparse_kernel=bench.wanted.kernel, dense_kernel=bench.wanted.dense_kernel
            )
            with bridge:
                for index in lacking:
                    bench.store.perplexity.append(_record(bench, bridge, cell, texts, index))
                    progress.advance(bar)
    except RecordError:
        raise
    except Exception as error:  # out of memory, a kernel that fails, …: the sweep goes on, the next run tries again
        if bench.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        _note(bench, each, cell, texts, Status.FAILED, one_line(error))
        bench.complain(f"failed: perplexity with {each.arm.method}: {one_line(error)}")
        return 1
    _note(bench, each, cell, texts, Status.OK)  # gates are read from the documents' records
    return 0


def _record(bench: Bench, bridge: Bridge, cell: Cell, texts: Texts, index: int) -> PerplexityRecord:
    """Run one document."""
    document, device = texts.documents[index], bench.loaded.device
    ids = torch.tensor(document.ids, dtype=torch.int64, device=device)
    bos = ids.new_tensor([] if texts.bos is None else [texts.bos])
    total = torch.zeros((), dtype=torch.float64, device=device)
    read = scored = 0
    bridge.reset()
    began = mark(device)
    for window in windows(len(ids), texts.body, texts.stride, bos=texts.bos is not None):
        part = torch.cat([bos, ids[window.start : window.start + texts.body]])
        first = len(bos) + window.first - window.start
        total += nll(bench.loaded, part, first)
        read, scored = read + len(part), scored + len(part) - first
    ended = mark(device)
    sync(device)
    loss = float(total)
    reason = "" if math.isfinite(loss) else "the loss is NaN or infinite: a kernel, the dtype or the weights are at fault"
    return PerplexityRecord(
        cell=cell.id,
        run=bench.run.run,
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


def _note(bench: Bench, each: Ready, cell: Cell, texts: Texts, status: str, reason: str = "") -> None:
    bench.store.cells.append(
        CellRecord(
            cell=cell.id,
            arm=each.arm.id,
            pair=cell.pair,
            run=bench.run.run,
            identity=cell.identity(),
            status=status,
            reason=reason,
            date=now(),
            knobs=each.arm.knobs,
            haystack=texts.name,
        )
    )
