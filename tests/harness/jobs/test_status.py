"""What is said before a sweep starts, and how far it is while it runs: job=status, from records and the state of processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.jobs.announce_workers import worker_site
from harness.jobs.plan import estimate_line, planned_by
from harness.report.status import status_of, tail
from harness.report.status_text import summary_line
from harness.study import provenance
from harness.study.planned import DOCUMENTS, SAMPLES, TIMINGS, Planned
from harness.study.rates import Estimate
from harness.study.running import Doing, Running
from harness.study.schema import CellRecord, Status
from harness.study.store import Store
from tests.harness.settings import merged
from tests.harness.study.test_rates import identity, measured
from tests.harness.study.test_running import leave, state

Command = Callable[..., int]
RESULTS = Path(__file__).resolve().parents[3] / "results"
REASON = f"out of memory{', as a whole line says' * 3}"
SWEEP = ("-m", "method=block_topk,streaming_llm", "study=toy")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of which three arms have a sample of two tasks each."""
    for number, method in enumerate(("dense", "block_topk", "streaming_llm")):
        for task in ("niah_single_1", "niah_single_2"):
            about = identity(method, task, 0.5 if number else 0.0)
            measured(tmp_path / "results" / "toy", f"{method}-{task}", about, [number + 2], ends=9)
    return tmp_path / "results" / "toy"


def cell_states(study: Path, method: str) -> list[dict[str, Any]]:
    """The last states of the cells of a method."""
    return [cell for cell in Store(study).latest_cells().values() if cell["identity"]["method"] == method]


def test_a_sweep_says_what_it_is_and_what_is_recorded(
    command: Command,
    toy: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    blank_pictures: None,
) -> None:
    sweep = [*toy, *SWEEP, "report=false"]
    assert command(*sweep, "samples=1") == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0] == "study=toy: 2 jobs, 3 cells and 3 samples; nothing of it is recorded yet"
    assert first[1].startswith("no rate measured yet on cpu (") and first[1].endswith(" is not known")
    assert first[2] == "loading toy"
    plans: list[Sequence[Planned]] = []
    monkeypatch.setattr(Running, "enter", lambda self, folder, plan=(): plans.append(plan))
    assert command(*sweep, "samples=2") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "study=toy: 2 jobs, 3 cells and 6 samples; recorded already: 0 cells and 3 samples"
    assert said[1].startswith("about ") and ", at the pace of 3 measurements in this study on cpu (" in said[1]
    plan = next(plan for plan in plans if plan)
    assert [(p.method, p.count, p.recorded) for p in plan] == [(m, 2, 1) for m in ("dense", "block_topk", "streaming_llm")]
    assert command(*sweep, "samples=2") == 0
    assert capsys.readouterr().out.splitlines()[0] == "study=toy: 2 jobs, 3 cells and 6 samples; all of it is recorded"
    assert command("job=status", "study=toy") == 0
    assert capsys.readouterr().out == "study=toy: nothing runs\n3 of 3 cells done, 6 of 6 samples\n"


