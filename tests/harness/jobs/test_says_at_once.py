"""Work that takes long says so before it begins, and says nothing where progress is turned off."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.core.errors import UserError
from harness.measure import sweep

Command = Callable[..., int]
STOP = "no model is needed to see what is said before it is loaded"


@pytest.mark.parametrize("job", [["job=evaluate"], ["job=maps"], ["job=distill", "method=seer", "job.lengths=[256]"]])
def test_the_model_is_named_before_it_is_loaded(
    command: Command, toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job: list[str]
) -> None:
    def stop(*_: object) -> None:
        raise UserError(STOP)

    monkeypatch.setattr(sweep, "load_quietly", stop)
    for progress, said in (("true", "loading toy\n"), ("false", "")):
        assert command(*toy, *job, f"progress={progress}") == 2
        shown = capsys.readouterr()
        planned = [line for line in shown.out.splitlines(keepends=True) if line.startswith(("study=", "no rate measured yet"))]
        assert shown.out == "".join(planned) + said and shown.err == f"error: {STOP}\n"
        assert len(planned) == (2 if said and job == ["job=evaluate"] else 0)
