"""The model's chat template: putting a text into it, and what goes wrong where it is applied twice or not at all."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from harness.core.chat_options import ChatOptions
from harness.core.errors import UserError
from harness.tasks.frozen_template import draws_at_random, freeze


def wrap(tokenizer: Any, text: str, prefix: str, chat: bool) -> str:
    """Return the prompt: the text, as a user's message in the model's chat template if `chat`, and the answer prefix after it
    as it is, with the space that it begins with.

    Raises UserError where the tokenizer has no template, or one that can't be filled, or that draws at random.
    """
    return (_user_turn(tokenizer, text) if chat else text) + prefix


def check_template(tokenizer: Any) -> None:
    """Raise UserError where no prompt can be put into the model's chat template."""
    wrap(tokenizer, "0", "", chat=True)


def template_twice(prompt: str, tokenizer: Any, turns: int = 1) -> str | None:
    """Return None if the model's chat template was applied at most once for each of a prompt's `turns`, else what is wrong."""
    turn = answer_turn(tokenizer)
    count = prompt.count(turn) if turn else 0
    right = "once is" if turns == 1 else f"{turns} are"
    return f"the chat template was applied {count} times; {right} right" if count > turns else None


def bos_allowed(prompt: str, tokenizer: Any, turns: int = 1) -> int:
    """Return how many BOS tokens a prompt of so many user's turns may have.

    That is one, or in a chat template as many as it writes for each of them, where a token that begins every turn is called BOS
    (SmolLM2's <|im_start|>).
    """
    turn, bos = answer_turn(tokenizer), tokenizer.bos_token
    if not turn or bos is None or turn not in prompt:
        return 1
    return turns * _template_bos(tokenizer, str(tokenizer.chat_template), str(bos))


def answer_turn(tokenizer: Any) -> str:
    """Return what the chat template puts between the user's message and the answer; "" without a template, or with one that no
    message can be put into."""
    template = getattr(tokenizer, "chat_template", None)
    return _answer_turn(tokenizer, str(template)) if template else ""


def chat_problem(tokenizer: Any, stop_ids: Collection[int], chat: bool) -> str | None:
    """Return None, or why it is wrong to run the model without its chat template.

    A model whose answers stop at the token that ends the user's turn in its template was trained on that template. Base models
    that ship a template stop at another token.
    """
    turn = "" if chat else answer_turn(tokenizer)
    if not turn:
        return None
    ends = next((i for i in tokenizer(turn, add_special_tokens=False)["input_ids"]), None)
    if ends not in stop_ids or ends not in tokenizer.all_special_ids:
        return None
    name = tokenizer.convert_ids_to_tokens(ends)
    return f"a chat model without its chat template (its answers end with {name}): model.chat_template=true, or checks=false"


def _user_turn(tokenizer: Any, text: str) -> str:
    """Render a user's message, up to where the answer begins. Raises UserError where that fails, and where it need not give the
    same text again."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("this model's tokenizer has no chat template, as that of a base model: add model.chat_template=false")
    message = [{"role": "user", "content": text}]
    try:
        template = tokenizer.get_chat_template()
        frozen = freeze(template, ChatOptions())  # of a model in memory, whose template nobody has frozen yet
        if draws_at_random(template):
            raise UserError(
                "this model's chat template draws at random, so that no prompt comes twice: model.chat_template=false"
            )
        return str(tokenizer.apply_chat_template(message, chat_template=frozen, tokenize=False, add_generation_prompt=True))
    except UserError:
        raise
    except Exception as error:  # a template is a program of the model's author: whatever it raises is its mistake
        raise UserError(f"{template_error(error)}; correct the template, or model.chat_template=false") from error


def template_error(error: Exception) -> str:
    """Return one line for what a chat template raised."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"this model's chat template can't be filled: {type(error).__name__}: {first}"


# Both take the template as well: a tokenizer stays the same object when its template is changed.
@lru_cache(maxsize=8)
def _template_bos(tokenizer: Any, _template: str, bos: str) -> int:
    return max(1, _user_turn(tokenizer, "0").count(bos))


@lru_cache(maxsize=8)
def _answer_turn(tokenizer: Any, _template: str) -> str:
    mark = "0123456789"
    try:
        return _user_turn(tokenizer, mark).rpartition(mark)[2].strip()
    except UserError:  # said where a prompt is to go through it
        return ""
