"""RULER's synthetic tasks: wording, sizes, determinism, cache, scoring, errors."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.core.errors import UserError
from harness.tasks import checks, registry
from harness.tasks.chat_template import chat_problem
from harness.tasks.checks import check_sample
from harness.tasks.haystack import load_haystack, sentences
from harness.tasks.names import GROUPS, expand_tasks
from harness.tasks.ruler import builders
from harness.tasks.ruler.names import GENERATED, QUESTION_ANSWERING
from harness.tasks.ruler.samples import get_samples
from harness.tasks.ruler.scoring import string_match_all
from harness.tasks.ruler.sizing import stream
from harness.tasks.ruler.wording import NIAH, NOISE
from harness.tasks.sample import Sample
from harness.tasks.tokens import encode, encode_all, stop_ids

BUNDLED = Path(__file__).resolve().parents[3] / "harness" / "bundled"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def samples(tokenizer) -> Callable[[str, int], list[Sample]]:
    """Return what gives two samples of a task and length, built once for all tests."""
    return cache(lambda name, length: get_samples(name, tokenizer, length, 2))


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer without BOS that makes a token of every three characters, nothing like the bundled one."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.FixedLength(length=3)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.mark.parametrize("length", [1024, 4096])
@pytest.mark.parametrize("name", GENERATED)
def test_samples_fill_the_length_and_never_exceed_it(tokenizer, samples, name: str, length: int) -> None:
    for sample in samples(name, length):
        assert check_sample(sample, tokenizer) is None
        used = sample.tokens + sample.max_new_tokens
        assert used == len(tokenizer(sample.prompt)["input_ids"]) + sample.max_new_tokens
        # a needle of two uuids is nine per cent of 1,024 tokens, and the counts of fwe are rounded down
        assert (0.85 if name in ("fwe", "niah_multikey_3") else 0.92) * length <= used <= length


@pytest.mark.parametrize("name", GENERATED)
def test_another_tokenizer(characters, name: str) -> None:
    (sample,) = get_samples(name, characters, 3000, 1)
    assert check_sample(sample, characters) is None
    assert sample.tokens + sample.max_new_tokens <= 3000


@pytest.mark.parametrize("name", ["niah_multikey_3", "niah_multivalue", "cwe"])
def test_long_samples(tokenizer, name: str) -> None:
    (sample,) = get_samples(name, tokenizer, 16384, 1)
    assert 0.99 * 16384 < sample.tokens + sample.max_new_tokens <= 16384


def test_wording_of_a_single_needle(samples) -> None:
    sample = samples("niah_single_1", 1024)[0]
    head, *lines, question = sample.prompt.split("\n")
    assert head == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards."
    )
    match = re.fullmatch(
        r"What is the special magic number for (\S+) mentioned in the provided text\? "
        r"The special magic number for (\S+) mentioned in the provided text is",
        question,
    )
    assert match and match[1] == match[2]
    (needle,) = [line for line in lines if line != NOISE]
    assert needle == f"One of the special magic numbers for {match[1]} is: {sample.answers[0]}."
    assert re.fullmatch(r"\d{7}", sample.answers[0]) and sample.max_new_tokens == 128


def test_wording_of_many_answers(samples) -> None:
    sample = samples("niah_multiquery", 1024)[0]
    question = sample.prompt.rpartition("\n")[2]
    match = re.fullmatch(
        r"What are all the special magic numbers for (.+) mentioned in the provided text\? "
        r"The special magic numbers for (.+) mentioned in the provided text are",
        question,
    )
    assert match
    keys = re.fullmatch(r"(\S+), (\S+), (\S+), and (\S+)", match[1])
    assert keys and len(set(keys.groups())) == 4
    for key, value in zip(keys.groups(), sample.answers, strict=True):
        assert f"One of the special magic numbers for {key} is: {value}." in sample.prompt
    assert sample.prompt.startswith(NIAH.template.partition("{")[0])


def test_multivalue_has_four_values_of_one_key(samples) -> None:
    sample = samples("niah_multivalue", 1024)[0]
    needles = re.findall(r"magic numbers for (\S+) is: (\d+)\.", sample.prompt)
    assert len({key for key, _ in needles}) == 1 and sorted(v for _, v in needles) == sorted(sample.answers)


@pytest.mark.parametrize("name", ["niah_multikey_2", "niah_multikey_3"])
def test_distractors_never_have_the_key_asked_for(tokenizer, name: str) -> None:
    for sample in get_samples(name, tokenizer, 2048, 5):
        key = re.search(r" for (\S+) mentioned", sample.prompt)
        assert key and sample.prompt.count(f"for {key[1]} is: ") == 1


def test_variable_tracking_is_a_chain_after_an_example(samples) -> None:
    sample = samples("vt", 1024)[0]
    example, main = sample.prompt.split("\n\nMemorize")
    assert re.search(r"they are:  [A-Z]{3}( [A-Z]{3}){4}$", example)
    assert main.endswith("5 variables are assigned the value " + re.findall(r"= (\d{5})\n", main)[0] + ", they are: ")
    assert re.findall(r"VAR ([A-Z]{5}) = \d{5}", main) == [sample.answers[0]]
    links = re.findall(r"VAR ([A-Z]{5}) = VAR ([A-Z]{5})", main)
    assert links == list(zip(sample.answers[1:], sample.answers[:-1], strict=True))


@pytest.mark.parametrize(("length", "common", "rare"), [(1024, 6, 1), (4096, 30, 3)])
def test_common_words_counts(samples, length: int, common: int, rare: int) -> None:
    sample = samples("cwe", length)[0]
    body = sample.prompt.rpartition("most often.\n")[2].partition("\nQuestion")[0]
    words = re.findall(r"\d+\. (\S+(?: [^\d\s]\S*)*)", body)
    counts = {word: words.count(word) for word in set(words)}
    assert {word for word, count in counts.items() if count == common} == set(sample.answers) and len(sample.answers) == 10
    assert set(counts.values()) == {common, rare}


def test_frequent_words_are_the_most_frequent(samples) -> None:
    sample = samples("fwe", 4096)[0]
    body = sample.prompt.partition("coded words. ")[2].partition("\nQuestion")[0].split(" ")
    counts = {word: body.count(word) for word in set(body) if word != "..."}
    assert sorted(counts, key=counts.__getitem__, reverse=True)[:3] == list(sample.answers)


def test_a_sample_depends_on_nothing_but_its_own_stream(tokenizer) -> None:
    few = get_samples("niah_multikey_1", tokenizer, 1024, 2, seed=7)
    many = get_samples("niah_multikey_1", tokenizer, 1024, 5, seed=7)
    assert many[:2] == few
    assert len({s.answers for s in many}) == 5
    assert get_samples("niah_multikey_1", tokenizer, 1024, 1, seed=8)[0].answers != few[0].answers
    assert stream(0, "vt", 4096, 3).random() == 0.7341986884609423, "the stream of a sample must never change"


def test_cache_grows_and_mends_itself(tokenizer, tmp_path: Path, logged, monkeypatch) -> None:
    ask = {"tokenizer": tokenizer, "length": 1024, "cache_dir": tmp_path}
    first = get_samples("vt", n=2, **ask)
    (file,) = tmp_path.glob("*.jsonl")
    grown = get_samples("vt", n=4, **ask)
    assert grown[:2] == first and len(file.read_text().splitlines()) == 4
    lines = file.read_text().splitlines()
    wrong_type = json.dumps(json.loads(lines[3]) | {"prompt": 5})
    file.write_bytes("\n".join([lines[0], lines[1][:50], "[" * 100_000, wrong_type]).encode() + b"\n\xff\n")
    assert get_samples("vt", n=4, **ask) == grown
    assert all(f"{file}:{line} is damaged" in logged.text for line in (2, 3, 4, 5)) and f"{file}:1 " not in logged.text
    monkeypatch.setattr("harness.tasks.ruler.sizing.Sizer.sample", lambda *a: pytest.fail("made again"))
    assert get_samples("vt", n=4, **ask) == grown


def test_haystacks(tmp_path: Path, tokenizer) -> None:
    assert load_haystack(None).name.startswith("pydoc-3.")
    words = " ".join(f"word{i}." for i in range(300))
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "b.json").write_text('{"text": "' + words + '"}')
    plain, wrapped = load_haystack(str(tmp_path / "a.txt")), load_haystack(str(tmp_path / "b.json"))
    assert plain.words == wrapped.words and plain.name != wrapped.name and plain.name.startswith("a-")
    assert plain.text(302).endswith("word299. word0. word1."), "the prose starts over"
    assert sentences("One. Two! Three? four") == ["One.", "Two!", "Three?", "four"]
    (sample,) = get_samples("niah_single_2", tokenizer, 4096, 1, haystack=str(tmp_path / "a.txt"))
    assert "word299. word0." in sample.prompt and sample.haystack == plain.name


def test_scoring_is_rulers() -> None:
    assert string_match_all(" 123, 456.", ["123", "456"]) == 1.0
    assert string_match_all("THE Answer", ["the answer"]) == 1.0
    assert string_match_all("123", ["123", "456", "789", "000"]) == 0.25
    assert string_match_all("", ["1"]) == 0.0
    assert registry.get("vt").metric("ABC DEF", ("ABC", "XYZ")) == 0.5


def test_check_sample_finds_what_is_wrong(tokenizer, samples) -> None:
    sample = samples("vt", 1024)[0]
    ids = encode(tokenizer, sample.prompt)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert "2 BOS" in str(check_sample(sample, tokenizer, [0, *ids]))
    assert "exceed length" in str(check_sample(replace(sample, length=900), tokenizer))
    assert "not in the prompt" in str(check_sample(replace(sample, answers=("QQQQQQ",)), tokenizer))


def test_a_second_bos_is_dropped(tokenizer) -> None:
    assert encode(tokenizer, "<bos>hello") == encode(tokenizer, "hello")
    assert encode_all(tokenizer, ["<bos>hello", "you"]) == [encode(tokenizer, t) for t in ("hello", "you")]


def test_names_and_groups() -> None:
    assert len(expand_tasks("niah")) == 8 and len(expand_tasks("ruler_core")) == 11 and len(expand_tasks("ruler")) == 13
    assert expand_tasks("vt,niah") == ["vt", *expand_tasks("niah")] and expand_tasks(["cwe", "cwe"]) == ["cwe"]
    assert expand_tasks("demo") == list(GROUPS["demo"])
    assert (*builders.NEEDLES, *builders.OTHERS) == GENERATED and tuple(builders.DOCUMENTS) == QUESTION_ANSWERING
    with pytest.raises(
        UserError, match=r"niah_single_1, .*fwe, .*longbench_lcc, .*or a group: demo, niah, ruler_core, ruler, longbench, "
    ):
        registry.get("needle")


def test_errors_say_what_would_be_right(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"length=200 is too short for niah_single_2: the smallest that works here is \d+"):
        get_samples("niah_single_2", tokenizer, 200, 1)
    with pytest.raises(UserError, match="no such file"):
        load_haystack(str(tmp_path / "nothing.txt"))
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match="at least 100"):
        load_haystack(str(tmp_path / "short.txt"))
    for text in ("[]", "{}", '{"text": 5}', "null"):
        load_haystack.cache_clear()
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(UserError, match=r'no text in it; a JSON file must be {"text": "…"}'):
            load_haystack(str(tmp_path / "list.json"))
    with pytest.raises(UserError, match="no chat template"):
        get_samples("vt", tokenizer, 1024, 1, chat_template=True)


def test_two_templates_of_one_tokenizer_have_samples_of_their_own(tokenizer, tmp_path: Path) -> None:
    prompts = []
    for template in ("A {{ messages[0]['content'] }}", "B {{ messages[0]['content'] }}"):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        options = {"cache_dir": tmp_path, "chat_template": True}
        prompts.append(get_samples("niah_single_1", other, 1024, 1, **options)[0].prompt[:2])
    assert prompts == ["A ", "B "]


def test_an_edited_word_list_is_read_again(tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    answers = []
    for stem in ("alpha", "omega"):
        file.write_text(" ".join(f"{stem}{i}" for i in range(600)))
        (sample,) = get_samples("cwe", tokenizer, 2048, 1, words=str(file), cache_dir=tmp_path / "cache")
        answers.append(sample.answers[0][:5])
    assert answers == ["alpha", "omega"]


def test_a_prompt_without_the_bos_that_the_tokenizer_sets_is_unsound(tokenizer, samples) -> None:
    sample = samples("niah_single_1", 1024)[0]
    ids = encode(tokenizer, sample.prompt)
    assert ids[0] == tokenizer.bos_token_id
    assert check_sample(sample, tokenizer, ids) is None
    assert "no BOS token in front" in str(check_sample(sample, tokenizer, ids[1:]))


@pytest.mark.parametrize(("more", "expected"), [(None, {1}), (7, {1, 7}), ([7, 8], {1, 7, 8})])
def test_the_models_own_stop_ids_count(tokenizer, more: object, expected: set[int]) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=more))
    assert stop_ids(tokenizer, model) == expected


def test_three_bos_are_unsound(tokenizer, samples) -> None:
    sample = samples("niah_single_1", 1024)[0]
    ids = encode(tokenizer, sample.prompt)
    bos = tokenizer.bos_token_id
    assert "3 BOS" in str(check_sample(sample, tokenizer, [bos, bos, *ids]))


def test_a_template_may_begin_every_turn_with_bos(tokenizer) -> None:
    """SmolLM2's BOS is the token that begins a turn: as many are right as its template writes, and no two at the start."""
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "<bos>system<eos>{% for m in messages %}<bos>user {{ m['content'] | trim }}<eos>{% endfor %}<bos>assistant "
    )
    sample = get_samples("niah_single_1", chatty, 1024, 1, chat_template=True)[0]
    ids = encode(chatty, sample.prompt)
    bos = chatty.bos_token_id
    assert ids.count(bos) == 3
    assert check_sample(sample, chatty, ids) is None
    assert "4 BOS tokens in the prompt; there must be 3" in str(check_sample(sample, chatty, [bos, *ids]))
    third = ids.index(bos, 1)
    fewer = [bos, *ids[:third], *ids[third + 1 :]]  # three again, two of them at the start
    assert "BOS tokens in the prompt" in str(check_sample(sample, chatty, fewer))
    assert "2 BOS" in str(check_sample(get_samples("vt", chatty, 1024, 1)[0], chatty, [bos, bos]))
    chatty.bos_token = None  # Qwen has none
    assert check_sample(sample, chatty, ids) is None


