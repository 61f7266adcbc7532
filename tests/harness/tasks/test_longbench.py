"""LongBench's tasks: files, prompts, middle truncation, stops, and a run through the command."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.core.errors import UserError
from harness.tasks import registry
from harness.tasks.checks import check_sample
from harness.tasks.longbench import datasets, files, names
from harness.tasks.longbench.cut import cut_middle
from harness.tasks.names import expand_tasks
from harness.tasks.sample import Sample
from harness.tasks.tokens import encode, task_stop_ids

Command = Callable[..., int]
BUNDLED = Path(__file__).resolve().parents[3] / "harness" / "bundled"
ANSWERS = {
    "trec": "Date",
    "lsht": "Place",
    "passage_retrieval_en": "Paragraph 3",
    "passage_retrieval_zh": "段落3",
    "passage_count": "4",
}


def line(dataset: str, number: int = 0, length: int = 900, words: int = 40) -> dict[str, Any]:
    """A line in the distributed format, of our own making."""
    few = dataset in ("trec", "lsht")
    return {
        "input": f"question {number}?",
        "context": " ".join(f"word{i}" for i in range(words)) + " {braces}",
        "answers": [ANSWERS.get(dataset, "an answer"), ANSWERS.get(dataset, "another")],
        "length": length,
        "dataset": dataset,
        "language": "en",
        "all_classes": ["Date", "Place"] if few else None,
        "_id": f"{dataset}{number}",
    }


def write(folder: Path, file: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of every data set; to be read, not written into."""
    rows_folder = tmp_path_factory.mktemp("longbench") / "mine"
    for dataset in names.DATASETS:
        write(rows_folder, f"{dataset}.jsonl", [line(dataset, 0), line(dataset, 1)])
    return rows_folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(written, tmp_path / "mine"))


def drawn(name: str, tokenizer: Any, folder: Path, length: int = 2048, n: int = 4, **data: Any) -> list[Sample]:
    return registry.get(name).samples(tokenizer, length, n, 0, {"dir": str(folder), **data})


def test_all_data_sets_are_there_and_in_their_groups() -> None:
    assert len(expand_tasks("longbench")) == 21 and len(expand_tasks("longbench_e")) == 3 * 13
    sizes = {name: len(expand_tasks(f"longbench_{name}")) for name in ("en", "zh", "code")}
    assert sizes == {"en": 14, "zh": 5, "code": 2}
    parts = [name for bucket in names.BUCKETS for name in expand_tasks(f"longbench_e_{bucket}")]
    assert sorted(parts) == sorted(expand_tasks("longbench_e"))
    assert expand_tasks("longbench_e_2wikimqa") == [f"longbench_e_2wikimqa_{bucket}" for bucket in names.BUCKETS]
    assert sum(datasets.file_rows(extended=False).values()) == 4750
    assert sum(datasets.file_rows(extended=True).values()) == 3668
    assert tuple(datasets.DATASETS) == names.DATASETS
    assert tuple(name for name, dataset in datasets.DATASETS.items() if dataset.rows_e) == names.DATASETS_E
    wording = json.loads((Path(datasets.__file__).parent / "prompts.json").read_text())
    assert set(wording["prompts"]) == set(wording["max_new_tokens"]) == set(names.DATASETS)
    assert all("{context}" in datasets.template(name) for name in names.DATASETS)
    assert [datasets.max_new_tokens(name) for name in ("gov_report", "hotpotqa", "lcc", "samsum")] == [512, 32, 64, 128]


@pytest.mark.parametrize("name", names.TASKS)
def test_the_prompt_is_the_originals(name: str, tokenizer: Any, written: Path) -> None:
    first, second = drawn(name, tokenizer, written)
    task, row = registry.get(name), line(name.removeprefix("longbench_"))
    dataset = task.dataset  # type: ignore[attr-defined]
    assert first.prompt == datasets.template(dataset).format(**row) and "{braces}" in first.prompt
    assert (first.index, second.index, first.cut) == (0, 1, 0)
    assert first.max_new_tokens == datasets.max_new_tokens(dataset)
    assert first.tokens == len(encode(tokenizer, first.prompt))
    assert check_sample(first, tokenizer) is None
    assert 0 < task.score(first.answers[0], first) <= 1


