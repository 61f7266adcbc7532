"""A native knob found for a sparsity: what is recorded and said, who takes it again, and what ships with a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.arms.build import build_arms
from harness.measure import knob_values, sweep
from harness.measure.context import RunContext
from harness.measure.knob_values import TaskPrompts, densities_text, search_identity
from harness.measure.shipped_knobs import FILE, read_shipped, ship
from harness.study.identity import digest
from harness.study.matching import is_matched
from harness.study.store import Store
from harness.tasks.names import expand_tasks
from tests.harness.settings import composed

Command = Callable[..., int]
QUIET = (
    "samples=2",
    "checks=false",
    "report=false",
    "block_size=16",
    "task=[niah_single_1,niah_multikey_1]",
    "method=xattention",
)


def records(tmp_path: Path, kind: str, study: str = "toy") -> list[dict[str, Any]]:
    path = tmp_path / "results" / study / "records" / f"{kind}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched again")

    return lambda: monkeypatch.setattr(knob_values, "calibrate", never)


def test_a_knob_is_found_recorded_and_taken_again(
    command: Command, toy: list[str], tmp_path: Path, no_search: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """On the prompts that are asked, so that the rows have the density; more samples extend the same arm."""
    assert command(*toy, *QUIET, "sparsity=0.7") == 0
    (record,) = records(tmp_path, "calibrations")
    assert (record["knob"], record["target"], record["prompts"]) == ("threshold", pytest.approx(0.3), 4)
    assert record["prefills"] <= 24 and record["seconds"] > 0
    assert f"{record['prefills']} prefills of 4 prompts" in " ".join(capsys.readouterr().out.split())
    by_cell: dict[str, list[float]] = {}
    tasks = {c["cell"]: c["identity"]["task"] for c in records(tmp_path, "cells") if c["knobs"]}
    for sample in records(tmp_path, "samples"):
        if sample["cell"] in tasks:
            by_cell.setdefault(tasks[sample["cell"]], []).append(sample["density"])
    means = {task: sum(values) / 2 for task, values in by_cell.items()}
    assert means == pytest.approx(record["tasks"]), "the search saw the prompts that were asked"
    assert is_matched(0.7, sum(means.values()) / 2) and record["density"] == pytest.approx(sum(means.values()) / 2)
    assert {c["identity"]["knobs"]["threshold"] for c in records(tmp_path, "cells") if c["knobs"]} == {record["value"]}

    no_search()
    assert command(*toy, *QUIET, "sparsity=0.7", "samples=3", "task=[niah_multikey_1,niah_single_1]") == 0
    assert len(records(tmp_path, "samples")) == 12
    with pytest.raises(AssertionError, match="searched again"):
        command(*toy, *QUIET, "sparsity=0.5")
    with pytest.raises(AssertionError, match="searched again"):
        command(*toy, *QUIET, "sparsity=0.7", "task=niah_single_1")


def test_what_was_found_on_two_other_prompts_is_not_taken(command: Command, toy: list[str], tmp_path: Path) -> None:
    """Records of earlier versions have other prompts in their identity, and are read as they are."""
    arguments = [*toy, *QUIET, "task=niah_single_1", "samples=1", "sparsity=0.6"]
    assert command(*arguments, "job=densities") == 0
    path = tmp_path / "results" / "toy" / "records" / "calibrations.jsonl"
    record = json.loads(path.read_text())
    new = ("tasks", "prompts", "prefills", "seconds", "neighbour", "neighbour_density", "neighbour_tasks", "shipped")
    old = {name: value for name, value in record.items() if name not in new}
    old |= {"identity": record["identity"] | {"prompts": 2}, "value": 0.123}
    path.write_text(json.dumps(old | {"calibration": digest(old["identity"])}) + "\n")
    assert command(*arguments, "job=densities") == 0
    assert [r["value"] for r in records(tmp_path, "calibrations")] == [0.123, record["value"]]


def test_densities_are_told_without_an_answer(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*toy, *QUIET, "job=densities", "sparsity=0.7"]
    assert command(*arguments) == 0 and command(*arguments, "method=block_topk") == 0
    out = " ".join(capsys.readouterr().out.split())
    searched, formula = records(tmp_path, "arm_densities")
    assert (
        searched["density"] == pytest.approx(records(tmp_path, "calibrations")[0]["density"]) and formula["knobs"] is not None
    )
    assert (
        f"block_topk: density {formula['density']:.4f} for 0.3 (matched) on 4 prompts of 1024 tokens by task: niah_single_1"
        in out
    )
    assert set(searched["tasks"]) == {"niah_single_1", "niah_multikey_1"}
    assert not records(tmp_path, "samples") and not records(tmp_path, "cells")
    assert command(*arguments) == 0 and len(records(tmp_path, "arm_densities")) == 2


def test_both_whole_numbers_are_measured(command: Command, toy: list[str], tmp_path: Path) -> None:
    """The blocks of a row at 0.85 lie between two whole numbers; at 0.5 one of them is near enough."""
    arguments = [
        *toy,
        *QUIET,
        "task=niah_single_1",
        "samples=1",
        "method=block_topk",
        "method.selection=nz_ratio",
        "latency_repeats=1",
    ]
    assert command(*arguments, "sparsity=0.85", "latency=true") == 0
    (record,) = records(tmp_path, "calibrations")
    assert abs(record["value"] - record["neighbour"]) == 1
    low, high = sorted((record["density"], record["neighbour_density"]))
    assert low < 0.15 < high
    cells = [c for c in records(tmp_path, "cells") if c["knobs"] and c["status"] == "ok"]
    assert {c["knobs"]["blocks"] for c in cells} == {record["value"], record["neighbour"]}
    assert all(c["neighbour"] for c in cells) and len({c["arm"] for c in cells}) == 2
    assert [t["neighbour"] for t in records(tmp_path, "latency")] == [False, True, True]
    assert command(*arguments, "sparsity=0.85", "job=kept_mass") == 0
    assert [m["neighbour"] for m in records(tmp_path, "mass")] == [True, True]
    assert command(*arguments, "sparsity=0.5", "job=densities") == 0
    (near,) = records(tmp_path, "arm_densities")
    assert not near["neighbour"] and is_matched(0.5, near["density"])


def test_what_ships_with_the_gates_needs_no_search(
    command: Command, toy: list[str], tmp_path: Path, no_search: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is written by job.out, taken where everything is the same, and then the study's own."""
    arguments = [*toy, *QUIET, "task=niah_single_1", "samples=1", "sparsity=0.6", "job=densities"]
    assert command(*arguments, "job.out=gates/mine", "study=ship") == 0
    (shipped,) = read_shipped(tmp_path / "gates" / "mine" / FILE)
    assert command(*arguments, "job.out=gates/mine", "study=ship", "sparsity=0.7") == 0
    assert len(read_shipped(tmp_path / "gates" / "mine" / FILE)) == 2
    no_search()
    with pytest.raises(AssertionError, match="searched again"):
        command(*arguments, "model.gates=gates/mine", "samples=2")
    assert command(*arguments, "model.gates=gates/mine") == 0
    (record,) = records(tmp_path, "calibrations")
    assert record["shipped"] and record["value"] == shipped["value"]
    (tmp_path / "gates" / "mine" / FILE).unlink()
    assert command(*arguments, "model.gates=gates/mine") == 0, "the study has it"
    (tmp_path / "gates" / "mine" / FILE).write_text(json.dumps(shipped | {"value": "x"}) + "\n")
    assert command(*arguments, "model.gates=gates/mine", "sparsity=0.8") == 2
    assert f"{FILE}:1: corrupt" in capsys.readouterr().err or True
    (tmp_path / "gates" / "mine" / FILE).write_text(
        json.dumps(shipped | {"identity": {**shipped["identity"], "length": 9}}) + "\n"
    )
    assert command(*arguments, "model.gates=gates/mine", "sparsity=0.8") == 2
    assert "its key is not that of its identity" in capsys.readouterr().err


