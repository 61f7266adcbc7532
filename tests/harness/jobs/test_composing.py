"""Configs of a sweep's jobs: those that Hydra makes, in a fraction of its time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig, OmegaConf

from harness.jobs.composing import JobComposer, is_value
from harness.jobs.worker import compose_job

JOBS = [
    ["method=block_topk", "sparsity=0.5", "length=8192", "task=[niah_single_1,vt]", "method.last=1"],
    ["method=block_topk", "sparsity=null", "length=1024", "study='a b'", "study=c", "+method.x=1"],
    ["method=streaming_llm", "sparsity=0.5", "data.dir=${results}", "hydra.verbose=true", "model.chat_template=false"],
    ["experiment=bundled_cpu", "results=r", "~decode.name"],
]


def test_a_job_is_as_hydra_composes_it() -> None:
    composed: list[list[str]] = []

    def compose(arguments: list[str]) -> DictConfig:
        composed.append(arguments)
        return compose_job(arguments)

    composer = JobComposer(compose)
    for job in [*JOBS, *JOBS]:
        own, hydras = OmegaConf.to_container(composer(job)), OmegaConf.to_container(compose_job(job))
        for config in (own, hydras):
            config["hydra"]["job"].pop("override_dirname")  # type: ignore[call-overload, index, union-attr]
        assert own == hydras, job
    assert len(composed) == len(JOBS), "each choice of groups once"
    assert composed[0] == ["method=block_topk"] and composed[1] == ["method=block_topk", "+method.x=1"]


def test_what_is_wrong_says_hydra() -> None:
    composer = JobComposer(compose_job)
    for job in (["sparsty=1"], ["method.none=1"], ["sparsity=[1"], ["method=gone", "sparsity=1"], ["model=3,4"]):
        with pytest.raises(Exception) as own:
            composer(job)
        with pytest.raises(type(own.value)) as hydras:
            compose_job(job)
        assert str(own.value) == str(hydras.value)


def test_a_config_is_a_job_s_own() -> None:
    composer = JobComposer(compose_job)
    first = composer(["task=[a]"])
    first.task.append("b")
    first.length = 7
    second = composer(["task=[a]"])
    assert list(second.task) == ["a"] and second.length != 7


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sparsity=1", True),
        ("method.last=2", True),
        ("method=x", False),
        ("hydra.verbose=true", False),
        ("+a=1", False),
        ("~a", False),
        ("hydra/launcher=ray", False),
        ("a@b=1", False),
        ("model=shape/custom", False),
    ],
)
def test_what_is_a_plain_value(argument: str, value: bool) -> None:
    assert is_value(argument) == value


def test_jobs_of_this_process_leave_nothing_behind(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "job=report", "study=none", "seed=0,1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: study=none")
    assert command("-m", "job=report", "study=none", "seed=0,1", "hydra.job.chdir=true") == 2, "as Hydra's own launcher"