def test_a_long_prompt_loses_its_middle_and_fits(tokenizer: Any, tmp_path: Path) -> None:
    data_folder = tmp_path / "long"
    write(data_folder, "hotpotqa.jsonl", [line("hotpotqa", words=3000), line("hotpotqa", words=100)])
    long, short = drawn("longbench_hotpotqa", tokenizer, data_folder, 1024)
    assert (short.cut, long.max_new_tokens) == (0, 32)
    assert 1024 - 32 - 4 <= long.tokens <= 1024 - 32
    assert long.prompt.startswith("Answer the question based on the given passages.")
    assert long.prompt.endswith("Question: question 0?\nAnswer:")
    assert "word1500" not in long.prompt and long.tokens + long.cut == pytest.approx(
        len(encode(tokenizer, datasets.template("hotpotqa").format(**line("hotpotqa", words=3000)))), abs=4
    )
    assert check_sample(long, tokenizer) is None
    with pytest.raises(UserError, match=r"length=512 is too short for longbench_gov_report: 512 tokens of it"):
        write(data_folder, "gov_report.jsonl", [line("gov_report")])
        drawn("longbench_gov_report", tokenizer, data_folder, 512)


def test_cut_is_first_and_last_half_as_the_original_cuts(tokenizer: Any) -> None:
    text = " ".join(str(i) for i in range(400))
    ids = tokenizer(text)["input_ids"]
    cut_prompt = cut_middle(tokenizer, text, 100, str)
    assert cut_prompt is not None
    prompt, tokens, cut = cut_prompt
    half = (len(ids) - cut) // 2
    assert prompt == "".join(tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:]))
    assert tokens == len(encode(tokenizer, prompt)) <= 100 and tokens >= 96
    wrapped = cut_middle(tokenizer, text, 100, lambda prompt_text: f"<begin>{prompt_text}<end of turn>")
    assert wrapped is not None
    assert wrapped[0].startswith("<begin>0 1 2") and wrapped[0].endswith("399<end of turn>")
    assert wrapped[1] <= 100, "what is wrapped around it fits too"
    assert cut_middle(tokenizer, text, 1, str) is None