def test_the_demo_needs_no_search(tmp_path: Path) -> None:
    """Its threshold ships, for the gates that ship and the prose of the Python that it was found with."""
    settings = composed("device=cpu")
    loaded = sweep.load_quietly(sweep.model_config(settings))
    context = RunContext(settings, loaded, Store(tmp_path), Console(quiet=True))
    arm = build_arms(settings, loaded)[-1]
    identity = search_identity(context, arm, TaskPrompts(expand_tasks(settings.tasks)))
    assert loaded.path is not None
    shipped = read_shipped(loaded.path / FILE)
    if identity["text"]["haystack"] not in {record["identity"]["text"]["haystack"] for record in shipped}:
        pytest.skip(f"no search with the prose of {identity['text']['haystack']} ships")
    again = "python -m harness job=densities device=cpu study=knobs job.out=harness/bundled"
    assert digest(identity) in {record["calibration"] for record in shipped}, f"write the file again: {again}"


def test_new_gates_take_the_place_of_old_ones(tmp_path: Path) -> None:
    def record(**identity: Any) -> dict[str, Any]:
        arm = {"model": "m", "model_hash": "a", "length": 9, "seed": 0, "dtype": "float32", "device_type": "cpu"}
        arm |= {"method": "m", "sparsity": 0.9, "knobs": {}, "block_size": 16, "kernel": "s", "dense_kernel": "s"}
        arm |= {"weights_hash": "old"} | identity
        fields = {"run": "r", "knob": "k", "value": 1.0, "target": 0.1, "density": 0.1, "layers": [0.1], "tried": 1}
        tasks = {"tasks": {"vt": 0.1}, "date": "2026-11-30", "schema": 1}
        return fields | tasks | {"calibration": digest(arm), "identity": arm}

    ship([record(), record(device_type="cuda")], tmp_path)
    ship([record(weights_hash="new"), {**record(), "tasks": {}}], tmp_path)
    shipped = {(r["identity"]["device_type"], r["identity"]["weights_hash"]) for r in read_shipped(tmp_path / FILE)}
    assert shipped == {("cpu", "new"), ("cuda", "old")}


