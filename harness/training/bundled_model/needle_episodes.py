"""Episodes of needles in a haystack, in RULER's wording, with as many questions as fit where RULER asks one."""

from __future__ import annotations

from dataclasses import dataclass

from harness.tasks.ruler.wording import NOISE
from harness.training.bundled_model.pieces import Pieces, Row


@dataclass(frozen=True)
class _Wording:
    """How the needles of an episode read: `unit` of the values, and whether a question has more than one answer."""

    pieces: Pieces
    unit: str
    plural: bool

    @property
    def kind(self) -> str:
        """Return the values' name as the questions have it."""
        return f" {self.unit}s" if self.plural else f" {self.unit}"

    def head(self) -> list[int]:
        """Return the words before the haystack."""
        encode = self.pieces.encode
        first = "Some special magic" if self.plural else "A special magic"
        hidden = " are hidden" if self.plural else " is hidden"
        task = hidden + " within the following text. Make sure to memorize it. I will quiz you about the"
        return encode(first) + encode(self.kind) + encode(task) + encode(self.kind) + encode(" afterwards.") + encode("\n")

    def needle(self, key: list[int], value: list[int], *, after_space: bool) -> list[int]:
        """Return a needle, which names its kind in the plural, as RULER does."""
        encode = self.pieces.encode
        first = encode(" One of the special magic") if after_space else encode("One of the special magic")
        return first + encode(f" {self.unit}s") + encode(" for") + key + encode(" is:") + value + encode(".")

    def question(self, key: list[int], values: list[list[int]]) -> tuple[list[int], list[int]]:
        """Return a question for `key` with the answer's beginning, and the answer."""
        encode = self.pieces.encode
        ask, end = ("\nWhat are all the special magic", "are") if self.plural else ("\nWhat is the special magic", "is")
        named = encode(self.kind) + encode(" for") + key
        text = encode(ask) + named + encode(" mentioned in the provided text? The special magic") + named
        answer: list[int] = []
        for i, value in enumerate(values):
            answer += ([*encode(",")] if i else []) + value
        return text + encode(f" mentioned in the provided text {end}"), [*answer, *encode("."), self.pieces.eos]


def add_needles(pieces: Pieces, row: Row, room: int, haystack: str) -> None:
    """Add needles in about `room` tokens of essay, noise (one repeated line) or other needles; then questions for them."""
    rng, encode = pieces.rng, pieces.encode
    unit = rng.choice(["number", "number", "uuid"])
    uuid_keys = haystack == "needle" and unit == "uuid" and rng.random() < 0.7
    n_values = rng.choice([1, 1, 1, 2, 4]) if haystack != "needle" else 1
    n_query = rng.choice([1, 1, 1, 2, 4])
    wording = _Wording(pieces, unit, plural=n_values * n_query > 1)
    digits = 7 if rng.random() < 0.8 else rng.randint(4, 9)
    draw_value = pieces.uuid if unit == "uuid" else (lambda: pieces.number(digits))
    draw_key = pieces.uuid if uuid_keys else pieces.key
    row.add(wording.head())

    size = len(wording.needle(draw_key(), draw_value(), after_space=False)) + 1
    question, answer = wording.question(draw_key(), [draw_value()])
    cost = len(question) + len(answer)
    room = room - len(row.ids)
    most = int(32 * max(1.0, room / 8192) ** 0.5)
    n_asked = max(1, min(most, room // 3 // (cost * max(1, (n_query * n_values + 1) // 2))))
    context = room - n_asked * (cost + (n_query - 1) * 2 * len(draw_key()) + (n_query * n_values - 1) * (size // 3))
    if haystack == "needle":
        n_keys = max(2, context // size)
    else:
        n_keys = max(1, min(int(2 ** rng.uniform(0.0, 6.8)), context // (2 * size * n_values)))
    keys = [draw_key() for _ in range(n_keys)]
    items: list[int | None] = [i for i in range(n_keys) for _ in range(n_values)]
    values: list[list[list[int]]] = [[] for _ in keys]  # in order of appearance, the order in which they are asked for

    def next_needle(i: int, *, after_space: bool) -> list[int]:
        values[i].append(draw_value())
        return wording.needle(keys[i], values[i][-1], after_space=after_space)

    if haystack == "essay":
        rng.shuffle(items)
        runs = pieces.prose_sentences(context - len(items) * size, len(items) + 1)
        row.add(runs[0])
        for item, run in zip(items, runs[1:], strict=True):
            row.add(next_needle(item or 0, after_space=True) + run)
    else:
        noise, newline = encode(NOISE), encode("\n")
        if haystack == "noise":
            items += [None] * max(0, (context - len(items) * size) // (len(noise) + 1))
        rng.shuffle(items)
        for n, item in enumerate(items):
            row.add((newline if n else []) + (noise if item is None else next_needle(item, after_space=False)))
    unasked = rng.sample(range(n_keys), n_keys)  # no key is asked for twice: the second answer could be copied from the first
    while unasked and n_asked:
        chosen, unasked, n_asked = unasked[:n_query], unasked[n_query:], n_asked - 1
        query: list[int] = []
        for n, i in enumerate(chosen):
            query += (encode(", and") if n and n == len(chosen) - 1 else encode(",") if n else []) + keys[i]
        question, answer = wording.question(query, [value for i in chosen for value in values[i]])
        row.add(question)
        row.add(answer, answer=True)
