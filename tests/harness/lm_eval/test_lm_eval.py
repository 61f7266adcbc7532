"""`--model sparse`: dense answers as HFLM does, a method's log-likelihoods are those of one prefill, and nothing is silent."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

import methods
from harness.core.errors import UserError
from harness.core.method_facts import method_facts
from harness.lm_eval import __main__ as command
from harness.lm_eval.greedy import GreedySettings, read_generation
from harness.lm_eval.model import SparseLM
from harness.models.bridge import Bridge
from harness.models.loading import ModelConfig, load_model
from harness.tasks.tokens import encode
from tests.harness.lm_eval.lm_eval_tools import ENVIRONMENT, answers, evaluate
from tests.harness.log_lines import LogLines

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]

SENTENCES = "The grass is green. The sky is blue. One of the special magic numbers for apple is: 1234567. "
HALF = {"method": "block_topk", "sparsity": 0.5, "block_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks on four documents of different lengths: choices of one and more tokens, generation, a text's likelihood."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "text": (SENTENCES * (1 + i // 2) + "The sky" * (i % 2)).strip(),
            "choices": ["?", " is blue. The", "!"],
            "gold": i % 3,
        }
        for i in range(2, 6)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
    }
    own: dict[str, dict[str, Any]] = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        "write": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[0]}}",
            "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 16, "do_sample": False},
        },
        "roll": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    for name, fields in own.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **fields}))
    return folder


NAMES = ["choose", "write", "roll"]


@pytest.fixture(scope="module")
def hflm_results(folder: Path, toy_folder: Path) -> dict[str, Any]:
    """What lm-eval's own HFLM says of the three tasks."""
    return evaluate(folder, NAMES, "hf", pretrained=str(toy_folder), dtype="float32")


@pytest.fixture(scope="module")
def dense_results(folder: Path, toy_folder: Path) -> dict[int, dict[str, Any]]:
    """What `--model sparse` says of them without a method, by batch size."""
    return {size: evaluate(folder, NAMES, "sparse", size, pretrained=str(toy_folder)) for size in (1, 4)}


@pytest.fixture(scope="module")
def lm(toy_folder: Path) -> SparseLM:
    return SparseLM(pretrained=str(toy_folder), device="cpu", **HALF)


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    """Return requests of a task "asked"."""
    return [Instance(kind, {}, request, i, ("asked", i, 1)) for i, request in enumerate(arguments)]


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)
    else:
        yield value


@pytest.mark.parametrize("batch_size", [1, 4])
def test_dense_answers_as_hflm_does(
    hflm_results: dict[str, Any], dense_results: dict[int, dict[str, Any]], batch_size: int
) -> None:
    results = dense_results[batch_size]
    assert answers(results, "write") == answers(hflm_results, "write")
    assert len({text for text in flat(answers(results, "write"))}) > 1, "the model says the same of everything"
    for name in ("choose", "roll"):
        assert list(flat(answers(results, name))) == pytest.approx(list(flat(answers(hflm_results, name))), rel=1e-5)
    for name in NAMES:
        scores, hflm_scores = (
            {key: value for key, value in model_results["results"][name].items() if isinstance(value, float)}
            for model_results in (results, hflm_results)
        )
        assert scores == pytest.approx(hflm_scores, rel=1e-5) and scores
    ran = results["config"]["sparse_attention"]
    assert ran["method"] == "dense" and {task["density"] for task in ran["tasks"].values()} == {1.0}


def test_sparse_log_likelihoods_are_those_of_one_prefill(folder: Path, toy_folder: Path) -> None:
    results = evaluate(folder, ["choose"], "sparse", batch_size=3, pretrained=str(toy_folder), **HALF)
    likelihoods = [float(value) for value in flat(answers(results, "choose")) if not isinstance(value, bool)]
    loaded = load_model(ModelConfig("toy", str(toy_folder), torch.float32, "cpu"))
    expected: dict[str, list[float]] = {"sparse": [], "dense": []}
    densities: dict[tuple[int, ...], float] = {}  # of each prefill; continuations of one token share that of their context
    for row in map(json.loads, (folder / "docs.jsonl").read_text().splitlines()):
        for choice in row["choices"]:
            context, ids = (encode(loaded.tokenizer, text) for text in (row["text"], row["text"] + choice))
            method = methods.build("block_topk", sparsity=0.5, block_size=16)
            for name, chosen in (("sparse", method), ("dense", None)):
                with Bridge(loaded, chosen) as bridge, torch.inference_mode():
                    logits = loaded.model(torch.tensor([ids[:-1]]), use_cache=False).logits[0].double()
                if chosen is not None:
                    (densities[tuple(ids[:-1])],) = bridge.prefill_densities()
                scored = torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]]
                expected[name].append(scored[len(context) - 1 :].sum().item())
    assert likelihoods == pytest.approx(expected["sparse"], rel=1e-4)
    assert likelihoods != pytest.approx(expected["dense"], rel=1e-2), "half the blocks made no difference: the test is blind"
    ran = results["config"]["sparse_attention"]["tasks"]["choose"]
    assert ran["density"] == pytest.approx(sum(densities.values()) / len(densities)) and ran["density"] < 0.6
    assert ran["prompts"] == len(densities) < len(likelihoods) and ran["kernels"] == ["sdpa"]


