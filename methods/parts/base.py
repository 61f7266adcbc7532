"""The base class of prefill methods: from one layer's queries and keys they choose the key blocks of each query block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypedDict

from attention_kernels.block_index import BlockIndex
from attention_kernels.column_index import ColumnIndex
from attention_kernels.selection import row_budget
from attention_kernels.skip_softmax import SkipRule
from torch import Generator, Tensor

from methods.parts.prompt_chunks import ChunkedPrompt
from methods.parts.release import Releasable
from methods.parts.rope_protocol import Rope
from methods.parts.row_budgets import budget_with_full_rows

if TYPE_CHECKING:
    from methods.gates.attn_gate import AttnGate

BLOCK_SIZES = (8, 16, 32, 48, 64, 80, 96, 112, 128)
"""Tokens of a block. The reference kernels take all of these, the Triton ones 16, 32, 64 and 128."""

Family = Literal["top-k", "threshold", "static", "none"]


@dataclass(frozen=True)
class LayerInputs:
    """One layer of one prompt as a method sees it: q [B,Hq,Q,D] and k [B,Hkv,K,D], post-RoPE, KV heads not repeated.

    Query i stands at position i + K - Q and key j at position j. layer: number of the layer. scale: of the scores q · k. rope:
    None unless the method has `needs_rope`. prompt: where the queries are a chunk of a prompt that comes chunk by chunk; None:
    nothing is known of more than these tokens.
    """

    q: Tensor
    k: Tensor
    layer: int
    scale: float
    rope: Rope | None = None
    prompt: ChunkedPrompt | None = None

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of the whole prompt, as far as it is known: all keys, and those of the chunks to come."""
        return self.k.shape[2] if self.prompt is None else self.prompt.tokens

    def block_vectors(self, block: int, vectors: Callable[[Tensor, int], Tensor], name: str) -> Tensor:
        """Return one vector for each block of all keys, [B,H,Nk,E]: what `vectors` makes of them, for a chunk of a prompt only
        of those that no earlier chunk had (see `ChunkedPrompt.block_vectors`)."""
        return vectors(self.k, 0) if self.prompt is None else self.prompt.block_vectors(self.k, block, vectors, name)


class Grid(TypedDict):
    """The blocks of one layer call, as the functions of kernels/ take them: block sizes and lengths, all in tokens."""

    q_block: int
    k_block: int
    q_len: int
    k_len: int


@dataclass(frozen=True)
class Knob:
    """A native knob whose value for a sparsity no formula gives: it is searched on measured density (harness.arms.calibration).

    name: of the attribute that holds it. low, high: its range. rising: whether density rises with it. log: whether the search
    goes by its logarithm; both ends are then above 0. whole: whether it is a whole number, so that the density of none may be
    near to the one that was asked for: the numbers on both sides of it are then measured.
    """

    name: str
    low: float
    high: float
    rising: bool
    log: bool = False
    whole: bool = False


