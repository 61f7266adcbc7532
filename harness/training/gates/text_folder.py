"""A folder of .txt files as one long text of which only what is needed is read: the steps of a training need little of it."""

from __future__ import annotations

import bisect
import random
import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from harness.core.errors import UserError
from harness.core.input_files import text_files

HELD_OUT = 20
"""One part in so many, the last, is held out from training to measure recall on."""


@dataclass(frozen=True)
class TextPart:
    """The bytes [start, stop) of files behind one another, as if the last were followed by the first.

    paths: of the files. ends: where each ends, in bytes.
    """

    paths: tuple[Path, ...]
    ends: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Return how many bytes the part has."""
        return self.stop - self.start

    def read(self, place: int, size: int) -> str:
        """Return at most `size` bytes from a place in the part on as text, white space collapsed; of a character that the edge
        cuts, nothing."""
        size = min(size, self.size)
        first = min(size, self.size - place)
        raw = b" ".join((self._bytes(self.start + place, first), self._bytes(self.start, size - first)))
        return re.sub(r"\s+", " ", raw.decode("utf-8", errors="ignore")).strip()

    def stretches(self, size: int, piece: int, rng: random.Random) -> dict[str, str]:
        """Return about `size` bytes in stretches of `piece` bytes from random places, by their places; all files by their
        names where there is no more."""
        if self.size <= size:
            begins = (0, *self.ends[:-1])
            return {
                str(path): self.read(max(begin, self.start) - self.start, min(end, self.stop) - max(begin, self.start))
                for path, begin, end in zip(self.paths, begins, self.ends, strict=True)
                if begin < self.stop and end > self.start
            }
        places = (rng.randrange(self.size) for _ in range(-(-size // piece)))
        return {f"from byte {place}": self.read(place, piece) for place in places}

    def _bytes(self, place: int, size: int) -> bytes:
        """Return the bytes of the files from a place on."""
        parts: list[bytes] = []
        number = bisect.bisect_right(self.ends, place)
        while size > 0 and number < len(self.paths):
            with self.paths[number].open("rb") as file:
                file.seek(place - (self.ends[number - 1] if number else 0))
                parts.append(file.read(min(size, self.ends[number] - place)))
            size -= self.ends[number] - place
            place, number = self.ends[number], number + 1
        return b" ".join(parts)


def text_folder(folder: str | Path, seed: int | None = None) -> TextPart:
    """Return all .txt files below `folder`, by name or, with a seed, in an order drawn from it. Raises UserError where there is
    no text."""
    paths = text_files("data.text_dir", str(folder), "name a folder of plain-text documents")
    if not any(path.stat().st_size for path in paths):
        raise UserError(f"data.text_dir={folder}: no .txt file with text there; name a folder of plain-text documents")
    if seed is not None:
        random.Random(seed).shuffle(paths)
    ends = tuple(accumulate(path.stat().st_size for path in paths))
    return TextPart(tuple(paths), ends, 0, ends[-1])


def held_out(text: TextPart) -> tuple[TextPart, TextPart]:
    """Return the part to train on, and the last part, to measure recall on."""
    cut = text.stop - text.size // HELD_OUT
    return TextPart(text.paths, text.ends, text.start, cut), TextPart(text.paths, text.ends, cut, text.stop)