@pytest.mark.parametrize("name", methods.names())
def test_answers_do_not_depend_on_what_is_computed_beside_them(name: str) -> None:
    """The bundled model has the trained and searched files of every method."""
    given: dict[str, Any] = {"pretrained": "bundled", "device": "cpu", "method": name, "block_size": 64, "sparsity": 0.7}
    given |= {f"method.{knob}": value for knob, value in method_facts(name).formula.items()}
    try:
        lm = SparseLM(**given)
    except UserError:
        lm = SparseLM(**(given | {"sparsity": None}))  # by its native knob, as its file has it
    texts = [f"{i} {SENTENCES * 8}"[:600] for i in (1, 2)]
    requests = ask("loglikelihood", *((text, " green") for text in texts))
    alone = lm.loglikelihood(requests, True)
    lm.batch_size_per_gpu = 2
    together = lm.loglikelihood(requests, True)
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-3, abs=1e-3)
    assert [best for _, best in together] == [best for _, best in alone]


def test_decoding_sparsely_changes_what_is_written_and_is_recorded(
    folder: Path, toy_folder: Path, dense_results: dict[int, dict[str, Any]]
) -> None:
    decode = {"decode": "quest", "decode.budget": 32, "decode.dense_layers": 0, "decode_kernel": "reference"}
    sparse = evaluate(folder, ["write"], "sparse", batch_size=4, pretrained=str(toy_folder), **decode)
    assert answers(sparse, "write") != answers(dense_results[1], "write")
    assert answers(sparse, "write") == answers(
        evaluate(folder, ["write"], "sparse", pretrained=str(toy_folder), **decode), "write"
    )
    ran = sparse["config"]["sparse_attention"]
    assert ran["decode"]["method"] == "quest" and ran["decode"]["knobs"]["budget"] == 32
    task = ran["tasks"]["write"]
    assert task["warnings"] == [] and 0 < task["shortest"] < task["mean"] < task["longest"]
    assert task["density"] == 1.0 and 0 < task["decode_density"] < 0.9
    assert "sparse reference" in task["decode_kernels"] and task["prompts"] == 4


def test_texts_end_before_their_stop_words(lm: SparseLM) -> None:
    (plain,) = lm.generate_until(ask("generate_until", (SENTENCES, {"max_gen_toks": 60})), True)
    word = plain[25:27]
    assert len(word) == 2
    (cut,) = lm.generate_until(ask("generate_until", (SENTENCES, {"max_gen_toks": 60, "until": word})), True)
    assert cut == plain[: plain.index(word)] and len(cut) < len(plain)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pretrained": None}, "pretrained= has no value"),
        ({"parallelize": True}, "parallelize= is not known or can't be honoured"),
        ({"method": "block_topp"}, "did you mean block_topk"),
        ({"method.pol": "mean"}, "unknown setting"),
        ({"sparsity": 1.5}, "sparsity=1.5: must be"),
        ({"method": "xattention"}, "knob_value=VALUE"),
        ({"batch_size": "auto"}, "--batch_size auto: give a number"),
        ({"max_length": 4096}, "has a context of 2048 tokens; choose 2048 or less; model.max_length=4096 allows more"),
        (
            {"max_length": 4096, "model.max_length": 3000},
            "has a context of 3000 tokens; choose 3000 or less; model.max_length=3000 says so",
        ),
        ({"enable_thinking": False}, "model.enable_thinking is for a chat template, and the tokenizer of"),
        ({"overlong": "middle"}, "must be one of error, left"),
    ],
)
def test_what_it_can_not_do_is_said(given: dict[str, Any], says: str, toy_folder: Path) -> None:
    with pytest.raises(UserError, match=says):
        SparseLM(**{"pretrained": str(toy_folder), "device": "cpu", **HALF, **given})


@pytest.mark.parametrize("asked", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}, {"repetition_penalty": 1.1}])
def test_only_greedy_decoding(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="generation_kwargs"):
        read_generation(asked, 10, None)


def test_settings_of_sampling_change_nothing_of_greedy_decoding() -> None:
    asked = {"do_sample": False, "temperature": 1, "top_p": 0.9, "num_beams": 1, "max_new_tokens": 5, "until": ["\n", ""]}
    assert read_generation(asked, 256, "</s>") == GreedySettings(5, ("\n", "</s>"))
    assert read_generation({}, 256, None) == GreedySettings(256, ())


