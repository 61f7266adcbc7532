"""RULER's wording (arXiv 2404.06654; NVIDIA/RULER, scripts/data/synthetic/constants.py, niah.py and qa.py): templates, answer
prefixes, token budgets, needles."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """A template with {context} and {query}, what the answer starts with, and how many tokens it may have."""

    template: str
    answer_prefix: str
    tokens_to_generate: int


NIAH = Wording(
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz you about"
    " the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query} mentioned in the"
    " provided text?",
    " The special magic {type_needle_v} for {query} mentioned in the provided text are",
    128,
)
VARIABLE_TRACKING = Wording(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find all"
    " variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assigned the value"
    " {query}, they are: ",
    30,
)
COMMON_WORDS = Wording(
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most"
    " often.\n{context}\nQuestion: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
    120,
)
FREQUENT_WORDS = Wording(
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded"
    " words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most"
    " frequently appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
    50,
)
QUESTION_ANSWERING = Wording(
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\nThe"
    " following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me the answer"
    " and do not output any other words.\n\nQuestion: {query}",
    " Answer:",
    32,
)
DOCUMENT = "Document {i}:\n{document}"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."


def needle(kind: str, key: str, value: str) -> str:
    """Return a needle; `kind` is in the plural, as RULER has it for one value too."""
    return NEEDLE.format(kind=kind, key=key, value=value)


def singular(text: str) -> str:
    """Return NIAH's template or answer prefix as it is for one value."""
    for plural, one in (("Some", "A"), ("are all", "is"), ("are", "is")):
        text = text.replace(plural, one)
    return text


def niah_text(kind: str, keys: list[str], context: str, answers: int) -> tuple[str, str]:
    """Return (context with its question, answer prefix) for the values of `keys`; in the singular for one answer."""
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    template, prefix = NIAH.template, NIAH.answer_prefix
    if answers == 1:
        kind, template, prefix = kind[:-1], singular(template), singular(prefix)
    return template.format(type_needle_v=kind, context=context, query=query), prefix.format(type_needle_v=kind, query=query)


def random_number(rng: random.Random, digits: int = 7) -> str:
    """Draw a number of exactly `digits` digits."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def random_uuid(rng: random.Random) -> str:
    """Draw a version-4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
