"""Bad input: one clear line, exit code 2, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import methods
from harness import tasks
from harness.core.conf_files import conf_dir
from harness.core.settings import one_for_all

Command = Callable[..., int]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["method=seerr"], "method=seerr is not known (did you mean seer?); choose one of: blasst, block_topk, dense, "),
        (["model=nothing"], "model=nothing is not known; choose one of: bundled, gemma3_270m, gemma3_270m_base, hf, "),
        (["task=rular"], "task=rular is not known (did you mean ruler?); choose one of: cwe, demo, "),
        (
            ["job=run"],
            "job=run is not known; choose one of: archive, compare, convert_gates, distill, evaluate, export, gate_recall, ",
        ),
        (["task.tasks=[niah_single_9]"], "task niah_single_9 is not known; choose from: niah_single_1, "),
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
        (["method=seer", "block_size=64"], "job=distill method=seer model=hf model.path="),
        (["sparsty=0.9"], "unknown setting 'sparsty' (did you mean sparsity?)"),
        (["data.haystak=x"], "unknown setting 'data.haystak' (did you mean data.haystack?)"),
        (["method=streaming_llm", "method.windw=5"], "unknown setting 'method.windw' (did you mean method.window?)"),
        (["+method.window=5"], "method block_topk has no knob window; it has: block_size, sparsity, seed"),
        (["method=streaming_llm", "method.window=64"], "sparsity=0.5 and window=64: give one of them"),
        (["method=streaming_llm", "sparsity=null", "method.window=wide"], "can't be made with method.window=wide"),
        (["data.haystack=/nowhere.txt"], "data.haystack=/nowhere.txt: no such file"),
        (["model.path=/nowhere"], "model folder /nowhere does not exist"),
        (["sparsity"], "can't read 'sparsity' on the command line: settings are written name=value"),
        (["experiment=null"], "experiment=null: leave experiment= out, or choose one of: block_sizes, bundled,"),
        (["study=../up"], "study=../up: must be the name of a folder"),
        (["job=report", "study=none"], "study=none: no records in results/none"),
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


def test_help_names_groups_and_settings(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("--help")
    assert stopped.value.code in (0, None)
    out = capsys.readouterr().out
    assert "python -m harness method=seer sparsity=0.9" in out and "streaming_llm" in out and "length: 4096" in out


def test_every_method_and_task_has_its_config() -> None:
    assert {p.stem for p in (conf_dir() / "method").glob("*.yaml")} == set(methods.names())
    configured = {p.stem for p in (conf_dir() / "task").glob("*.yaml")}
    buckets = set(tasks.group("longbench_e"))  # parts of a data set: task=longbench_e_qasper, or task.tasks=[…]
    assert configured == {*tasks.names(), *tasks.groups(), "demo"} - buckets


def test_one_value_of_a_knob_for_several_methods_is_swept_with_them() -> None:
    given = ["-m", "method=a,b", "method.last=2", "method.rule=x,y", "method.late=choice(1)", "decode.budget=64", "length=1024"]
    made = one_for_all(given)
    assert made == ["-m", "method=a,b", "method.last=choice(2)", *given[3:]], "decode= has one choice: its budget stays"
    assert one_for_all(given[:1] + given[2:]) == given[:1] + given[2:], "one method: nothing to do"
    assert one_for_all(["-m", "method=a,b", "method.file="])[-1] == "method.file=", "no value can't be swept"
    assert one_for_all(["method.last=2", "method=a,b"])[0] == "method.last=2", "without -m Hydra says what is missing"
    assert one_for_all(["experiment=x", "method.last=2", "method=a,b"])[1] == "method.last=choice(2)", "experiments may sweep"
