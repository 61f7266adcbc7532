"""How NVIDIA's code sizes prompts (`task.sizing=release`): the steps of its generators, which keep no prompt long for long.

It looks for the largest haystack at which one drawn prompt fits. A sample that is longer then loses a whole step: 500 words of
prose, 25 needles or lines. At 4k tokens that leaves most prompts of some tasks an eighth short, or without half their needles.
"""

from __future__ import annotations

from harness.core.sizing import RELEASE
from harness.tasks.ruler.builders import NEEDLES
from harness.tasks.ruler.sizing import Sizer
from harness.tasks.ruler.word_counts import SHORT

PROSE_STEP, LINES_STEP, NOISE_STEP, LIST_STEP, SHORT_STEP = 500, 25, 10, 10, 5
"""Words of prose, lines or needles of niah, lines of vt's noise, words of cwe and documents of qa; and what lines of either
task are below SHORT tokens."""
CODED_LETTERS, CODED_STEPS = 6, 32
"""fwe begins at a word for so many tokens, and its steps are the length ÷ so many."""


def step(task: str, length: int) -> int:
    """Return how much of its haystack a sample of NVIDIA's loses at once, where it is longer than `length` tokens."""
    if task in NEEDLES and NEEDLES[task].needs_prose:
        return PROSE_STEP
    if task in NEEDLES or task == "vt":
        return SHORT_STEP if length < SHORT else LINES_STEP if task in NEEDLES else NOISE_STEP
    return LIST_STEP


class ReleaseSizer(Sizer):
    """Sizes samples as NVIDIA's code does. Where that never ends, as not even one step fits, they become smaller as any
    other."""

    sizing = RELEASE

    @property
    def step(self) -> int:
        """Return the units of the haystack that are lost at once."""
        return self.room // CODED_STEPS if self.task == "fwe" else step(self.task, self.length)

    def find_size(self) -> int:
        """Return the size that samples begin with."""
        return self._stepped() if self.task == "fwe" else self._bisected()

    def smaller(self, size: int, tokens: int) -> int:
        """Return the size that follows where a sample of `size` has more tokens than fit."""
        return size - self.step if size > self.step else super().smaller(size, tokens)

    def _bisected(self) -> int:
        """Return the largest size at which a prompt fits that is drawn anew for every size, or one step."""
        low = best = max(self.step, self.smallest)
        high = max(int(3 * self.length / (self._drawn(low) / low)), 2 * low)
        while self._drawn(high) <= self.room:
            if self.most is not None and high >= self.most:
                return self.most
            high *= 2
        while low <= high:
            middle = (low + high) // 2
            if self._drawn(middle) <= self.room:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best if self.most is None else min(best, self.most)

    def _drawn(self, size: int) -> int:
        """Return the tokens of a prompt of a size, that no sample has."""
        return self.tokens(size if self.most is None else min(size, self.most), f"sizing:{size}")[0]

    def _stepped(self) -> int:
        """Return the last of fwe's sizes, a step from each to the next, at which a prompt fits."""
        size = self.room // CODED_LETTERS
        while self.tokens(size, "sizing")[0] < self.room:
            size += self.step
        return max(size - self.step, self.smallest)