class HeadSearch(Protocol):
    """An offline search over a model's heads for what a method must know of them: job=search_heads feeds it prompts."""

    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt, v [B,Hkv,K,D]; the layers of a prompt come in their order, prompt after prompt."""

    def result(self) -> dict[str, Any]:
        """Return the result as JSON holds it; `Method.load_search` takes it. Raises ValueError where nothing was observed."""


class Method(Releasable, ABC):
    """A sparse attention method of prefill. Subclasses take native knobs as keyword arguments beside the shared ones.

    block_size: tokens of a block. sparsity: share of causal blocks to leave out, in [0, 1); 0 keeps every block; None where
    the native knob decides. seed: of methods that draw.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where the method comes from: title and arXiv number."""
    knob: ClassVar[str]
    """The native knob: what decides how many blocks are kept."""
    family: ClassVar[Family]
    weights: ClassVar[str | None] = None
    """File name of the trained weights it needs, with {block_size} in it where they depend on that; None: none."""
    gate: ClassVar[type[AttnGate] | None] = None
    """The gate that job=distill trains for it, one a layer; None where nothing is trained."""
    searched: ClassVar[str | None] = None
    """Name of the JSON file that job=search_heads writes for it; None where nothing is searched."""
    search_required: ClassVar[bool] = False
    """Whether it can't run without that file."""
    needs_rope: ClassVar[bool] = False
    """Whether `select` needs the layer's rotary embedding."""
    reads_end: bool = False
    """Whether the rest of the prompt has a say in what earlier rows keep (its last queries, or a mean over all keys): then
    earlier rows may depend on later tokens through the selection, and nothing else. A class says it, or an instance by its
    knobs."""
    columns: ClassVar[bool] = False
    """Whether it may select single key columns: fewer kernels take them."""
    full_rows: int = 0
    """Query blocks at the end that keep everything, in methods that take the knob `last`; they count in the density.
    `rows_in_full` says how many do in a call: of a prompt in chunks they are the prompt's last."""
    in_kernel: ClassVar[bool] = False
    """Whether it selects nothing, and hands the kernel a rule to decide by: fewer kernels have one."""

    def __init__(self, *, block_size: int = 64, sparsity: float | None = None, seed: int = 0) -> None:
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size={block_size}: must be a multiple of 16 from 16 to 128, or 8 on a CPU")
        if sparsity is not None and not 0 <= sparsity < 1:
            raise ValueError(f"sparsity={sparsity}: must be at least 0 (keep every block) and below 1, for example 0.9")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0")
        self.block_size = block_size
        self.sparsity = sparsity
        self.seed = seed

    @abstractmethod
    def select(self, x: LayerInputs) -> BlockIndex | ColumnIndex | SkipRule | None:
        """Return the key blocks that each query block keeps, perhaps with single key columns, or a rule for the kernel.

        None runs dense attention. Never waits for the device.
        """

    def scores(self, x: LayerInputs) -> Tensor | None:
        """Return what the method expects of each block, for pictures; None where it doesn't rank blocks so.

        They are probabilities [B,H,Mq,Nk] float32 over the causal blocks of a row, 0 in the future; H is the query heads or the
        KV heads.
        """
        return None

    def load(self, state: Mapping[str, Tensor], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        """Load trained weights. Raises ValueError, one line, where they don't fit the model."""
        raise ValueError(f"method {self.name} has no trained weights to load")

    def search(self, *, layers: int, heads: int, kv_heads: int, head_dim: int) -> HeadSearch:
        """Return a search over a model of this shape. Raises ValueError where nothing is searched."""
        raise ValueError(f"method {self.name} needs no search of a model's heads")

    def load_search(self, result: Mapping[str, Any], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        """Load a search's result. Raises ValueError, one line, where it doesn't fit the model."""
        raise ValueError(f"method {self.name} needs no search of a model's heads")

    def draw_search(
        self, generator: Generator, *, layers: int, heads: int, kv_heads: int, head_dim: int
    ) -> Mapping[str, Any] | None:
        """Return a drawn result for `load_search`, for a model of random weights, in which a search finds nothing; None where
        what is searched has no spread that could be drawn."""
        return None

    def weights_name(self) -> str | None:
        """Return the file name of the trained weights that it needs at its block size; None where it needs none."""
        return None if self.weights is None else self.weights.format(block_size=self.block_size)

    def needs_search(self) -> bool:
        """Return whether it can't go without a search of the model's heads, as its knobs are."""
        return self.search_required

    def search_file(self) -> str | None:
        """Return the file to load a search's result from: `searched`, or the user's path; None where it needs none."""
        return self.searched

    def calibrates(self) -> Knob | None:
        """Return the knob to search for the sparsity that was asked for; None where there is a formula or no sparsity."""
        return None

    def set_knob(self, knob: Knob, value: float) -> None:
        """Set the knob that `calibrates` names."""
        setattr(self, knob.name, round(value) if knob.whole else value)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        """Return the native knobs and their values, as a row records them."""
        return {}

    def to(self, device: Any) -> Self:
        """Move the tensors that the method holds to a device, and return it."""
        return self

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def grid(self, x: LayerInputs) -> Grid:
        """Return the blocks of this call, for the functions of kernels/."""
        return Grid(q_block=self.block_size, k_block=self.block_size, q_len=x.q.shape[2], k_len=x.k.shape[2])

    def prompt_grid(self, x: LayerInputs) -> Grid:
        """Return the blocks of the whole prompt that this call is a chunk of, or of the call where nothing is known of more:
        what is spread over all rows is spread over these, and `rows` are the call's."""
        grid = self.grid(x)
        if x.prompt is not None:
            grid["q_len"] = grid["k_len"] = x.prompt.tokens
        return grid

    def rows(self, x: LayerInputs) -> slice:
        """Return which query blocks of `prompt_grid` the call holds."""
        grid = self.grid(x)
        first = 0 if x.prompt is None else (grid["k_len"] - grid["q_len"]) // grid["q_block"]
        return slice(first, first - (-grid["q_len"] // grid["q_block"]))

    def last_rows_here(self, last: int, x: LayerInputs) -> int:
        """Return how many of the last `last` query blocks of the prompt the call holds; they are its own last ones."""
        grid = self.prompt_grid(x)
        later = -(-grid["q_len"] // grid["q_block"]) - self.rows(x).stop
        return max(0, min(last - later, -(-x.q.shape[2] // grid["q_block"])))

    def budget(self, x: LayerInputs) -> tuple[int, ...]:
        """Return the key blocks to keep in each row so that the density of the prompt is 1 - sparsity: Mq numbers."""
        return self.prompt_budget(self.prompt_grid(x))[self.rows(x)]

    def prompt_budget(self, grid: Grid) -> tuple[int, ...]:
        """Return `budget` of all rows of a prompt, whose grid this is."""
        density = 1 - self.required_sparsity()
        if self.full_rows:
            return budget_with_full_rows(density, self.full_rows, **grid, whole=self.as_released)[1]
        return row_budget(density, **grid)

    def rows_in_full(self, x: LayerInputs) -> int:
        """Return the query blocks at the end of a call that keep everything. What selects takes the number (`full_rows`), and
        makes no list for them."""
        return self.last_rows_here(self.prompt_rows_in_full(self.prompt_grid(x)), x)

    def prompt_rows_in_full(self, grid: Grid) -> int:
        """Return the query blocks at the end of a prompt that keep everything: as many as were asked for, or with a sparsity as
        many as half of the budget pays. grid: of the prompt."""
        if self.sparsity is None or not self.full_rows:
            return min(self.full_rows, -(-grid["q_len"] // grid["q_block"]))
        return budget_with_full_rows(1 - self.sparsity, self.full_rows, **grid, whole=self.as_released)[0]

    def take_last(self, last: int) -> None:
        """Set the knob `last`, in query blocks. Raises ValueError where it is negative."""
        if last < 0:
            raise ValueError(f"last={last}: must be at least 0 query blocks")
        self.full_rows = last

    @property
    def chunk_step(self) -> int:
        """Return the tokens that each chunk of a prompt but the last must be a multiple of: no block is cut then."""
        return self.block_size

    @property
    def fixed_floors(self) -> bool:
        """Return whether blocks that rows always keep are as many as their knobs say: without a sparsity, or as released.
        Otherwise they shrink where they would leave the selection no say."""
        return self.sparsity is None or self.as_released

    def one_of(self, **knob: float | None) -> None:
        """Raise ValueError where both a sparsity and the native knob, given by its name, were asked for."""
        for name, value in knob.items():
            if self.sparsity is not None and value is not None:
                both = f"sparsity={self.sparsity} and {name}={value}"
                raise ValueError(f"{both}: give one of them (sparsity=null: {name} decides)")

    def required_sparsity(self, instead: str = "") -> float:
        """Return the sparsity. Raises ValueError where none was given; `instead` names what else would do."""
        if self.sparsity is None:
            raise ValueError(f"method {self.name} needs sparsity in [0, 1), for example 0.9{instead}")
        return self.sparsity
