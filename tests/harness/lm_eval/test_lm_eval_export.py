"""The tasks of this harness in lm-eval: HFLM, `--model sparse` and the native path agree sample by sample."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import harness.lm_eval.export as exporting
from harness.core.errors import UserError
from harness.lm_eval import exported
from harness.models.loading import load_tokenizer
from harness.tasks import registry
from harness.tasks.names import expand_tasks
from harness.tasks.tokens import encode
from tests.harness.lm_eval.lm_eval_tools import answers, evaluate
from tests.harness.measure.study_files import lines
from tests.harness.tasks.test_longbench import line, write

pytestmark = pytest.mark.filterwarnings("ignore")

Command = Callable[..., int]
SHORT = ("length=1024", "seed=3", "device=cpu", "study=both", "latency=false", "report=false")


def native(study: Path, method: str, name: str) -> list[dict[str, Any]]:
    """The records of the samples of one method and task, in their order."""
    (cell,) = {
        c["cell"]
        for c in lines(study, "cells")
        if c["identity"]["method"] == method and c["identity"]["task"] == name and c["status"] == "ok"
    }
    return sorted((s for s in lines(study, "samples") if s["cell"] == cell), key=lambda sample: sample["index"])


@pytest.mark.parametrize(
    ("model", "tasks", "samples"),
    [
        pytest.param("bundled", ["niah_single_1", "niah_multivalue"], 1, marks=pytest.mark.slow),
        ("toy", ["fwe"], 2),  # the toy model never ends its answer by itself: a task of few tokens
    ],
)
def test_three_paths_agree_sample_by_sample(
    model: str, tasks: list[str], samples: int, command: Command, toy_folder: Path, tmp_path: Path
) -> None:
    path = "bundled" if model == "bundled" else str(toy_folder)
    chosen = ["model=bundled"] if model == "bundled" else ["model=hf", f"model.path={path}", "model.chat_template=false"]
    decode = {"decode": "quest", "decode.budget": 128}
    sparse = {"method": "block_topk", "sparsity": 0.9, "block_size": 16, **decode}
    short = [*SHORT, f"samples={samples}", f"task.tasks=[{','.join(tasks)}]"]
    assert command(*chosen, *short, "job=evaluate", *(f"{k}={v}" for k, v in sparse.items())) == 0
    assert command(*chosen, *short, "job=export") == 0
    study = tmp_path / "results" / "both"
    moved = tmp_path / "elsewhere"
    shutil.move(study / "lm_eval", moved)
    names = {name: exporting.task_name(name, 1024) for name in tasks}
    hflm = str(Path(exporting.__file__).parents[1] / "bundled") if model == "bundled" else path
    runs = {
        "dense": (
            evaluate(moved, list(names.values()), "hf", pretrained=hflm, dtype="float32"),
            evaluate(moved, ["harness_1024"], "sparse", pretrained=path),
        ),
        "block_topk": (evaluate(moved, ["harness_1024"], "sparse", pretrained=path, **sparse),),
    }
    seen: dict[str, list[str]] = {}
    for method, all_results in runs.items():
        for name, exported_name in names.items():
            records = native(study, method, name)
            assert [sample["index"] for sample in records] == list(range(samples))
            for results in all_results:
                assert answers(results, exported_name) == [[[sample["prediction"]]] for sample in records]
                scores = [sample["score"] for sample in results["samples"][exported_name]]
                assert scores == [sample["score"] for sample in records]
                prompts = [sample["arguments"][0][0] for sample in results["samples"][exported_name]]
                assert prompts == [
                    json.loads(line)["prompt"] for line in (moved / f"{exported_name}.jsonl").read_text().splitlines()
                ]
            seen.setdefault(method, []).extend(sample["prediction"] for sample in records)
    assert seen["dense"] != seen["block_topk"], "the method made no difference: the test is blind"
    ran = runs["block_topk"][0]["config"]["sparse_attention"]["tasks"][names[tasks[0]]]
    densities = [sample["density"] for sample in native(study, "block_topk", tasks[0])]
    decoded = [sample["decode_density"] for sample in native(study, "block_topk", tasks[0])]
    assert ran["density"] == pytest.approx(sum(densities) / samples)
    assert ran["decode_density"] == pytest.approx(sum(decoded) / samples)
    if model == "bundled":
        assert runs["dense"][0]["results"][names[tasks[0]]]["score,none"] == 1.0


def test_every_task_can_be_exported(command: Command, tmp_path: Path) -> None:
    assert command("model=bundled", "task=ruler_core", "length=2048", "samples=1", "job=export", "job.out=out") == 0
    assert command("model=bundled", "task=niah_single_1", "length=1024", "samples=1", "job=export", "job.out=out") == 0
    for name in expand_tasks("ruler_core"):
        stem = tmp_path / "out" / exporting.task_name(name, 2048)
        (row,) = exported.load(stem.with_suffix(".jsonl"))["test"]
        assert exported.process_results(row, [", ".join(row["answers"])]) == {"score": 1.0}
        assert exported.process_results(row, ["nothing"]) == {"score": 0.0}
        limit = re.search(r"max_gen_toks: (\d+)", stem.with_suffix(".yaml").read_text())
        assert limit and int(limit[1]) == row["max_new_tokens"]
    assert (tmp_path / "out" / "harness_1024.yaml").is_file() and (tmp_path / "out" / "harness_2048.yaml").is_file()
    with pytest.raises(UserError, match="missing: write it again"):
        exported.load(tmp_path / "out" / "no.jsonl")
    file = tmp_path / "out" / "harness_niah_single_1_1024.jsonl"
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row | {"prompt": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert exported.load(file)["test"][0]["prompt"] == "a\u2028b", "a separator of lines in a text ends no line of the file"
    for damaged in (json.dumps(row | {"answers": 5}), json.dumps(row)[:90], "[" * 100_000):
        file.write_text(f"{json.dumps(row)}\n{damaged}\n")
        with pytest.raises(UserError, match=rf"{file.name}:2: no sample of a task \(.*write it again"):
            exported.load(file)


def test_a_chat_template_is_in_the_prompt_once(command: Command, toy_folder: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(toy_folder, chat)
    template = "{% for m in messages %}<s>user: {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} you: {% endif %}"
    (chat / "chat_template.jinja").write_text(template)
    given = ["model=hf", f"model.path={chat}", "task=niah_single_1", "length=1024", "samples=1", "job=export", "job.out=out"]
    assert command(*given) == 0
    (row,) = exported.load(tmp_path / "out" / "harness_niah_single_1_1024.jsonl")["test"]
    assert row["prompt"].startswith("<s>user: ") and row["prompt"].count(" you: ") == 1
    assert encode(load_tokenizer(str(chat)), row["prompt"]).count(0) == 1


def test_bad_input_is_one_line(command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("model=hf", "model.path=./no/such", "job=export", "length=1024", "samples=1") == 2
    assert "no/such does not exist" in capsys.readouterr().err
    monkeypatch.setattr(exporting, "check_sample", lambda *_: "the needle is not in it")
    assert command("model=bundled", "job=export", "task=niah_single_1", "length=1024", "samples=1") == 2
    assert "niah_single_1, sample 0: the needle is not in it" in capsys.readouterr().err


def test_longbench_is_exported_with_its_scores_and_stops(command: Command, toy_folder: Path, tmp_path: Path) -> None:
    """A task scored on the first line, and the one that stops at a line end; data of their own."""
    names = ["longbench_trec", "longbench_samsum"]
    for name in names:
        dataset = name.removeprefix("longbench_")
        write(tmp_path / "data", f"{dataset}.jsonl", [line(dataset, number) for number in range(2)])
    given = [
        "model=hf",
        f"model.path={toy_folder}",
        "model.chat_template=false",
        "length=1024",
        f"data.dir={tmp_path / 'data'}",
        "samples=5",
        "study=both",
        "device=cpu",
        "latency=false",
        "report=false",
        "method=dense",
    ]
    assert command(*given, f"task.tasks=[{names[0]}]") == 0
    assert command(*given, f"task.tasks=[{','.join(names)}]", "job=export") == 0
    folder = tmp_path / "results" / "both" / "lm_eval"
    exported_name = exporting.task_name(names[0], 1024)
    for results in (
        evaluate(folder, [exported_name], "hf", pretrained=str(toy_folder), dtype="float32"),
        evaluate(folder, [exported_name], "sparse", pretrained=str(toy_folder)),
    ):
        records = native(tmp_path / "results" / "both", "dense", names[0])
        assert answers(results, exported_name) == [[[sample["prediction"]]] for sample in records] and len(records) == 2
        assert [sample["score"] for sample in results["samples"][exported_name]] == [sample["score"] for sample in records]
    rows = list(exported.load(folder / f"{exported_name}.jsonl")["test"])
    right = [f"\n{row['answers'][0]}\nand more" for row in rows]
    assert [exported.process_results(row, [text])["score"] for row, text in zip(rows, right, strict=True)] == [1.0, 1.0]
    text = (folder / f"{exporting.task_name(names[1], 1024)}.yaml").read_text()
    task = yaml.safe_load("\n".join(row for row in text.splitlines() if "!function" not in row))
    assert task["generation_kwargs"]["until"] == ["\n"]
    assert task["metadata"]["version"] == registry.get(names[1]).version(chat=False)
