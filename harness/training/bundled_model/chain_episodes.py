"""Episodes of variable tracking, in RULER's wording: several chains at once, with one question a chain."""

from __future__ import annotations

from itertools import pairwise

from harness.tasks.ruler.wording import NOISE
from harness.training.bundled_model.pieces import Pieces, Row


def add_chains(pieces: Pieces, row: Row, room: int) -> None:
    """Add chains of assignments in about `room` tokens of noise, mostly after a short worked example, and their questions."""
    rng = pieces.rng
    if room >= 512 and rng.random() < 0.7:
        _add_block(pieces, row, 5 * (len(pieces.noise) + 1) + 100, chains=1, hops=4, letters=3)
        row.add(pieces.encode("\n") + pieces.encode("\n"))
    remaining = room - len(row.ids) if room > len(row.ids) else 64
    chains = 1 if rng.random() < 0.4 else rng.randint(1, max(1, min(8, remaining // 400)))
    _add_block(pieces, row, remaining, chains=chains, hops=rng.choice([1, 2, 3, 4, 4, 4, 5, 6]), letters=5)


def _add_block(pieces: Pieces, row: Row, room: int, *, chains: int, hops: int, letters: int) -> None:
    """Add `chains` chains of `hops` assignments after the first each, and a question for every chain."""
    rng, encode = pieces.rng, pieces.encode
    row.add(encode("Memorize and track the chain(s) of variable assignment hidden in the following text.") + encode("\n") * 2)
    names = [[pieces.name(letters) for _ in range(hops + 1)] for _ in range(chains)]
    values = [pieces.number(5) for _ in range(chains)]
    lines: list[list[list[int]]] = []
    var = encode("VAR")
    for chain, value in zip(names, values, strict=True):
        assignments = [var + chain[0] + encode(" =") + value]
        assignments += [var + new + encode(" = VAR") + old + encode(" ") for old, new in pairwise(chain)]
        lines.append(assignments)
    noise = encode(NOISE)
    ask = 70 + 6 * (hops + 1)
    used = sum(len(line) + 1 for assignments in lines for line in assignments)
    copies = max(2, (room - used - chains * ask - 20) // (len(noise) + 1))
    slots = sorted(rng.choices(range(copies + 1), k=chains * (hops + 1)))
    turns = [c for c in range(chains) for _ in range(hops + 1)]
    rng.shuffle(turns)  # which chain's next line stands in each slot: lines of one chain stay in their order
    in_slot: dict[int, list[list[int]]] = {}
    taken = [0] * chains
    for slot, c in zip(slots, turns, strict=True):
        in_slot.setdefault(slot, []).append(lines[c][taken[c]])
        taken[c] += 1
    newline = encode("\n")
    for n in range(copies + 1):
        for line in in_slot.get(n, []):
            row.add(line + newline)
        if n < copies:
            row.add(noise + newline)
    for c in rng.sample(range(chains), chains):
        row.add(encode("Question: Find all variables that are assigned the value") + values[c] + encode(" in the text above."))
        row.add(encode(" Answer: According to the chain(s) of variable assignment in the text above,"))
        row.add(encode(f" {hops + 1}") + encode(" variables are assigned the value"))
        row.add(values[c] + encode(", they are:") + encode(" "))
        row.add([token for name in names[c] for token in name] + [pieces.eos], answer=True)
        row.add(newline)
