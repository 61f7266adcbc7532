"""experiment=ttft on a toy model: dense attention, methods as asked and as released, and a prefill without attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.measure.latency.limits import TimingLimits, timing_limits
from harness.study.store import Store
from tests.harness.measure.study_files import board, lines

Command = Callable[..., int]
QUICK = ("model=hf", "model.name=toy", "model.chat_template=false", "device=cpu", "latency_repeats=1")


def test_the_experiment(command: Command, brief_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("length=768", "block_size=16", "job.layers=1")
    arguments = ["experiment=ttft", *QUICK, f"model.path={brief_folder}", *small]
    assert command("-m", *arguments, "method=block_topk") == 0
    said = capsys.readouterr()
    assert said.err == "as_released=true: block_topk has no release to follow, and is passed over\n"
    assert "limit" in said.out and "what is beyond is noise" in said.out
    _, _, notes = said.out.partition("none: ")
    assert all(len(line) < 80 for line in notes.partition("wrote ")[0].splitlines())  # no terminal breaks a word of them
    assert command(*arguments, "method=streaming_llm", "as_released=true") == 0
    study = tmp_path / "results" / "ttft"
    timed = lines(study, "latency")
    arms = [(r["identity"]["method"], r["identity"]["sparsity"]) for r in timed]
    assert arms == [("dense", 0.0), ("block_topk", 0.9), ("streaming_llm", None)]
    for record in timed:
        names = ["baseline", "method", "no_attention"]
        names = [name for name in names if name != "method" or record["identity"]["method"] != "dense"]
        assert sorted(record["ttft_rounds"]) == names and all(len(times) == 1 for times in record["ttft_rounds"].values())
        assert record["no_attention_ttft_ms"] == pytest.approx(record["ttft_rounds"]["no_attention"][0])
        assert (record["attention_layers"], record["timed_layers"], len(record["dense"])) == (2, [1], 1)
    assert [r["prefill_density"] for r in timed if r["identity"]["sparsity"] == 0.9] == [pytest.approx(0.1, abs=2e-3)]
    for row in board(study):
        assert float(row["ttft_limit"]) == pytest.approx(
            float(row["dense_ttft_ms"]) / float(row["no_attention_ttft_ms"]), rel=1e-4
        )
        assert float(row["rest_ms"]) == pytest.approx(float(row["ttft_ms"]) - 2 * float(row["total_ms"]), rel=1e-2, abs=0.05)
        assert row["match"] == ("matched" if row["sparsity"] == "0.9" else "")
    capsys.readouterr()
    assert command(*arguments, "method=block_topk", "as_released=true") == 2, "the user's own is no sweep's"
    assert "as_released=true: method block_topk has no release to follow" in capsys.readouterr().err
    assert len(Store(study).latency.read()) == len(timed)


def limits(job: str = "latency", **options: object) -> TimingLimits:
    """The limits of a job with these options."""
    return timing_limits(20, 4.0, job, options, dense_kernel="sdpa")


def test_what_is_timed() -> None:
    assert limits() == limits(layers=None, dense_kernels="auto") == TimingLimits(20, 4.0)
    assert limits().identity == [20, 4.0], "as recorded before there was a choice"
    some = limits(layers=3, dense_kernels="default")
    assert (some.layers, some.dense_kernels, some.identity) == (3, ("sdpa",), [20, 4.0, 3, ("sdpa",)])
    assert limits(dense_kernels=["sdpa", "reference"]).dense_kernels == ("reference", "sdpa")
    assert limits("maps", layers=[0], dense_kernels="fa9") == TimingLimits(20, 4.0), "options of another job"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 0}, "job.layers=0: must be null or a whole number of at least 1 and at most"),
        ({"layers": True}, "job.layers=True: must be null or a whole number"),
        ({"dense_kernels": "fa9"}, "job.dense_kernels=fa9: must be auto .* or a list of: .*sdpa"),
        ({"dense_kernels": []}, r"job.dense_kernels=\[\]: must be auto"),
        ({"dense_kernels": ["sdpa", None]}, r"job.dense_kernels=\[sdpa,None\]: must be auto"),
        ({"dense_kernels": None}, "job.dense_kernels=None: must be auto"),
        ({"dense_kernels": {"sdpa": 1}}, "job.dense_kernels={'sdpa': 1}: must be auto"),
    ],
)
def test_refuses_what_cannot_be_timed(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        limits(**options)
