"""A knob found on a model's own prefills: within two per cent for every method without a formula, in at most six passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import methods
from harness.arms.calibration import PASSES, SUBSAMPLE, calibrate, densities_of, subsample
from harness.study.matching import is_matched
from tests.harness.tiny import shared, tokens
from tests.methods.support import ready

PROMPTS = {
    "first": [tokens(320, seed=1).tolist(), tokens(311, seed=2).tolist(), tokens(301, seed=3).tolist()],
    "second": [tokens(318, seed=4).tolist()],
}
SEARCHED = [
    *((name, {}) for name in methods.names() if methods.get(name).family == "threshold"),
    ("block_topk", {"selection": "threshold"}),
    ("sparge", {"rule": "topk"}),
]


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The prompts that the model was given, in order."""
    model, given = shared("llama").model, []
    forward = model.forward

    def watched(input_ids: torch.Tensor, **arguments: Any) -> Any:
        given.append(input_ids[0].tolist())
        return forward(input_ids=input_ids, **arguments)

    monkeypatch.setattr(model, "forward", watched)
    yield given


@pytest.mark.parametrize(("name", "knobs"), SEARCHED)
def test_a_knob_is_found_within_two_per_cent_in_six_passes(
    name: str, knobs: dict[str, Any], prefilled: list[list[int]]
) -> None:
    method = ready(name, block_size=16, sparsity=0.7, **knobs)
    knob = method.calibrates()
    assert knob is not None
    ticks: list[int] = []
    calibration = calibrate(shared("llama"), method, knob, PROMPTS, 0.3, on_prefill=lambda: ticks.append(1))
    assert is_matched(0.7, calibration.reached.density)
    assert len(prefilled) == calibration.prefills == len(ticks) <= PASSES * calibration.prompts == 24
    assert prefilled[0] == PROMPTS["first"][0] == prefilled[1], "a prompt of the subsample comes first"
    assert prefilled[-4:] == [ids for members in PROMPTS.values() for ids in members], "all of them last"
    assert getattr(method, knob.name) == calibration.reached.value
    again = densities_of(shared("llama"), method, PROMPTS)
    assert (again.density, again.tasks) == (
        pytest.approx(calibration.reached.density),
        pytest.approx(calibration.reached.tasks),
    )


def test_tasks_weigh_the_same() -> None:
    method = methods.build("xattention", block_size=16, threshold=0.5)
    reached = densities_of(shared("llama"), method, PROMPTS)
    alone = {task: densities_of(shared("llama"), method, {task: ids}).density for task, ids in PROMPTS.items()}
    assert reached.tasks == pytest.approx(alone) and reached.density == pytest.approx(sum(alone.values()) / 2)
    assert sum(reached.layers) / 2 == pytest.approx(reached.density)


def test_a_dense_first_layer_counts_in_the_density() -> None:
    """Of two layers the other keeps a fifth, and each value of a ladder has what its own anchor selected."""
    method = ready("kascade", block_size=16, sparsity=0.4, dense_first=True)
    knob = method.calibrates()
    assert knob is not None
    calibration = calibrate(shared("llama"), method, knob, PROMPTS, 0.6)
    assert is_matched(0.4, calibration.reached.density) and calibration.reached.layers[0] == 1.0
    assert calibration.tried == 1, "the ladders told it"


def test_one_prompt_is_a_set_of_its_own(prefilled: list[list[int]]) -> None:
    method = ready("flash_prefill", block_size=16, sparsity=0.6)
    knob = method.calibrates()
    assert knob is not None
    calibration = calibrate(shared("llama"), method, knob, {"one": PROMPTS["second"]}, 0.4)
    assert is_matched(0.6, calibration.reached.density) and len(prefilled) <= 6


@pytest.mark.parametrize(
    ("sizes", "counts"), [((1,), {0: 1}), ((4, 4), {0: 1, 1: 1}), ((100,) * 32, dict.fromkeys(range(0, 32, 2), 1))]
)
def test_the_subsample_is_small_and_spread_over_the_tasks(sizes: tuple[int, ...], counts: dict[int, int]) -> None:
    prompts = {str(task): [[task, number] for number in range(size)] for task, size in enumerate(sizes)}
    few = subsample(prompts)
    assert len(few) <= SUBSAMPLE
    assert {int(task): sum(name == task for name, _ in few) for task, _ in few} == counts
