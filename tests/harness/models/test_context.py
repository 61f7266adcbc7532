"""Where the context ends and the question begins, for every task that asks one, in characters and in tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.core.errors import UserError
from harness.tasks import registry
from harness.tasks.checks import check_sample
from harness.tasks.context import context_tokens, last_place, question_opening
from harness.tasks.longbench import datasets, files
from harness.tasks.longbench.names import LANGUAGES, WITHOUT_QUESTION
from harness.tasks.names import expand_tasks
from harness.tasks.ruler.builders import QUESTION_OPENINGS
from harness.tasks.ruler.names import TASKS as RULER
from harness.tasks.ruler.samples import get_samples
from harness.tasks.sample import Sample
from harness.tasks.tokens import encode, encode_all
from tests.harness.tasks.test_longbench import line, write
from tests.harness.tasks.test_ruler_qa import hotpot_row, paragraph

BUNDLED = Path(__file__).resolve().parents[3] / "harness" / "bundled"
CHAT = (
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def chatting(tokenizer: Any) -> Any:
    """The bundled tokenizer with a chat template that has a BOS and trims what it wraps."""
    chat_tokenizer = copy.deepcopy(tokenizer)
    chat_tokenizer.chat_template = CHAT
    return chat_tokenizer


@pytest.fixture(scope="module")
def threes() -> Any:
    """A tokenizer of three characters a token, so that questions begin inside of one."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.FixedLength(length=3)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for the tasks that read any: RULER's documents, and two rows of every data set of LongBench."""
    data_folder = tmp_path_factory.mktemp("data")
    squad = [{"title": a, "paragraphs": [paragraph(a, n) for n in range(9)]} for a in ("Normans", "Saxons", "Franks")]
    (data_folder / "dev-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": squad}))
    (data_folder / "hotpotqa.json").write_text(json.dumps([hotpot_row(n) for n in range(12)]))
    for dataset, language in LANGUAGES.items():
        asked = "何をしますか?" if language == "zh" else f"question about {dataset}?"
        write(data_folder, f"{dataset}.jsonl", [line(dataset, n) | {"input": f"{asked} {n}"} for n in (0, 1)])
    return data_folder


def rulers(name: str, tokenizer: Any, folder: Path, *, chat: bool = False, length: int = 1024) -> list[Sample]:
    return get_samples(name, tokenizer, length, 2, folder=str(folder), chat_template=chat)


def parts(sample: Sample, tokenizer: Any) -> tuple[list[int], int]:
    """The prompt's tokens as the model sees them, and how many of them are the context's."""
    assert sample.context is not None
    ids = encode_all(tokenizer, [sample.prompt])[0]
    return ids, context_tokens(tokenizer, sample.prompt, ids, sample.context)


def check_split(sample: Sample, tokenizer: Any) -> None:
    """The context's tokens are text before the question, and one token more would not be."""
    ids, count = parts(sample, tokenizer)
    first = 1 if ids[0] == tokenizer.bos_token_id and not sample.prompt.startswith(tokenizer.bos_token) else 0
    before, more = (tokenizer.decode(ids[first:n], clean_up_tokenization_spaces=False) for n in (count, count + 1))
    context = sample.prompt[: sample.context]
    assert context.startswith(before), "nothing of the question is in it"
    assert not context.startswith(more), "and all of the context's own tokens are"
    assert len(context) - len(before) < 8, "at most a piece of a token is given away"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", RULER)
def test_rulers_question_begins_after_its_context(tokenizer: Any, chatting: Any, folder: Path, name: str, chat: bool) -> None:
    for sample in rulers(name, chatting if chat else tokenizer, folder, chat=chat, length=2048):
        context, question = sample.prompt[: sample.context], sample.prompt[sample.context :]
        assert any(question.startswith(words) and words not in question[1:] for words in QUESTION_OPENINGS[name])
        assert context[-1].isspace(), "it ends with what parts it from the question"
        for text in sample.evidence or sample.answers:
            assert text in context, "what answers it was there before"
        asked = question.partition("." if name == "vt" else "?")[0]
        assert context.count(asked) == (name == "cwe"), "cwe's example is asked the same"
        assert not chat or "<|assistant|>" in question
        assert context.count("Question:") == (1 if name in ("vt", "cwe") else 0), "a worked example is the context's"
        check_split(sample, chatting if chat else tokenizer)
        assert check_sample(sample, chatting if chat else tokenizer) is None


def test_rulers_words(tokenizer: Any, folder: Path) -> None:
    begins = {name: rulers(name, tokenizer, folder)[0] for name in RULER}
    openings = {name: s.prompt[s.context :][:40] for name, s in begins.items()}
    assert openings["niah_single_1"] == "What is the special magic number for " + openings["niah_single_1"][37:]
    assert openings["niah_multiquery"] == openings["niah_multivalue"] == "What are all the special magic numbers f"
    assert openings["vt"] == "Question: Find all variables that are as"
    assert openings["cwe"] == "Question: What are the 10 most common wo"
    assert openings["fwe"] == "Question: Do not provide any explanation"
    assert openings["qa_1"] == openings["qa_2"] == "Answer the question based on the given d", "the repeated rule comes with it"