def test_a_cut_prompt_is_unsound(tokenizer, samples) -> None:
    """Cut by a tokenizer that truncates, on either side, or ended by an EOS that nobody asked for."""
    sample = samples("niah_single_2", 1024)[0]
    ids = encode(tokenizer, sample.prompt)
    assert "it was cut" in str(check_sample(sample, tokenizer, ids[:-40]))
    assert "the start was cut" in str(check_sample(sample, tokenizer, [ids[0], *ids[41:]]))
    assert "something added" in str(check_sample(sample, tokenizer, [*ids, tokenizer.eos_token_id]))


def test_the_ends_of_a_long_text_are_those_of_all_of_it() -> None:
    texts = ["", " \n", "ab" * 300, "\ufffd a\ufffdb" + " " * 900 + "c\ufffd \ufffd", " " * 900 + "x", "y" + "\ufffd " * 400]
    texts += ["".join(random.Random(seed).choices("ab \n\ufffd", k=700)) for seed in range(20)]
    for text, count in product(texts, (1, 5, 40)):
        whole = checks._bare(text)
        assert checks._bare_start(text, count)[:count] == whole[:count]
        assert checks._bare_end(text, count)[-count:] == whole[-count:]


TEMPLATE = "{{ bos_token }}{% for m in messages %}<user>{{ m['content'] | trim }}<eos>{% endfor %}<model>"


def test_a_chat_template_applied_twice_is_unsound(tokenizer) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    sample = get_samples("niah_single_1", chatty, 1024, 1, chat_template=True)[0]
    assert check_sample(sample, chatty) is None
    again = chatty.apply_chat_template([{"role": "user", "content": sample.prompt}], tokenize=False, add_generation_prompt=True)
    twice = replace(sample, prompt=again, length=4096)
    ids = encode(chatty, twice.prompt)
    ids = [ids[0], *(i for i in ids[1:] if i != chatty.bos_token_id)]  # the BOS of the inner one is found first
    text = chatty.decode(ids[1:])
    assert "chat template was applied 2 times" in str(check_sample(replace(twice, prompt=text), chatty, ids))


def test_a_chat_model_without_its_template_is_unsound(tokenizer) -> None:
    chatty = copy.deepcopy(tokenizer)
    assert chat_problem(chatty, {1}, False) is None, "it has no template"
    chatty.chat_template = TEMPLATE
    assert "without its chat template" in str(chat_problem(chatty, {chatty.eos_token_id}, False))
    assert chat_problem(chatty, {chatty.eos_token_id}, True) is None
    assert chat_problem(chatty, {99}, False) is None, "a base model that ships a template stops at another token"