def test_what_does_not_fit_is_an_error_or_cut_as_hflm_does(folder: Path, toy_folder: Path) -> None:
    names = ["choose", "write"]
    with pytest.raises(UserError, match="exceed max_length=64; overlong=left"):
        evaluate(folder, names, "sparse", pretrained=str(toy_folder), max_length=64)
    hflm = evaluate(folder, names, "hf", pretrained=str(toy_folder), dtype="float32", max_length=64)
    results = evaluate(folder, names, "sparse", pretrained=str(toy_folder), max_length=64, overlong="left")
    assert answers(results, "write") == answers(hflm, "write")
    assert list(flat(answers(results, "choose"))) == pytest.approx(list(flat(answers(hflm, "choose"))), rel=1e-5)
    assert all(task["cut"] > 0 for task in results["config"]["sparse_attention"]["tasks"].values())


def test_a_nan_is_an_error(lm: SparseLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "_model_call", lambda inps: torch.full((*inps.shape, 400), math.nan))
    with pytest.raises(UserError, match="NaN"):
        lm.loglikelihood(ask("loglikelihood", (SENTENCES, " is")), True)


def test_five_tokens_under_a_method_are_a_warning_in_the_results(
    lm: SparseLM, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("lm_eval.sparse")
    monkeypatch.setattr(log, "handlers", [logged])  # lm-eval's own command, in another test, changes those above it
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "disabled", False)
    monkeypatch.setattr(log, "level", logging.NOTSET)
    log.setLevel(logging.WARNING)  # which forgets what the logger was told before
    request = Instance("generate_until", {"max_length": 4096}, ("The sky", {"max_gen_toks": 2}), 0, ("short", 0, 1))
    lm.generate_until([request], True)
    task = lm.get_model_info()["sparse_attention"]["tasks"]["short"]
    assert task["warnings"][0].startswith("density 1.000, where sparsity=0.5 asks for 0.500: prompts of ")
    assert [r.levelname for r in logged.records if task["warnings"][0] in r.getMessage()] == ["WARNING"]
    assert task["by_length"]["4096"]["mean"] == task["longest"] < 16


def test_a_chat_template_that_fails_is_one_line(toy_folder: Path) -> None:
    lm, message = SparseLM(pretrained=str(toy_folder), device="cpu"), [{"role": "user", "content": "hi"}]
    for template, says in (
        (None, "has no chat template"),
        ("{{ raise_exception('no') }}", "can't be filled: TemplateError: no"),
    ):
        lm.tokenizer.chat_template = template
        with pytest.raises(UserError, match=says):
            lm.apply_chat_template(message)


def test_a_cache_of_answers_is_of_one_method(toy_folder: Path) -> None:
    class Hook:
        def __init__(self) -> None:
            self.dbdict: dict[str, Any] = {}

    hook, given = Hook(), {"pretrained": str(toy_folder), "device": "cpu"}
    SparseLM(**given, **HALF).set_cache_hook(hook)  # type: ignore[arg-type]
    SparseLM(**given, **HALF).set_cache_hook(hook)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--use_cache"):
        SparseLM(**given).set_cache_hook(hook)  # type: ignore[arg-type]


def test_a_prompt_has_one_bos(toy_folder: Path, tmp_path: Path) -> None:
    """Of a tokenizer that sets one, in front of a text that brings one of its own, as chat templates do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    lm = SparseLM(pretrained=str(toy_folder), device="cpu")
    lm.tokenizer = AutoTokenizer.from_pretrained(toy_folder)
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    for text in ("The sky", "<s>The sky"):
        ids = lm.prompt_ids(text, 1)
        assert ids == encode(lm.tokenizer, text) and ids.count(0) == 1 and ids[0] == 0


def test_the_command(folder: Path, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    # lm-eval's own tasks are thousands of files, which take it seconds to list
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setattr(ENVIRONMENT, lambda: "")
    options = ["--tasks", "choose", "--include_path", str(folder), "--device", "cpu", "--output_path", "out", "--limit", "2"]
    model = f"pretrained={toy_folder},method=block_topk,sparsity=0.5,block_size=16"
    assert command.main(["--model", "sparse", "--model_args", model, *options]) == 0
    assert "choose" in capsys.readouterr().out
    (written,) = (tmp_path / "out").rglob("results*.json")
    saved = json.loads(written.read_text())
    assert saved["config"]["sparse_attention"]["tasks"]["choose"]["prompts"] == 4 and "acc,none" in saved["results"]["choose"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command.main(["--model", "sparse", "--model_args", model, *options]) == 2
    assert "one process" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def cli() -> None:
        assert sys.argv == ["lm-eval", "--model", "sparse", *device]
        raise UserError("this is wrong")

    device = [] if torch.cuda.is_available() else ["--device", "cpu"]
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", cli)
    before = list(sys.argv)
    assert command.main(["--model", "sparse"]) == 2 and sys.argv == before
    assert capsys.readouterr().err == "error: this is wrong\n"


def test_data_that_can_not_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def cli() -> None:
        raise ConnectionError("Couldn't reach 'x/y' on the Hub\nand more")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", cli)  # the tests are offline
    assert command.main(["--model", "sparse"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Couldn't reach 'x/y' on the Hub: it is not in the cache, and the hub can't be reached")