def test_no_chat_template_where_the_original_has_none(tokenizer: Any, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.chat_template = "[user]{{ messages[0]['content'] }}[model]"
    plain = {
        name for name in names.TASKS if not drawn(name, tokenizer, folder, chat_template=True)[0].prompt.startswith("[user]")
    }
    assert plain == {f"longbench_{name}" for name in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")}


def test_few_shot_and_code_answers_end_with_their_line_and_samsum_stops_there(tokenizer: Any, folder: Path) -> None:
    one_line = {f"longbench_{name}" for name in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")}
    for name in names.TASKS:
        (sample, _) = drawn(name, tokenizer, folder)
        newline = frozenset(tokenizer("\n", add_special_tokens=False)["input_ids"][-1:])
        assert task_stop_ids(tokenizer, registry.get(sample.task).stop) == (
            newline if name == "longbench_samsum" else frozenset()
        )
        short, long = (
            registry.get(name).score(text.format(sample.answers[0]), sample) for text in ("{}", "\n{}\n99 more words")
        )
        assert (long == short) == (name in one_line), name


def test_buckets_of_longbench_e(tokenizer: Any, tmp_path: Path) -> None:
    data_folder = tmp_path / "e"
    write(data_folder, "qasper_e.jsonl", [line("qasper", i, n) for i, n in enumerate((3999, 4000, 7999, 8000, 100))])
    questions = {
        bucket: [
            sample.prompt.partition("Question: question ")[2][0]
            for sample in drawn(f"longbench_e_qasper_{bucket}", tokenizer, data_folder)
        ]
        for bucket in names.BUCKETS
    }
    assert questions == {"0-4k": ["0", "4"], "4-8k": ["1", "2"], "8k+": ["3"]}
    assert drawn("longbench_e_qasper_8k+", tokenizer, data_folder)[0].haystack.startswith("LongBench-E subset e-")
    write(data_folder, "trec_e.jsonl", [line("trec", 0, 100)])
    with pytest.raises(UserError, match=r"trec_e.jsonl has no row of 8k\+ words, which longbench_e_trec_8k\+ asks for"):
        drawn("longbench_e_trec_8k+", tokenizer, data_folder)


def test_a_part_of_the_data_says_so_and_never_shares_an_average(tokenizer: Any, tmp_path: Path, folder: Path) -> None:
    complete_folder = tmp_path / "whole"
    write(complete_folder, "vcsum.jsonl", [line("vcsum", i) for i in range(200)])
    write(complete_folder, "qasper.jsonl", [line("qasper")])
    (complete, *_), (part,) = (
        drawn("longbench_vcsum", tokenizer, complete_folder, n=2),
        drawn("longbench_qasper", tokenizer, complete_folder),
    )
    assert complete.haystack.startswith("LongBench whole-") and "subset" not in complete.haystack
    assert part.haystack.startswith("LongBench subset whole-") and part.haystack.endswith(": 201 of 4750")
    sources = [registry.get(f"longbench_{name}").source({"dir": str(complete_folder)}) for name in ("vcsum", "qasper")]
    assert sources[0] != sources[1]
    assert registry.get("longbench_qasper").source({"dir": str(folder)}) not in sources
    assert registry.get("vt").source({"dir": str(folder)}) is None


def test_count_and_spare_rows(tokenizer: Any, tmp_path: Path) -> None:
    data_folder = tmp_path / "few"
    write(data_folder, "lcc.jsonl", [line("lcc", i) for i in range(5)])
    task, data = registry.get("longbench_lcc"), {"dir": str(data_folder)}
    assert (task.count(3, data), task.count(500, data)) == (3, 5)
    assert [s.index for s in task.samples(tokenizer, 1024, 3, 7, data)] == [0, 1, 2]
    assert [s.index for s in task.spare(tokenizer, 1024, 2, 7, data)] == [4, 3]
    assert len(task.spare(tokenizer, 1024, 9, 7, data)) == 5


def test_zip_and_hub_are_read_like_a_folder(
    tokenizer: Any, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    with zipfile.ZipFile(snapshot / "data.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"data/{path.name}")
    expected = [s.prompt for s in drawn("longbench_qasper", tokenizer, folder)]
    assert [s.prompt for s in drawn("longbench_qasper", tokenizer, snapshot / "data.zip")] == expected
    asked: list[Any] = []

    def download(*args: Any, **options: Any) -> str:
        asked.append((args, options))
        return str(snapshot / "data.zip")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    files.find.cache_clear()
    (sample, _) = registry.get("longbench_qasper").samples(tokenizer, 2048, 4, 0, {"dir": None})
    assert sample.prompt == expected[0] and sample.haystack.startswith("LongBench subset hub 01234567-")
    assert asked == [(("THUDM/LongBench", "data.zip"), {"repo_type": "dataset"})]
    files.find.cache_clear()


def test_errors_say_what_would_be_right(tokenizer: Any, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"data.dir=.*nowhere: no such folder; give one with LongBench's jsonl files"):
        drawn("longbench_qasper", tokenizer, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds none of the files of this benchmark \(narrativeqa.jsonl, "):
        registry.get("longbench_qasper").source({"dir": str(tmp_path / "empty")})
    (folder / "qasper.jsonl").unlink()
    with pytest.raises(UserError, match=r"qasper.jsonl is not in .*mine; data.zip of https://huggingface.co/datasets/THUDM"):
        drawn("longbench_qasper", tokenizer, folder)
    with pytest.raises(UserError, match=r"without network, name its folder: data\.dir=FOLDER"):
        files.find.cache_clear()
        files.find(None)  # the tests are offline
    with pytest.raises(
        UserError,
        match=r"task longbench_qaspr is not known .did you mean longbench_qasper.*; choose from: .*longbench_e,",
    ):
        registry.get("longbench_qaspr")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"input": "a", ', "no JSON"),
        ("[]", "context, input, answers, length missing"),
        ('{"input": "a", "context": "b", "answers": "c", "length": 1}', "answers missing or of the wrong kind"),
        ('{"input": "a", "context": "b", "answers": [], "length": 1}', "answers missing or of the wrong kind"),
        ('{"input": "a", "context": "b", "answers": [1], "length": 1}', "answers missing or of the wrong kind"),
    ],
)
def test_a_malformed_line_is_named(text: str, says: str, tokenizer: Any, tmp_path: Path) -> None:
    data_folder = tmp_path / "bad"
    write(data_folder, "qasper.jsonl", [line("qasper")])
    with open(data_folder / "qasper.jsonl", "a") as file:
        file.write("\n" + text + "\n")
    with pytest.raises(UserError, match=rf"bad/qasper.jsonl:3: .*{says}"):
        drawn("longbench_qasper", tokenizer, data_folder)


def board(study: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(study / "leaderboard.csv", newline="") as file:
        return {(row["method"], row["task"]): row for row in csv.DictReader(file)}


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_through_the_command(command: Command, toy: list[str], tmp_path: Path, folder: Path) -> None:
    write(folder, "triviaqa.jsonl", [line("triviaqa", 0, words=900), line("triviaqa", 1)])
    tasks = "task.tasks=[longbench_triviaqa,longbench_trec,longbench_passage_retrieval_zh]"
    arguments = [*toy, tasks, f"data.dir={folder}", "samples=3"]
    assert command(*arguments) == 0
    study = tmp_path / "results" / "toy"
    rows = board(study)
    assert len(rows) == 2 * 4 and {row["status"] for row in rows.values()} == {"ok"}
    row = rows["block_topk", "longbench_triviaqa"]
    assert (row["samples"], row["truncated"], row["length"]) == ("2", "1", "1024"), "all there are, one of them cut"
    assert row["haystack"].startswith("LongBench subset mine-") and row["haystack"].endswith(": 42 of 4750")
    assert rows["dense", "avg"]["truncated"] == "1" and rows["dense", "avg"]["samples"] == "6"
    before = (study / "records" / "samples.jsonl").read_bytes()
    cells = (study / "records" / "cells.jsonl").read_bytes()
    assert command(*arguments, "report=false") == 0
    assert (study / "records" / "samples.jsonl").read_bytes() == before
    assert (study / "records" / "cells.jsonl").read_bytes() == cells, (
        "nothing runs twice, though fewer samples than wanted are there"
    )
    write(folder, "trec.jsonl", [line("trec", 5), line("trec", 6)])
    files.contents.cache_clear()
    files.rows.cache_clear()
    assert command(*arguments, "report=false") == 0
    assert len((study / "records" / "samples.jsonl").read_bytes()) > len(before), "other data are other cells"


@pytest.mark.usefixtures("blank_pictures")
def test_the_zip_through_the_command(command: Command, toy: list[str], tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(folder / "trec.jsonl", "data/trec.jsonl")
    assert command(*toy, "task=longbench_trec", f"data.dir={tmp_path / 'data.zip'}") == 0
    assert {row["status"] for row in board(tmp_path / "results" / "toy").values()} == {"ok"}


@pytest.mark.usefixtures("blank_pictures")
def test_buckets_through_the_command(command: Command, toy: list[str], tmp_path: Path) -> None:
    write(tmp_path / "e", "trec_e.jsonl", [line("trec", i, n) for i, n in enumerate((100, 5000, 9000, 9001))])
    for group, report in (("longbench_e_trec", "false"), ("longbench_e_8k+", "true")):
        command(*toy, f"task={group}", f"data.dir={tmp_path / 'e'}", f"report={report}")
    rows = board(tmp_path / "results" / "toy")
    counts = {task: row["samples"] for (method, task), row in rows.items() if method == "dense" and row["status"] == "ok"}
    assert counts == {"longbench_e_trec_0-4k": "1", "longbench_e_trec_4-8k": "1", "longbench_e_trec_8k+": "2"}
    assert "lcc_e.jsonl is not in" in rows["dense", "longbench_e_lcc_8k+"]["reason"]


@pytest.mark.usefixtures("blank_pictures")
def test_a_knob_is_found_on_the_rows_that_are_asked(command: Command, toy: list[str], tmp_path: Path) -> None:
    write(tmp_path / "lcc", "lcc.jsonl", [line("lcc", i, words=200) for i in range(6)])
    assert command(*toy, "task=longbench_lcc", f"data.dir={tmp_path / 'lcc'}", "method=xattention") == 0
    (record,) = map(json.loads, (tmp_path / "results" / "toy" / "records" / "calibrations.jsonl").read_text().splitlines())
    density = float(board(tmp_path / "results" / "toy")["xattention", "longbench_lcc"]["density"])
    assert record["prompts"] == 2 and density == pytest.approx(record["tasks"]["longbench_lcc"], abs=1e-3)


@pytest.mark.usefixtures("blank_pictures")
def test_bad_data_stops_the_command_or_costs_its_cell(
    command: Command, toy: list[str], tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, "task=longbench_trec", "data.dir=nowhere") == 2
    assert capsys.readouterr().err.startswith("error: data.dir=nowhere: no such folder")
    (folder / "trec.jsonl").unlink()
    assert command(*toy, "task.tasks=[longbench_trec,longbench_lcc]", f"data.dir={folder}", "samples=1") == 1
    rows = board(tmp_path / "results" / "toy")
    assert (
        rows["dense", "longbench_trec"]["status"] == "failed"
        and "trec.jsonl is not in" in rows["dense", "longbench_trec"]["reason"]
    )
    assert rows["block_topk", "longbench_lcc"]["status"] == "ok"
