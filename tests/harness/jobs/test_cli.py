"""Bad input: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import methods
from harness.core.conf_files import groups

Command = Callable[..., int]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["@foo=1"], "can't read '@foo=1' on the command line: settings are written name=value"),
        (["device=mps"], "device=mps: torch finds no such device here"),
        (["method=seerr"], "method=seerr is not known (did you mean seer?); choose one of: blasst, block_topk, dense, "),
        (["model=/a/b"], "model=/a/b is not known: for a folder or a hub id say model=hf model.path=/a/b"),
        (["model=Qwen/Qwen3-4B"], "for a folder or a hub id say model=hf model.path=Qwen/Qwen3-4B"),
        (["method=a/seer"], "method=a/seer is not known"),
        (["model=nothing"], "model=nothing is not known; choose one of: bundled, gemma3_270m, gemma3_270m_base, hf, "),
        (["task=rular"], "task rular is not known (did you mean ruler?); choose from: niah_single_1, "),
        (
            ["job=xyz"],
            "job=xyz is not known; choose one of: archive, choose, compare, convert_gates, densities, distill, evaluate, ",
        ),
        (
            ["task.tasks=[niah_single_9]"],
            "task niah_single_9 is not known (did you mean niah_single_3?); choose from: niah_single_1, ",
        ),
        (["task=[vt,rular]"], "task rular is not known (did you mean ruler?)"),
        (["task=[]"], "task=[]: tasks are values: write task=NAME or 'task=[NAME,NAME]'"),
        (["task=null"], "task=null: tasks are values"),
        (["task.taks=[vt]"], "tasks are values: write task=NAME"),
        (["task=vt,cwe"], "'task=vt,cwe': quote a list as 'task=[vt,cwe]', or add -m to sweep over its values"),
        (["method=seer,oracle"], "method=seer,oracle: method= takes one choice; to run several, one after the other, add -m"),
        (
            ["method=[seer,oracle]"],
            "method=[seer,oracle]: method= takes one choice, not a list; to run several, one after the ",
        ),
        (["decode=[quest,oracle]"], "one after the other: -m decode=quest,oracle"),
        (["model=[bundled,smollm2_135m]"], "one after the other: -m model=bundled,smollm2_135m"),
        (["job=[evaluate,latency]"], "one after the other: -m job=evaluate,latency"),
        (["experiment=[pareto,ruler]"], "one experiment a command, each is a sweep of its own: run pareto, ruler in turn"),
        (["-m", "method=[seer,oracle],dense"], "method=[seer,oracle],dense: method= takes one choice, not a list"),
        (["-m", "experiment=pareto,ruler"], "one experiment a command"),
        (["+sampels=3"], "unknown setting 'sampels' (did you mean samples?)"),
        (["+data.haystak=x"], "unknown setting 'data.haystak' (did you mean data.haystack?)"),
        (["+job.prompts=3"], "unknown setting 'job.prompts' for this job; it belongs to search_heads"),
        (["~length"], "length is missing: no setting can be taken out with ~"),
        (["~method"], "method is missing: no setting can be taken out with ~"),
        (["~job"], "job is missing: no setting can be taken out with ~"),
        (["~model.path"], "model.path is missing: no setting can be taken out with ~"),
        (["~model.date"], "begin a file of your own in conf/model with `defaults: [hf]`"),
        (["model=3"], "model=3: 3 is no choice of model=; choose one of: bundled, "),
        (["=3"], "can't read '=3' on the command line"),
        (["-m", "task=glob(*)"], "task=glob(*): glob() chooses among the files of a group, and task= is none: name the values"),
        (["job=convert_gates"], "job.out has no value: give it on the command line, job.out=…"),
        (["model.name=null"], "model.name=null: must be a name or a path"),
        (["model.released_gates=3"], "model.released_gates=3: it has settings below it: prefill, decode"),
        (["data.haystack=[a]"], "data.haystack=['a']: must be a name or a path"),
        (["data=3"], "data=3: it has settings below it: dir, haystack, text_dir, words"),
        (["results=null"], "results=null: must be a name or a path"),
        (["study="], "study=: must be a name or a path"),
        (["model.chat_template=maybe"], "model.chat_template=maybe: must be true or false"),
        (["job.name=evaluat"], "job=evaluat is not known (did you mean evaluate?); choose one of: archive, choose, compare, "),
        (["question=later"], "question=later: must be seen (the prompt is prefilled whole), after (its context, "),
        (["job=latency", "question=after"], "job=latency asks no question of a prompt, so question=after does not change it"),
        (["job=distill", "question=after"], "job=distill asks no question of a prompt"),
        (["sparsity=1"], "sparsity=1: must be at least 0 (keep every block) and below 1, for example 0.9"),
        (["sparsity=-0.1"], "sparsity=-0.1: must be at least 0"),
        (["sparsity=lots"], "sparsity=lots: must be at least 0"),
        (["sparsity=0.5,0.9"], "add -m to sweep"),
        (["length=4096"], "length=4096: toy has a context of 2048 tokens; choose length=2048 or less"),
        (["length=0"], "length=0: must be a whole number of at least 1"),
        (["samples=many"], "samples=many: must be a whole number of at least 1"),
        (["block_size=24"], "block_size=24: must be a multiple of 16 from 16 to 128"),
        (["kernel=fast"], "kernel=fast is not known; choose one of: auto, reference, sdpa, triton"),
        (["kernel=triton", "block_size=80"], "kernel=triton"),
        (["dense_kernel=fa9"], "fa9 is not known; choose one of: auto, "),
        (["dtype=int8"], "dtype=int8: must be one of auto, float32, "),
        (["device=tpu"], "device=tpu: must be auto, cpu, cuda"),
        (["device=tpu", "job=report"], "device=tpu: must be auto, cpu, cuda"),
        (["method=seer", "block_size=64"], "job=distill method=seer model=hf model.path="),
        (["sparsty=0.9"], "unknown setting 'sparsty' (did you mean sparsity?)"),
        (["data.haystak=x"], "unknown setting 'data.haystak' (did you mean data.haystack?)"),
        (["method=streaming_llm", "method.windw=5"], "unknown setting 'method.windw' (did you mean method.window?)"),
        (
            ["+method.window=5"],
            "unknown setting 'method.window' for this method; it belongs to flash_prefill, streaming_llm, tri_shape",
        ),
        (["method=dense", "+method.gats=5"], "unknown setting 'method.gats' (did you mean method.gates?); known: "),
        (["++decode.x=5", "job=report"], "unknown setting 'decode.x'; known: decode.block_size, decode.budget, "),
        (["+method.block_size=16"], "; block_size= is in no group; known: method.alpha, "),
        (["~method.selection"], "method.selection is missing: no setting can be taken out with ~"),
        (["method.about.added_knobs.last=3"], "method.about is no setting: it says what block_topk is, and is in its file"),
        (["+model.released_gates.prefil=a"], "(did you mean model.released_gates.prefill?); known: "),
        (["+experiment.foo=1"], "experiment= takes the name of a file of conf/experiment"),
        (["+hydra.foo=1"], "unknown setting 'hydra.foo'"),
        (["model.enable_thinking=false"], "model.enable_thinking is for a chat template, and model.chat_template=false"),
        (["model.chat_template=true", "model.enable_thinking=no_way"], "model.enable_thinking=no_way: must be true or false"),
        (["model.date=today"], "model.date=today: must be a day, YYYY-MM-DD, for example 2024-07-26"),
        (["model.date=2025-01-01"], "model.date is for a chat template, and the tokenizer of "),
        (["method=streaming_llm", "method.window=64"], "sparsity=0.5 and window=64: give one of them"),
        (
            ["method=streaming_llm", "sparsity=null", "method.window=wide"],
            "method streaming_llm, window=wide: must be a whole number or null",
        ),
        (["data.haystack=/nowhere.txt"], "data.haystack=/nowhere.txt: no such file"),
        (["model.path=/nowhere"], "model folder /nowhere does not exist"),
        (["sparsity"], "can't read 'sparsity' on the command line: settings are written name=value"),
        (["experiment=null"], "experiment=null: leave experiment= out, or choose one of: ablation_pooling, ablation_rope,"),
        (["study=../up"], "study=../up: must be the name of a folder"),
        (["job=report", "study=none"], "study=none: no records in results/none"),
        (
            ["job=compare"],
            "job=compare takes the whole study, whatever model=, device=, length=, ",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: Command,
    toy: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    assert command(*toy, *arguments) == 2
    err = capsys.readouterr().err
    assert says in err and err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_value_that_must_be_given(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("model=hf") == 2
    assert capsys.readouterr().err == "error: model.path has no value: give it on the command line, model.path=…\n"


def test_corrupt_record_line_is_named_and_nothing_is_overwritten(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy) == 0
    path = tmp_path / "results" / "toy" / "records" / "samples.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:40] + "\x00" + lines[1][60:]
    path.write_text("\n".join(lines) + "\n")
    before = {p: p.read_bytes() for p in (tmp_path / "results").rglob("*") if p.is_file()}
    capsys.readouterr()
    for arguments in ([*toy, "samples=4"], ["job=report", "study=toy"]):
        assert command(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "samples.jsonl:2: corrupt record" in line and "Move it aside" in line
    assert {p: p.read_bytes() for p in before} == before


def test_gates_of_another_model(command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"nonsense": torch.zeros(1)}, str(tmp_path / "gates-64.safetensors"))
    assert command(*toy, "method=seer", f"model.gates={tmp_path}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "gates-64.safetensors does not fit toy" in line


def test_one_bad_job_of_a_sweep_does_not_stop_the_others(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", *toy, "sparsity=0.5,1.5", "samples=1") == 2
    assert "error: sparsity=1.5" in capsys.readouterr().err
    samples = (tmp_path / "results" / "toy" / "records" / "samples.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in samples]) == 2


def test_a_sweep_says_once_what_is_wrong_with_all_of_its_jobs(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-m", "job=report", "study=none", "length=8,16", "task=vt,rular") == 2
    missing, unknown = capsys.readouterr().err.splitlines()
    assert missing.startswith("error: study=none: no records in results/none")
    assert unknown.startswith("error: task rular is not known (did you mean ruler?)")


def test_every_method_has_its_config() -> None:
    assert set(groups()["method"]) == set(methods.names())
