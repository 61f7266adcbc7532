"""The cache of a batch: prompts are prefilled one by one into it, right-aligned, and decoded together without a copy."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class _BatchLayer(DynamicLayer):
    """One layer's keys and values [rows, Hkv, columns, D], allocated at the first prefill and written in place. row: of the
    prompt that is being prefilled, None while decoding; `seen` of its tokens lie from column `start` on.

    At prefill of row r, the prompt goes to the columns that end where all rows end so far, and attention sees the prompt
    alone, as far as it is there; at decode, each token goes to the next column of all rows, and attention sees a view of the
    columns filled so far.
    """

    def __init__(self, rows: int, prompt: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.filled = prompt
        self.row: int | None = None
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
        if self.row is not None:
            return self._prefill(self.row, key_states, value_states)
        self.keys[:, :, self.filled] = key_states[:, :, 0]
        self.values[:, :, self.filled] = value_states[:, :, 0]
        self.filled += 1
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def _prefill(self, row: int, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next piece of a prompt. Returns the keys and values that attention sees: of all pieces so far."""
        assert self.keys is not None and self.values is not None
        begin = self.start + self.seen
        end = begin + key_states.shape[2]
        self.keys[row, :, begin:end] = key_states[0]
        self.values[row, :, begin:end] = value_states[0]
        self.seen = end - self.start
        if begin == self.start:  # one piece, or the first: contiguous as they are
            return key_states, value_states
        return self.keys[row : row + 1, :, self.start : end], self.values[row : row + 1, :, self.start : end]

    def get_seq_length(self) -> int:
        return self.seen if self.row is not None else self.filled

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

    def prefill(self, row: int, length: int) -> None:
        """Take the next forward passes for the prompt of `row`: `length` tokens, in one piece or several. After some steps of
        decoding these are the tokens of the prompt and of the steps, whose keys and values are made anew."""
        for layer in self._all:
            layer.row, layer.start, layer.seen = row, layer.filled - length, 0

    def crop_prompt(self, tokens: int) -> None:
        """Keep the first `tokens` of the prompt that is being prefilled: the next piece follows those."""
        for layer in self._all:
            layer.seen = tokens

    def decode(self) -> None:
        """Take every forward pass from now on for one more token of all rows."""
        for layer in self._all:
            layer.row = None

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
