"""Episodes of common and of frequent words, in RULER's wording."""

from __future__ import annotations

import string

from harness.tasks.ruler.wording import COMMON_WORDS, FREQUENT_WORDS
from harness.training.bundled_model.pieces import Pieces, Row


def add_common_words(pieces: Pieces, row: Row, room: int) -> None:
    """Add a numbered list in which ten words are common; RULER's 30 and 3 repeats at length, fewer in short rows."""
    rng, encode = pieces.rng, pieces.encode
    row.add(encode(COMMON_WORDS.template.partition("{context}")[0]))
    common_repeats, rare_repeats = rng.choice([(30, 3), (10, 3), (6, 1), (4, 1)])
    n = 10 if room > 1500 else 3
    words = rng.sample(pieces.corpus.words, min(len(pieces.corpus.words), n + room // (5 * rare_repeats)))
    common, rare = words[:n], iter(words[n:])
    pool = common * common_repeats
    space = (room - len(row.ids) - 90) // 8
    while len(pool) < space:
        word = next(rare, None)
        if word is None:
            break
        pool += [word] * rare_repeats
    rng.shuffle(pool)
    for i, word in enumerate(pool[: max(space, n)]):
        row.add((pieces.ordinal(i + 1) if i else encode("1.")) + encode(" " + word))
    seen = [word for word in dict.fromkeys(pool[: max(space, n)]) if word in set(common)]
    row.add(encode("\n") + encode("Question: What are the") + encode(f" {n}"))
    row.add(encode(" most common words in the above list? Answer: The top") + encode(f" {n}"))
    row.add(encode(" words that appear most often in the list are:"))
    answer = [token for i, word in enumerate(seen) for token in pieces.ordinal(i + 1) + encode(" " + word)]
    row.add([*answer, pieces.eos], answer=True)


def add_frequent_words(pieces: Pieces, row: Row, room: int) -> None:
    """Add coded words with zeta-distributed counts; the three most frequent are asked for."""
    rng, encode = pieces.rng, pieces.encode
    head, _, question = FREQUENT_WORDS.template.partition("{context}")
    row.add(encode(head.rstrip(" ")))
    space = max(24, (room - len(row.ids) - 80) // 3)
    vocab = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(max(8, room // 50))]
    counts = [int(space / (rank * rank) / 1.6449) for rank in range(1, len(vocab) + 1)]  # ζ(2) = 1.6449
    coded = [encode(" ...")] + [encode(" " + word) for word in vocab[1:]]
    pool = [i for i, count in enumerate(counts) for _ in range(count)]
    rng.shuffle(pool)
    for i in pool:
        if len(row.ids) > room - 80:
            break
        row.add(coded[i])
    row.add(encode(question + FREQUENT_WORDS.answer_prefix))
    row.add(coded[1] + coded[2] + coded[3] + [pieces.eos], answer=True)
