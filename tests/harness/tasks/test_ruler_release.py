"""RULER as NVIDIA makes it: worked examples, the answer prefix after a chat template, sizes of prompts, versions of a task."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.tasks import cache, registry
from harness.tasks.chat_template import template_twice, wrap
from harness.tasks.checks import check_sample
from harness.tasks.ruler.names import GENERATED, TASKS
from harness.tasks.ruler.release_sizing import ReleaseSizer, step
from harness.tasks.ruler.samples import get_samples
from harness.tasks.ruler.variable_tracking import VariableTracking
from harness.tasks.ruler.wording import COMMON_WORDS, FREQUENT_WORDS, NIAH, NOISE, VARIABLE_TRACKING

BUNDLED = Path(__file__).resolve().parents[3] / "harness" / "bundled"
TEMPLATE = "{{ bos_token }}{% for m in messages %}<user>{{ m['content'] }}<eos>{% endfor %}<model>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def chatting(tokenizer: Any) -> Any:
    """The bundled tokenizer with a chat template that begins with BOS."""
    chat_tokenizer = copy.deepcopy(tokenizer)
    chat_tokenizer.chat_template = TEMPLATE
    return chat_tokenizer


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_example_of_variable_tracking_fills_five_hundred_tokens(tokenizer: Any, length: int) -> None:
    """Twelve lines by the bundled tokenizer at every length, as NVIDIA's code has there."""
    (sample,) = get_samples("vt", tokenizer, length, 1)
    example = sample.prompt.split("\n\nMemorize")[0]
    assert example.count(NOISE) == 12
    assert len(tokenizer(re.sub(r"  [A-Z ]+$", " ", example), add_special_tokens=False)["input_ids"]) <= 500


@pytest.mark.parametrize("characters", [1, 2, 3, 4, 100])
def test_its_noise_goes_by_the_tokenizer(characters: int) -> None:
    """As many lines as 500 tokens have room for; five where not even those fit; where lines are next to nothing, three times as
    many as five would let expect, as in NVIDIA's search."""
    builder = VariableTracking().fitted(lambda text: len(text) // characters)

    def tokens(lines: int) -> int:
        text, prefix, _ = builder._chain(random.Random(0), lines, letters=3)
        return len(text + prefix) // characters

    noise = builder.example_noise
    assert 5 <= noise <= 15 * 500 // tokens(5)
    assert (noise == 5 or tokens(noise) <= 500) and (tokens(noise + 1) > 500 or characters == 100)


@pytest.mark.parametrize("name", GENERATED)
def test_the_answer_prefix_keeps_its_space_after_a_chat_template(chatting: Any, name: str) -> None:
    (sample,) = get_samples(name, chatting, 1024, 1, chat_template=True)
    wording = {"vt": VARIABLE_TRACKING, "cwe": COMMON_WORDS, "fwe": FREQUENT_WORDS}.get(name, NIAH)
    begin = wording.answer_prefix.partition("{")[0]
    assert begin.startswith(" ") and sample.prompt.rpartition("<model>")[2].startswith(begin)
    assert check_sample(sample, chatting) is None
    assert sample.turns == (2 if name == "cwe" else 1) == sample.prompt.count("<model>")


def test_the_example_of_common_words_is_a_turn_of_its_own(tokenizer: Any, chatting: Any) -> None:
    (chat,), (plain,) = (get_samples("cwe", which, 2048, 1, chat_template=which is chatting) for which in (chatting, tokenizer))
    example, question = (f"<bos>{turn}" for turn in chat.prompt.split("<bos>")[1:])
    asked, answered = example.split("<eos><model>")
    assert asked.startswith("<bos><user>Below is") and asked.endswith("most common words in the above list?")
    answer = " ".join(rf"{n}\. \S+" for n in range(1, 11))
    assert re.fullmatch(rf"{re.escape(COMMON_WORDS.answer_prefix)} {answer}\n", answered)
    assert question.startswith("<bos><user>Below is") and question.endswith(f"<eos><model>{COMMON_WORDS.answer_prefix}")
    assert chat.context == len(example) + question.rindex("Question: What"), "the example belongs to the context"
    bare = example.replace("<bos><user>", "").replace("<eos><model>", "")
    assert plain.prompt.startswith(bare) and plain.turns == 1, "without a template it is the same text"
    assert check_sample(chat, chatting) is None
    again = wrap(chatting, chat.prompt, "", chat=True)
    assert template_twice(again, chatting, chat.turns) == "the chat template was applied 3 times; 2 are right"


SIZES = {
    "niah_single_2": (4096, 500),
    "niah_multikey_2": (4096, 25),
    "niah_single_1": (4095, 5),
    "vt": (4096, 10),
    "cwe": (4096, 10),
    "qa_1": (1024, 10),
}


def test_steps_are_those_of_the_release() -> None:
    assert {name: (length, step(name, length)) for name, (length, _) in SIZES.items()} == SIZES
    assert (step("vt", 4095), step("niah_multikey_1", 1024)) == (5, 500)


def test_what_is_too_long_loses_half_of_its_needles(tokenizer: Any) -> None:
    released, full = (
        get_samples("niah_multikey_3", tokenizer, 4096, n, sizing=sizing) for n, sizing in ((8, "release"), (2, "full"))
    )
    assert all(check_sample(sample, tokenizer) is None for sample in released)
    assert {sample.haystack for sample in released} == {"synthetic sizing=release"}
    needles = {sample.prompt.count("One of the special magic") for sample in released}
    assert needles in ({45, 20}, {44, 19}, {46, 21}), "its size, or 25 needles fewer"
    drawn = [sample.tokens for sample in released]
    assert min(drawn) < 2000 < 3900 < max(drawn) and min(sample.tokens for sample in full) > 3800


def test_coded_words_lose_whole_steps(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tokens_of = ReleaseSizer.tokens

    def noting_sizes(self: ReleaseSizer, size: int, index: int | str) -> tuple[int, str, list[str]]:
        asked.append(size)
        return tokens_of(self, size, index)

    monkeypatch.setattr(ReleaseSizer, "tokens", noting_sizes)
    samples = get_samples("fwe", tokenizer, 2048, 4, sizing="release")
    assert all(check_sample(sample, tokenizer) is None for sample in samples)
    assert len({*asked}) > 2 and {(size - asked[0]) % ((2048 - 50) // 32) for size in asked} == {0}


def test_sizings_are_stored_apart(tokenizer: Any, tmp_path: Path) -> None:
    ask = {"tokenizer": tokenizer, "length": 1024, "n": 1, "cache_dir": tmp_path}
    released, full = (get_samples("niah_multikey_3", sizing=sizing, **ask) for sizing in ("release", "full"))
    assert len(list(tmp_path.iterdir())) == 2 and released != full
    assert get_samples("niah_multikey_3", sizing="release", **ask) == released


def test_a_task_has_a_version_of_its_own() -> None:
    """Cells of tasks whose prompts have not changed keep their ids, and their samples the files that they are stored in."""
    versions = {name: (registry.get(name).version(chat=False), registry.get(name).version(chat=True)) for name in TASKS}
    assert versions == {name: ("2" if name == "vt" else "1", "2") for name in TASKS}
    assert cache.cache_file(Path("x"), "cwe", 4096, 1, 0, None, None, False, "abc") == Path("x/cwe-4096-eb67b6dbbe05.jsonl")
