"""The model's chat template with nothing left open: the date that it prints stands still, and what it asks for is given.

A template that prints the time (`strftime_now`) would give every prompt of a cell another text. So the time is that of a
setting whose default never changes. What was given to a template is written in front of it, as Jinja of its own: whoever
renders it then, this harness or lm-eval, gets the same prompt. A template that asks for nothing stays as it is, to the last
character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS, do_random
from jinja2.parser import Parser

from harness.core.chat_options import DEFAULT_DATE, ChatOptions
from harness.core.errors import UserError

CLOCK, DATE_TEXT, THINKING = "strftime_now", "date_string", "enable_thinking"
"""Names that templates read: the function that prints the time, the date of Llama 3, whether the model may think first."""
LLAMA_DATE = "%d %b %Y"
"""How DATE_TEXT is written: 26 Jul 2024."""
LOREM_IPSUM = "lipsum"
"""Jinja's function that draws words at random, as its filter `do_random` draws one of a list."""
GIVEN = re.compile(r"\{#given (\{[^{}]*\})#\}.*?\{#as published#\}\n", re.DOTALL)
"""What is written in front of a template, its first group the JSON of what was given to it."""
DIRECTIVE = re.compile(r"%[-_0^#EO]?[A-Za-z]")
"""A directive of a format of the time."""


class _Generation(Extension):
    """The tag `{% generation %}` of transformers, which marks what the assistant says and prints nothing."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Published:
    """A template as its model has it, and what was given to it: "date" and "enable_thinking", where there is an entry."""

    template: str
    given: Mapping[str, Any]


def give(tokenizer: Any, options: ChatOptions, name: str) -> Any:
    """Return the tokenizer of a model called `name`, its chat template changed to one with `options` in it.

    Raises UserError for an option that the template does not read, or without one.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        if options.given:
            raise UserError(
                f"model.{options.given[0]} is for a chat template, and the tokenizer of {name} has none: leave it out"
            )
        return tokenizer
    main = template.get("default", "") if isinstance(template, dict) else template
    reads = _reads(main)
    for option, names in (("enable_thinking", (THINKING,)), ("date", (CLOCK, DATE_TEXT))):
        if option in options.given and not reads.intersection(names):
            raise UserError(
                f"model.{option}={_word(getattr(options, option))}: the chat template of {name} does not read it: leave it out"
            )
    frozen = _each(template, lambda text: freeze(text, options))
    if frozen != template:
        tokenizer.chat_template = frozen
    return tokenizer


@lru_cache(maxsize=64)
def freeze(template: str, options: ChatOptions) -> str:
    """Return a template with what it reads of `options` in front of it: the template itself where that is nothing, or was done
    before."""
    reads, lines = _reads(template), []
    given: dict[str, Any] = {}
    if options.enable_thinking is not None and THINKING in reads:
        given["enable_thinking"] = options.enable_thinking
        lines.append(f"{{% set {THINKING} = {_word(options.enable_thinking)} %}}")
    moment = datetime.fromisoformat(options.date)
    if CLOCK in reads:
        given["date"] = options.date
        lines.append(_clock(template, moment))
    elif DATE_TEXT in reads and options.date != DEFAULT_DATE:  # the default is what those templates print by themselves
        given["date"] = options.date
        lines.append(f"{{% set {DATE_TEXT} = {json.dumps(moment.strftime(LLAMA_DATE))} %}}")
    return f"{{#given {json.dumps(given)}#}}{''.join(lines)}{{#as published#}}\n{template}" if given else template


def published(template: str) -> Published:
    """Return what is behind a template that `freeze` made, or made now with the standing date."""
    template = freeze(template, ChatOptions())
    match = GIVEN.match(template)
    return Published(template, {}) if match is None else Published(template[match.end() :], json.loads(match[1]))


def published_template(tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the chat template as the tokenizer came with it, a text or a dict of texts by name, and all that was given to it;
    None without a template."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None, {}
    given: dict[str, Any] = {}
    for text in template.values() if isinstance(template, dict) else [template]:
        given |= published(text).given
    return _each(template, lambda text: published(text).template), given


def draws_at_random(template: str) -> bool:
    """Return whether a template draws at random, so that no two prompts need be the same."""
    tree = _parsed(template)
    if tree is None:
        return False
    if any(node.name == LOREM_IPSUM for node in tree.find_all(nodes.Name)):
        return True
    return any(FILTERS.get(node.name) is do_random for node in tree.find_all(nodes.Filter))


def _each(template: Any, change: Callable[[str], str]) -> Any:
    """Return a text changed, or a dict of texts with each of them changed."""
    return {name: change(text) for name, text in template.items()} if isinstance(template, dict) else change(template)


@lru_cache(maxsize=64)
def _reads(template: str) -> frozenset[str]:
    """Return the names that a template takes from outside; none of one with a mistake in it, which is said as it is filled."""
    tree = _parsed(template)
    return frozenset() if tree is None else frozenset(meta.find_undeclared_variables(tree))


def _parsed(template: str) -> nodes.Template | None:
    """Return the syntax tree of a template, None for one with a mistake in it."""
    try:
        return Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(template)
    except (TemplateError, RecursionError):
        return None


def _clock(template: str, moment: datetime) -> str:
    """Return a macro of Jinja in the place of CLOCK that prints a moment, by the directives that the template has."""
    replaced = [("%%", "\0")]
    replaced += [(d, moment.strftime(d)) for d in sorted(set(DIRECTIVE.findall(template)), key=lambda d: (-len(d), d))]
    replaced += [("\0", "%")]
    filters = "".join(f"|replace({json.dumps(old)},{json.dumps(new)})" for old, new in replaced)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}"


def _word(value: Any) -> str:
    """Return a value as Jinja and the command line write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