def test_how_far_a_study_is(study: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now, store = time.time(), Store(study)
    dense, sparse = cell_states(study, "dense"), cell_states(study, "block_topk")
    just, before = provenance.now(), datetime.fromtimestamp(now - 60, UTC).isoformat()  # one that no process tells of yet
    running = ((dense[0], just), (dense[1], just), (sparse[1], before))
    for cell, status, date in ((sparse[0], Status.FAILED, just), *((c, Status.RUNNING, date) for c, date in running)):
        failure = {"reason": REASON, "traceback": "Traceback\n  line 7\nthe last line\n"} if status == Status.FAILED else {}
        store.cells.append(CellRecord(**cell | failure | {"status": status, "summary": {}, "date": date}))
    cells = (*dense, *sparse, *cell_states(study, "streaming_llm"))
    plan = [_planned(cell, count=10) for cell in cells]
    doing = Doing("dense 1024", 1024, "niah_single_2", 4, 9, 0, now - 8, now, (1, 2), {dense[0]["cell"]: (4, 9)})
    alive = Running()
    alive.enter(study, plan)
    parent = state(pid=os.getpid(), workers=2, began=now - 60, wrote=now)
    leave(study, replace(parent, plan=alive.plans[study]), "a-1.json")
    leave(study, replace(parent, host="node2", host_id="0" * 12, workers=0, pid=5, doing=doing), "node2-5.json")
    log = tmp_path / "worker.log"
    log.write_text("first\n\nsecond\nthird\x1b[1m\n")
    leave(
        study, state(host="node1", log=str(log), doing=replace(doing, text="x" * 99, cells={}, done=0, total=0)), "node1-1.json"
    )
    capsys.readouterr()
    assert command("job=status", "study=toy", "lines=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "study=toy: running in 1 process; 1 process died: the same command carries on"
    assert lines[1] == "0 of 6 cells done, 10 of 60 samples; 2 running, 1 failed, 1 stopped, 2 to come"
    assert lines[2].startswith("about ") and lines[2].endswith(" left")
    table = [line.split() for line in lines[3:7]]
    assert table[0] == ["process", "does", "done", "for", "left"]
    assert any(row[1:5] == [str(os.getpid()), "waits", "for", "2"] for row in table)
    assert any(" ".join(row).startswith("node2 5 dense, 1,024, niah_single_2 (job") for row in table)
    assert lines[7].startswith(f"node1 {state().pid} died: no such process on this host, it last wrote ")
    assert lines[8:10] == ["  second", "  third\\x1b[1m"]
    assert lines[10] == f"failed: block_topk 0.5, 1,024, {sparse[0]['identity']['task']}: {REASON}"
    assert lines[11:] == ["    line 7", "  the last line"] and max(map(len, lines[3:7])) <= 80
    assert command("job=status") == 0
    (line,) = capsys.readouterr().out.splitlines()  # a study, however long it is
    assert line.startswith("toy: running in 1 process; 1 process died: ") and len(line) > 80
    for path in (study / "running").glob("*"):
        path.unlink()
    assert command("job=status") == 0
    assert capsys.readouterr().out == "nothing runs on a study of results\n"


@pytest.mark.parametrize(("count", "ends"), [(3, "4 in b, 4 in c"), (4, "4 in c and 1 other study"), (5, "2 other studies")])
def test_a_pace_names_three_studies_and_counts_the_others(count: int, ends: str) -> None:
    estimated = Estimate(60.0, [], dict.fromkeys("abcde"[:count], 4))
    left = [Planned(SAMPLES, "toy", {"length": 1024, "method": "any"})]
    line = estimate_line(estimated, left, "", 1, "own")
    assert line.startswith("about 1 min, at the pace of 4 measurements in a, 4 in b, ") and line.endswith(ends)


def test_a_study_of_training_has_steps(tmp_path: Path) -> None:
    (tmp_path / "records").symlink_to(RESULTS / "gates_smollm2" / "records")
    assert summary_line(status_of(Store(tmp_path))) == "no cells; 3 trainings, at step 799 at most"


def test_what_is_not_tried_again_has_failed(study: Path) -> None:
    cells, store = cell_states(study, "block_topk"), Store(study)
    for cell, kind in zip(cells, ("not_finite", "error"), strict=True):
        failed = {"status": Status.FAILED, "kind": kind, "summary": {}}
        store.cells.append(CellRecord(**cell | failed))
    alive = Running()
    alive.enter(study, [_planned(cell, count=10) for cell in cells])
    told = state(pid=os.getpid(), wrote=time.time(), plan=alive.plans[study])
    leave(study, told)
    assert summary_line(status_of(store)).endswith("; 1 failed, 1 to come; about 1 min left")
    leave(study, replace(told, command="python -m harness retry_failed=true"))
    assert "; 2 to come" in summary_line(status_of(store))


def _planned(cell: dict[str, Any], count: int) -> Planned:
    """What a command plans that extends a recorded cell."""
    identity = cell["identity"]
    arm = {name: identity[name] for name in ("length", "seed", "method", "sparsity")}
    return Planned(SAMPLES, identity["model"], arm, task=identity["task"], count=count, recorded=1)


def test_what_is_not_there_is_one_line(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("job=status", "study=none") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: study=none: nothing runs on it") and said.err.count("\n") == 1
    assert command("job=status", "results=none") == 0
    assert capsys.readouterr().out == "nothing runs on a study of none\n"
    assert command("job=status", "study=none", "lines=-1") == 2
    assert command("job=status", "method=dense") == 2


def test_a_study_that_has_just_begun(tmp_path: Path) -> None:
    plan = [Planned(SAMPLES, "toy", {"length": 8192, "method": "dense"}, task="vt", count=3)]
    own = Running()
    own.enter(tmp_path, plan)
    own.write()
    status = status_of(Store(tmp_path))
    assert (
        summary_line(status) == "0 of 1 cells done, 0 of 3 samples; 1 to come; time left: no rate measured yet at 8,192 tokens"
    )
    own.remove()
    assert summary_line(status_of(Store(tmp_path))) == "no cells are recorded"


def test_what_jobs_plan() -> None:
    seer = merged("method=seer", "sparsity=0.9", "task=vt", "samples=3")
    plan = planned_by(seer, "cpu")
    assert [(p.kind, p.method, p.count) for p in plan] == [
        (SAMPLES, "dense", 3),
        (SAMPLES, "seer", 3),
        (TIMINGS, "dense", 1),
        (TIMINGS, "seer", 1),
    ]
    assert plan[1].arm["device_type"] == "cpu" and plan[1].arm["dtype"] == "float32" and plan[1].arm["sparsity"] == 0.9
    assert [p.method for p in planned_by(merged("method=dense", "latency=false", "task=vt"))] == ["dense"]
    perplexity = planned_by(merged("job=perplexity", "method=seer"))
    assert {p.kind for p in perplexity} == {DOCUMENTS} and len(perplexity) == 2
    decoding = planned_by(merged("job=latency", "method=dense", "decode=quest"))
    assert [p.decode for p in decoding] == [None]
    assert planned_by(merged("job=distill", "method=seer")) == []
    released = planned_by(replace(seer, as_released=True, latency=False))[1]
    assert released.released and "sparsity" not in released.arm and released.knobs == {}


def test_where_workers_measure() -> None:
    assert worker_site({"devices": "cpu:3"}).workers == 3 and str(worker_site({"devices": "cpu:3"}).device).startswith("cpu (")
    ray = worker_site({"workers": 4, "gpus": 1})
    assert (ray.device, ray.device_type, ray.workers) == (None, "cuda", 4)


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 9000 + b"\n\xff last\n\n")
    assert tail(str(log), 1) == ["\ufffd last"] and tail(str(log), 0) == [] and tail("", 3) == []
