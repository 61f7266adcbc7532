"""What a method's author gets wrong shows: the line says where, the record holds the traceback, debug=true prints it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.pool.reference import pool_one
from attention_kernels.selection import row_budget
from attention_kernels.sparse_attention import resolve_kernel

from harness.core.errors import UserError
from harness.core.mistakes import as_user_error, in_words, note_origin, origin
from harness.models.kernel_choice import check_interpreter
from harness.study.resume import Attempt
from methods.block_topk import BlockTopK
from methods.parts.pooling import pool_blocks
from methods.parts.top_p import top_p_mask

Command = Callable[..., int]
HERE = "tests/harness/measure/test_mistakes.py"


def line_of(text: str) -> int:
    """The number of the line of this file that begins with a text."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))


def select_with_another_pool(self: Any, x: Any) -> BlockIndex:
    pool_blocks(x.k, 64, "avg")  # type: ignore[arg-type]
    raise NotImplementedError


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results" / "toy" / "records" / f"{kind}.jsonl").read_text().splitlines()]


def test_a_mistake_in_select(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BlockTopK, "select", select_with_another_pool)
    assert command(*toy, "samples=1", "checks=false", "report=false", "debug=true") == 1
    failed = records(tmp_path, "cells")[-1]
    place = f"{HERE}:{line_of('pool_blocks(x.k')}"
    assert failed["status"] == "failed"
    assert failed["reason"] == f"ValueError: how=avg: must be one of mean, max, min ({place})"
    assert failed["traceback"].startswith('Traceback (most recent call last):\n  File "harness/')
    assert f'File "{HERE}", line {line_of("pool_blocks(x.k")}, in select_with_another_pool' in failed["traceback"]
    assert (
        'File "kernels/attention_kernels/pool/reference.py"' in failed["traceback"]
        and str(Path.home()) not in failed["traceback"]
    )
    out = capsys.readouterr().out
    assert f"must be one of mean, max, min ({place})" in out and "in select_with_another_pool" in out
    (dense,) = {record["status"] for record in records(tmp_path, "cells") if record["identity"]["method"] == "dense"} - {
        "running"
    }
    assert dense == "ok"


def test_a_mistake_before_anything_is_measured(
    command: Command, toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def knobs(self: Any) -> dict[str, Any]:
        return {}["pool"]  # type: ignore[no-any-return]

    monkeypatch.setattr(BlockTopK, "knobs", knobs)
    assert command(*toy) == 2
    place = f"{HERE}:{line_of('return {}[')}"
    assert capsys.readouterr().err == f"error: KeyError: 'pool' ({place}); debug=true shows the traceback\n"
    assert command(*toy, "debug=true") == 2
    line, *traceback = capsys.readouterr().err.splitlines()
    assert line == f"error: KeyError: 'pool' ({place})" and traceback[-1] == "KeyError: 'pool'"


def test_a_bug_of_the_harness_is_said_to_be_one(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.jobs import command as front

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front, "run_job", None)
    assert command("job=report") == 1
    assert "a fault of this program, not of your input" in capsys.readouterr().err


def test_a_value_error_of_python_is_no_message() -> None:
    """A method's own says what would be right; one of a wrong unpacking needs its place."""
    with pytest.raises(ValueError) as unpacked:
        _one, _two = (1, 2, 3)
    assert str(as_user_error(unpacked.value)).startswith("ValueError: too many values to unpack")
    with pytest.raises(ValueError) as told:
        pool_one(torch.zeros(2, 2), 0, "mean")
    assert str(as_user_error(told.value)) == "block=0: must be at least 1 token"
    assert as_user_error(UserError("a")).args == ("a",)


def test_where_an_error_comes_from_stays_when_its_frames_are_gone() -> None:
    with Attempt() as attempt:
        torch.zeros(2)[5]
    assert attempt.error is not None
    known = origin(attempt.error)
    attempt.error.__traceback__ = None
    note_origin(attempt.error)
    assert origin(attempt.error) == known and "torch.zeros(2)[5]" in known.traceback
    deep = RecursionError("x" * 100_000)
    assert len(origin(deep).traceback) <= 20_000 and in_words(KeyError("avg")) == "KeyError: 'avg'"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: pool_blocks(x, 4, "avg"), "how=avg: must be one of mean, max, min"),  # type: ignore[arg-type]
        (lambda x: pool_blocks(x, 0, "max"), "block=0: must be at least 1 token"),
        (lambda x: pool_blocks(x[0], 4, "max"), r"x has shape \(4,\): expected \[...,P,D\] with at least one token"),
        (lambda x: row_budget(1.5, 64, 64, 16, 16), "density=1.5: must be at least 0 and at most 1"),
        (lambda x: top_p_mask(x, x > 0, 90), "share=90: must be at least 0 and at most 1"),
    ],
)
def test_parts_say_what_they_take(call: Callable[[torch.Tensor], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(4, 4))


def test_what_select_may_return() -> None:
    with pytest.raises(TypeError, match="select returned a Tensor: it must be a BlockIndex, a ColumnIndex, a SkipRule or None"):
        resolve_kernel("auto", torch.zeros(2), device=torch.device("cpu"), dtype=torch.float32, head_dim=16, heads=2)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there kernels run as they are")
def test_the_interpreter_of_triton_refuses_bfloat16_before_the_model_is_loaded(
    command: Command, toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.measure import sweep

    monkeypatch.setattr(sweep, "load_quietly", lambda config: pytest.fail("loaded"))
    assert command(*toy, "dtype=bfloat16", "kernel=triton") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: kernel=triton with dtype=bfloat16: it would run in Triton's interpreter (TRITON_INTERPRET=1)"
    )
    assert line.endswith("use float32 or float16")
    for kernel, dtype in (("auto", torch.bfloat16), ("triton", torch.float16), ("triton", torch.float32)):
        check_interpreter({"kernel": kernel}, dtype, torch.device("cpu"))
    monkeypatch.delenv("TRITON_INTERPRET")
    check_interpreter({"kernel": "triton"}, torch.bfloat16, torch.device("cpu"))