@pytest.mark.parametrize("name", ["niah_multikey_1", "vt", "qa_2"])
def test_a_token_of_both_is_the_questions(threes: Any, folder: Path, name: str) -> None:
    for sample in rulers(name, threes, folder, length=3000):
        ids, count = parts(sample, threes)
        assert count == sample.context // 3 and len(ids) == -(-len(sample.prompt) // 3)  # type: ignore[operator]


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("bos", ["", "<s>"])
def test_bytes_of_one_character_stay_together(trim: bool, bos: str) -> None:
    """A token a byte, offsets with and without blanks as families have them, and BOS from the tokenizer and from the text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", *letters])}, []))
    backend.add_special_tokens(["<s>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), begin])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    context, question = "文章:猫在睡觉。\n \n", "请问:谁在睡觉?\n回答:"
    ids = encode_all(tokenizer, [bos + context + question])[0]
    assert ids.count(0) == 1
    context_length = context_tokens(tokenizer, bos + context + question, ids, len(bos + context))
    assert context_length == 1 + len(context.encode()), "not a byte of the question, and all of the context's"


def test_only_the_last_question_counts() -> None:
    example = "Find it.\nanswer\nQuestion: who? Answer: me\n\nFind it.\nsome text\n"
    assert question_opening("Find it.\n{context}\nQuestion: {query}") == "Question:"
    assert last_place(example + "Question: who?", ["Question:"]) == len(example)
    assert last_place(example, ["nowhere", ""]) is None


def test_the_samples_on_disk_are_what_they_were(tokenizer: Any, tmp_path: Path) -> None:
    samples = get_samples("vt", tokenizer, 1024, 2, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    assert all(list(row)[-1] == "evidence" and "context" not in row for row in rows), "files are the same as before"
    assert get_samples("vt", tokenizer, 1024, 2, cache_dir=tmp_path) == samples
    assert all(sample.context is not None for sample in samples)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("dataset", sorted(set(LANGUAGES) - set(WITHOUT_QUESTION)))
def test_longbenchs_question_begins_after_its_context(
    tokenizer: Any, chatting: Any, folder: Path, dataset: str, chat: bool
) -> None:
    task, which = registry.get(f"longbench_{dataset}"), chatting if chat else tokenizer
    assert task.asks
    for length in (4096, 700):  # whole, and with its middle cut out
        for sample in task.samples(which, length, 2, 0, {"dir": str(folder), "chat_template": chat}):
            asked = files.rows(files.find(str(folder)), f"{dataset}.jsonl")[sample.index].input
            context, question = sample.prompt[: sample.context], sample.prompt[sample.context :]
            assert asked in question and asked not in context
            assert "word0" in context and not question[0].isspace()
            check_split(sample, which)


def test_tasks_without_a_question_say_so(tokenizer: Any, folder: Path) -> None:
    after = {name: datasets.template(name).partition("{context}")[2] for name in LANGUAGES}
    assert {name for name, text in after.items() if "{input}" not in text} == set(WITHOUT_QUESTION)
    assert {d for d in LANGUAGES if not registry.get(f"longbench_{d}").asks} == set(WITHOUT_QUESTION)
    assert len(expand_tasks("longbench_questions")) == 21 - 5
    assert not registry.get("longbench_e_lcc_0-4k").asks and registry.get("longbench_e_trec_0-4k").asks
    (sample, _) = registry.get("longbench_lcc").samples(tokenizer, 4096, 2, 0, {"dir": str(folder)})
    assert sample.context is None


def test_a_question_that_was_cut_is_none(tokenizer: Any, tmp_path: Path) -> None:
    write(tmp_path, "qasper.jsonl", [line("qasper") | {"input": "why " * 600}])
    (sample,) = registry.get("longbench_qasper").samples(tokenizer, 500, 1, 0, {"dir": str(tmp_path)})
    assert sample.cut > 0 and sample.context is None


def test_what_cannot_be_split_is_refused(tokenizer: Any, folder: Path) -> None:
    sample = rulers("vt", tokenizer, folder)[0]
    ids = encode(tokenizer, sample.prompt)
    with pytest.raises(UserError, match="the prompt's tokens are not those of its text"):
        context_tokens(tokenizer, sample.prompt, [*ids[:-1], ids[-1] + 1], 100)
    with pytest.raises(UserError, match="need at least one"):
        context_tokens(tokenizer, sample.prompt, ids, len(sample.prompt))
    with pytest.raises(UserError, match="object does not say which characters a token is of"):
        context_tokens(object(), sample.prompt, ids, 100)
