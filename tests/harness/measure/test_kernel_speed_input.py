"""What a study of kernels refuses, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UserError
from harness.measure.kernel_speed.options import grid
from tests.harness.measure.kernel_study import SMALL, Command, study
from tests.harness.settings import composed, with_options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kernels": ["fast"]}, "job.kernels: fast is not known; choose from: reference, sdpa, triton"),
        ({"dense_kernels": ["fa9"]}, "job.dense_kernels: fa9 is not known; choose from: sdpa_flash, "),
        ({"shape": "gpt"}, "job.shape: gpt is not known; choose from: llama3_8b, "),
        ({"indices": ["seer", "best"]}, "job.indices: best is not known; choose from: uniform, uniform_shared, block_topk, "),
        ({"indices": ["dense"]}, "job.indices: dense is not known"),
        ({"selections": ["none"]}, "job.selections: none is not known; choose from: block_topk, "),
        ({"selections": ["blasst"]}, "job.selections: blasst is not known; choose from: block_topk, "),  # it selects nothing
        ({"indices": ["blasst"]}, "job.indices: blasst is not known"),
        ({"phase": "train"}, "job.phase: train is not known; choose from: prefill, decode, training"),
        ({"phase": "training", "kernels": ["fast"]}, "job.kernels: fast is not known; choose from: reference, sdpa, triton"),
        (
            {"phase": "decode", "kernels": ["reference"], "indices": ["seer"]},
            "job.indices: seer is not known; choose from: uniform, uniform_shared",
        ),
        ({"block_map": "fast"}, "job.block_map: fast is not known; choose from: null, auto, reference, triton"),
        ({"lengths": []}, "job.lengths=[]: must be one or more whole numbers of at least 16"),
        ({"sparsities": [0.5, 1]}, "job.sparsities=[0.5, 1]: must be one or more shares in [0, 1)"),
        ({"blocks": [24]}, "block_size=24: must be a multiple of 16"),
        ({"last": [-1]}, "job.last=[-1]: must be one or more whole numbers of query blocks"),
        (
            {"last": [2], "indices": ["moba"]},
            "job.last=[2]: method moba has no knob for full last rows; job.indices: uniform, ",
        ),
        ({"phase": "decode", "kernels": ["reference"], "last": [2]}, "job.last=[2]: a decode step has one query"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        grid(with_options(composed(*SMALL), **options))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_bad_input_is_one_line_of_the_command_and_writes_nothing(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argument, says in (
        ("job.length=[64]", "unknown setting 'job.length' (did you mean job.lengths?)"),
        ("job.blocks=[24]", "block_size=24: must be a multiple of 16"),
    ):
        assert command(*SMALL, argument) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and says in line
    assert not (tmp_path / "results").exists()


def test_missing_gates_stop_the_study_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights of seer for bundled at block size 80") as caught:
        study(tmp_path, indices=["seer"], blocks=[80])
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