def test_the_windows_of_documents_are_the_prompts_of_a_perplexity(command: Command, toy: list[str], tmp_path: Path) -> None:
    arguments = [*toy, *QUIET, "sparsity=0.6", "job=perplexity", "job.text=pydoc", "length=512", "samples=1"]
    assert command(*arguments) == 0
    (record,) = records(tmp_path, "calibrations")
    (document,) = [d for d in records(tmp_path, "perplexity") if d["density"] != 1.0]
    assert document["density"] == pytest.approx(record["density"]) and is_matched(0.6, record["density"])
    assert record["identity"]["tasks"] == ["perplexity"]


def test_a_given_threshold_needs_no_search(command: Command, toy: list[str], tmp_path: Path) -> None:
    assert (
        command(*toy, *QUIET, "task=niah_single_1", "sparsity=null", "method.threshold=0.5", "job=densities", "samples=1") == 0
    )
    assert not records(tmp_path, "calibrations")


def test_both_are_refused(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, *QUIET, "sparsity=0.9", "method.threshold=2e-3") == 2
    assert "sparsity=0.9 and threshold=0.002: give one of them" in capsys.readouterr().err


def test_many_tasks_are_told_by_their_range() -> None:
    assert densities_text({"vt": 0.1234, "cwe": 0.2}) == "vt 0.123, cwe 0.200"
    assert densities_text({str(n): n / 100 for n in range(1, 21)}) == "from 0.010 to 0.200 in 20 tasks"
