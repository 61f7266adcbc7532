"""The cache of a batch: prompts are prefilled into it, one by one or those of one length together, right-aligned, and decoded
together without a copy."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class _BatchLayer(DynamicLayer):
    """One layer's keys and values [rows, Hkv, columns, D], allocated at the first prefill and written in place. part: the rows
    of the prompts that are being prefilled, None while decoding; `seen` tokens of each lie from column `start` on.

    At prefill of some rows, their prompts go to the columns that end where all rows end so far, and attention sees these
    prompts alone, as far as they are there; at decode, each token goes to the next column of all rows, and attention sees a
    view of the columns filled so far.
    """

    def __init__(self, rows: int, prompt: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.filled = prompt
        self.part: slice | None = None
        self.start = self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # zeros: a masked column still enters the product, and 0 × NaN from uninitialised memory would be NaN
        self.keys, self.values = (
            x.new_zeros(self.rows, x.shape[1], self.columns, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self.part is not None:
            return self._prefill(self.part, key_states, value_states)
        self.keys[:, :, self.filled] = key_states[:, :, 0]
        self.values[:, :, self.filled] = value_states[:, :, 0]
        self.filled += 1
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def _prefill(self, part: slice, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next piece of each prompt. Returns the keys and values that attention sees: of all pieces so far."""
        assert self.keys is not None and self.values is not None
        begin = self.start + self.seen
        end = begin + key_states.shape[2]
        self.keys[part, :, begin:end] = key_states
        self.values[part, :, begin:end] = value_states
        self.seen = end - self.start
        if begin == self.start:  # one piece, or the first: contiguous as they are
            return key_states, value_states
        return self.keys[part, :, self.start : end], self.values[part, :, self.start : end]

    def get_seq_length(self) -> int:
        return self.seen if self.part is not None else self.filled

    def copy_row(self, other: _BatchLayer) -> None:
        """Write the only row of another layer into every row of this one, as far as that is filled."""
        if not other.is_initialized:  # its keys are those of an earlier layer
            return
        assert other.keys is not None and other.values is not None
        self.lazy_initialization(other.keys, other.values)
        assert self.keys is not None and self.values is not None
        self.keys[:, :, : other.filled] = other.keys[:, :, : other.filled]
        self.values[:, :, : other.filled] = other.values[:, :, : other.filled]


class BatchCache(Cache):
    """The cache of a batch, in transformers' own terms, so that any decoder accepts it.

    rows: sequences of the batch. prompt: tokens of the longest prompt; columns: those and what is decoded.
    """

    def __init__(self, layers: int, *, rows: int, prompt: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self._all = [_BatchLayer(rows, prompt, columns) for _ in range(layers)]
        super().__init__(layers=list(self._all))

    def prefill(self, row: int, length: int, *, rows: int = 1) -> None:
        """Take the next forward passes for the prompts of `row` and those after it, `rows` together: `length` tokens each, in
        one piece or several. After some steps of decoding these are the tokens of the prompt and of the steps, whose keys and
        values are made anew."""
        for layer in self._all:
            layer.part, layer.start, layer.seen = slice(row, row + rows), layer.filled - length, 0

    def crop_prompt(self, tokens: int) -> None:
        """Keep the first `tokens` of each prompt that is being prefilled: the next piece follows those."""
        for layer in self._all:
            layer.seen = tokens

    def decode(self) -> None:
        """Take every forward pass from now on for one more token of all rows."""
        for layer in self._all:
            layer.part = None

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` columns of every row while decoding: the next step writes the one after them."""
        for layer in self._all:
            layer.filled = max_length

    def repeated(self, rows: int) -> BatchCache:
        """Return a cache of `rows` sequences, each a copy of the one in this cache, in memory of its own, for decoding on.

        Raises ValueError for a cache of several rows.
        """
        if self.rows != 1:
            raise ValueError(f"a cache of {self.rows} rows: only one row can be repeated")
        other = BatchCache(len(self._all), rows=rows, prompt=self._all[0].filled, columns=self.columns)
        for own, copy in zip(self._all, other._all, strict=True):
            copy.copy_row(own)
        return other
