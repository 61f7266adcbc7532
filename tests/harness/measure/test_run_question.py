"""Runs of the toy model whose question comes after the context: rows, pairs, ids, pictures, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.measure import generate_batches as generating
from harness.measure import knob_values
from harness.report.figures.picture_rows import by_model
from tests.harness.measure.test_run import board, lines
from tests.harness.report.support import make_row
from tests.harness.tasks.test_longbench import line, write

Command = Callable[..., int]
FAR = ["method=tri_shape", "sparsity=0.8", "block_size=16", "method.last=32"]


def by_cell(study: Path, kind: str = "ok") -> dict[tuple[str, str], Any]:
    """The samples of every finished cell, by method and when it was asked."""
    cells = {c["cell"]: c["identity"] for c in lines(study, "cells") if c["status"] == kind}
    samples: dict[tuple[str, str], list[Any]] = {}
    for sample in lines(study, "samples"):
        identity = cells[sample["cell"]]
        samples.setdefault((identity["method"], identity.get("question", "seen")), []).append(sample)
    return samples


@pytest.mark.usefixtures("pictures")
def test_the_same_prompts_asked_in_three_ways(command: Command, toy: list[str], tmp_path: Path) -> None:
    study = tmp_path / "results" / "toy"
    assert command(*toy, *FAR, "report=false") == 0
    before = {kind: lines(study, kind) for kind in ("samples", "cells")}
    assert command("-m", *toy, *FAR, "question=after,reread,seen") == 0
    for kind, known in before.items():
        assert lines(study, kind)[: len(known)] == known, "what was seen stays as it was"
    samples = by_cell(study)
    assert set(samples) == {(m, q) for m in ("dense", "tri_shape") for q in ("seen", "after", "reread")}
    assert len(lines(study, "samples")) == 2 * 2 * 3

    def said(method: str, question: str) -> list[str]:
        return [s["prediction"] for s in sorted(samples[method, question], key=lambda s: s["index"])]

    assert said("dense", "seen") == said("dense", "after") == said("dense", "reread")
    assert said("tri_shape", "seen") != said("tri_shape", "after"), "its last rows were the question's"
    contexts = {q: [s["context"] for s in samples["tri_shape", q]] for q in ("seen", "after", "reread")}
    assert contexts["seen"] == [None, None] and contexts["after"] == contexts["reread"]
    for sample in samples["tri_shape", "after"]:
        assert 0.8 * sample["tokens"] < sample["context"] < sample["tokens"] - 8
    rows = [r for r in board(study) if r["task"] == "avg"]
    assert [(r["method"], r["question"]) for r in rows] == [
        (m, q) for q in ("seen", "after", "reread") for m in ("dense", "tri_shape")
    ]
    assert all((r["dense_accuracy"] != "") == (r["method"] == "tri_shape") and r["tasks"] == "1" for r in rows)
    assert len({r["density"] for r in rows if r["method"] == "tri_shape" and r["question"] != "after"}) == 1
    pictures = {p.name for p in study.glob("*.png")}
    assert {n.partition("_toy")[2].partition("_cpu")[0] for n in pictures if n.startswith("pareto_toy")} == {
        "",
        "-question-after-the-context",
        "-question-read-again",
    }


def test_the_tokens_are_the_same_and_the_checks_are_its_own(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    real = generating.generate

    def watched(loaded: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(([list(p) for p in prompts], kwargs["split"]))
        return real(loaded, prompts, *args, **kwargs)

    monkeypatch.setattr(generating, "generate", watched)
    arguments = [*toy, "task.tasks=[niah_single_1,niah_multikey_2]", "batch_tokens=100000", "report=false"]
    assert command("-m", *arguments, "question=seen,after") == 0
    (seen, none), (_, _), (after, split), (_, _) = given
    assert seen == after and none is None and len(split.contexts) == 4
    checks = [
        (c["arm"], c["identity"].get("question"), "question" in c["found"])
        for c in lines(tmp_path / "results" / "toy", "checks")
    ]
    assert [c[1:] for c in checks] == [(None, False)] * 2 + [("after", True)] * 2 and checks[0][0] == checks[2][0]


def test_a_threshold_is_found_on_what_the_method_prefills(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of contexts alone where the question comes later; reread and seen are whole prompts, and share one."""
    given: list[list[str]] = []
    real = knob_values.calibrate

    def watched(loaded: Any, method: Any, knob: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        given.append([loaded.tokenizer.decode(list(ids)) for ids in prompts["niah_single_1"]])
        return real(loaded, method, knob, prompts, *args, **kwargs)

    monkeypatch.setattr(knob_values, "calibrate", watched)
    arguments = [*toy, "method=xattention", "sparsity=0.5", "samples=1", "checks=false"]
    for questions in ("seen,reread,after", "after"):
        assert command("-m", *arguments, "report=false", f"question={questions}") == 0
    whole, contexts = given
    for prompt, context in zip(whole, contexts, strict=True):
        assert prompt.startswith(context) and prompt[len(context) :].lstrip().startswith("What is the special magic number")
    study = tmp_path / "results" / "toy"
    assert [c["identity"].get("question") for c in lines(study, "calibrations")] == [None, "after"]
    arms = {q: {s["cell"] for s in samples} for (m, q), samples in by_cell(study).items() if m == "xattention"}
    assert all(len(cells) == 1 for cells in arms.values()) and set(arms) == {"seen", "reread", "after"}


def test_a_task_without_its_question_is_passed_over(command: Command, toy: list[str], tmp_path: Path) -> None:
    """Its question is cut in two here: its cell fails, and the knob is found on the other task."""
    write(tmp_path / "mine", "qasper.jsonl", [line("qasper") | {"input": "why " * 900}])
    tasks = "task=[longbench_qasper,niah_single_1]"
    arguments = [*toy, tasks, f"data.dir={tmp_path / 'mine'}", "data.haystack=pydoc", "method=xattention", "sparsity=0.5"]
    assert command(*arguments, "samples=1", "checks=false", "report=false", "question=after") == 1
    (record,) = lines(tmp_path / "results" / "toy", "calibrations")
    assert list(record["tasks"]) == ["niah_single_1"]


def test_nothing_is_doubled_and_more_samples_extend(command: Command, toy: list[str], tmp_path: Path) -> None:
    study = tmp_path / "results" / "toy"
    arguments = [*toy, "question=after", "decode=quest", "decode_kernel=reference", "report=false"]
    assert command(*arguments) == 0
    before = lines(study, "samples")
    assert command(*arguments) == 0 and lines(study, "samples") == before
    assert command(*arguments, "samples=3") == 0 and len(lines(study, "samples")) == len(before) + 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["question=before"], "question=before: must be seen (the prompt is prefilled whole), after (its context, then "),
        (["question=after", "job=latency"], "job=latency asks no question of a prompt, so question=after does not change it"),
        (["question=after", "job=kept_mass"], "job=kept_mass asks no question of a prompt"),
        (["question=reread", "job=maps"], "job=maps asks no question of a prompt, so question=reread"),
        (["question=after", "task=longbench_lcc"], "question=after: no question follows the context in longbench_lcc: leave"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, toy: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert command(*toy, *arguments) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1


def test_a_question_that_was_cut_costs_its_cell(command: Command, toy: list[str], tmp_path: Path) -> None:
    write(tmp_path / "mine", "qasper.jsonl", [line("qasper") | {"input": "why " * 900}])
    write(tmp_path / "mine", "trec.jsonl", [line("trec"), line("trec", 1)])
    arguments = [*toy, "task=longbench", "task.tasks=[longbench_qasper,longbench_trec]", f"data.dir={tmp_path / 'mine'}"]
    assert command(*arguments, "question=after") == 1
    rows = {(r["method"], r["task"]): r for r in board(tmp_path / "results" / "toy")}
    assert rows["block_topk", "longbench_trec"]["status"] == "ok"
    assert rows["block_topk", "longbench_qasper"]["reason"].startswith(
        "question=after: longbench_qasper, sample 0: its question"
    )


def test_a_question_of_any_kind_has_pictures_and_families_of_its_own() -> None:
    rows = [
        make_row(m, 0.5, 512, 0.5, model="m", question=q, task=task, group=f"{m} {q}", block_size=b, haystack="pydoc")
        for q in ("seen", "after", "reread")
        for m, b in (("dense", None), ("sieve", 64))
        for task in ("one", "avg")
    ]
    sets = by_model(rows)
    assert {name: {r.question for r in members} for (name, _), members in sets.items()} == {
        "m": {"seen"},
        "m, question after the context": {"after"},
        "m, question read again": {"reread"},
    }
