"""Chat templates that ask for the time, for a setting, or for chance: what a prompt holds is the same in every run."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.core.chat_options import ChatOptions
from harness.core.errors import UserError
from harness.tasks.chat_template import answer_turn, wrap
from harness.tasks.frozen_template import freeze, give, published, published_template

DATED = "{% for m in messages %}[{{ strftime_now('%d %b %Y %H:%M:%S') }}] {{ m['content'] }}{% endfor %}[model]"
THINKS = (
    "{{ messages[0]['content'] }}[model]{% if enable_thinking is defined and enable_thinking is false %}[/think]{% endif %}"
)
LLAMA = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"


def with_template(template: Any) -> Any:
    """A tokenizer of one word with a chat template."""
    backend = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="x")
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_that_prints_the_time_prints_one_moment() -> None:
    """Of a tokenizer in memory, of one that was given a date, and by transformers' own method, as lm-eval calls it."""
    tokenizer = with_template(DATED)
    assert wrap(tokenizer, "hi", "", chat=True) == "[26 Jul 2024 00:00:00] hi[model]"
    given = give(with_template(DATED), ChatOptions("2025-01-31"), "toy")
    message = [{"role": "user", "content": "hi"}]
    assert given.apply_chat_template(message, tokenize=False) == "[31 Jan 2025 00:00:00] hi[model]"
    assert wrap(given, "hi", "", chat=True) == "[31 Jan 2025 00:00:00] hi[model]"
    assert published_template(given) == (DATED, {"date": "2025-01-31"})
    assert published_template(tokenizer) == (DATED, {"date": "2024-07-26"}), "its identity is what is rendered"


@pytest.mark.parametrize(
    ("template", "prints"),
    [
        ("  \n  {{ strftime_now('%%d %-d %B %A') }}", "  \n  %d 26 July Friday"),
        ('\n\n{%- if strftime_now is defined %}{% set t = strftime_now("%Y") %}{% endif %}{{ t|int - 1 }}', "2023"),
        (
            "{% macro f() %}{{ strftime_now(format='%Y-%m-%d') }}{% endmacro %}{% generation %}{{ f() }}{% endgeneration %}",
            None,
        ),
    ],
)
def test_everything_else_of_a_template_stays(template: str, prints: str | None) -> None:
    frozen = freeze(template, ChatOptions())
    assert published(frozen).template == template and freeze(frozen, ChatOptions()) == frozen
    text = with_template(frozen).apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    assert text == (prints or "2024-07-26")


def test_a_template_that_asks_for_nothing_stays_as_it_is() -> None:
    for template in ("{{ messages[0]['content'] }}", THINKS, LLAMA, "{% if"):
        assert freeze(template, ChatOptions()) == template
        assert published_template(with_template(template)) == (template, {})


def test_a_template_is_given_what_it_reads() -> None:
    quiet = give(with_template(THINKS), ChatOptions(enable_thinking=False), "toy")
    assert wrap(quiet, "hi", "", chat=True) == "hi[model][/think]" and answer_turn(quiet) == "[model][/think]"
    assert published_template(quiet) == (THINKS, {"enable_thinking": False})
    dated = give(with_template({"default": LLAMA}), ChatOptions("2025-01-31"), "toy")
    assert wrap(dated, "hi", "", chat=True) == "31 Jan 2025"
    assert published_template(dated) == ({"default": LLAMA}, {"date": "2025-01-31"})


@pytest.mark.parametrize(
    ("template", "options", "says"),
    [
        (DATED, ChatOptions(enable_thinking=True), "model.enable_thinking=true: the chat template of toy does not read it"),
        (THINKS, ChatOptions("2025-01-31"), "model.date=2025-01-31: the chat template of toy does not read it"),
        (None, ChatOptions(enable_thinking=True), "model.enable_thinking is for a chat template, and the tokenizer of toy has"),
    ],
)
def test_what_a_template_does_not_read_is_refused(template: str | None, options: ChatOptions, says: str) -> None:
    with pytest.raises(UserError) as caught:
        give(with_template(template), options, "toy")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('Roles must\nalternate') }}", "can't be filled: TemplateError: Roles must; correct the template"),
        ("{% if", "can't be filled: TemplateSyntaxError: "),
        ("{{ messages[7].content }}", "can't be filled: UndefinedError: "),
        ({"tool_use": "x"}, "can't be filled: ValueError: This model has multiple chat templates with no default"),
        ("{{ [1, 2]|random }}", "draws at random"),
        ("{{ lipsum() }}", "draws at random"),
    ],
)
def test_a_template_that_makes_no_prompt_is_one_line(template: Any, says: str) -> None:
    tokenizer = with_template(template)
    with pytest.raises(UserError) as caught:
        wrap(tokenizer, "hi", "", chat=True)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert wrap(tokenizer, "hi", "", chat=False) == "hi" and answer_turn(tokenizer) == ""
