"""The identities of arms and cells: what is to be measured, with ids that are equal exactly when the numbers must be.

An arm is a method at one sparsity, length and seed on one model; a cell is an arm on one task. Their ids are hashes of
everything that determines the numbers, so the same command finds its finished work and another dtype, kernel, gate
file or haystack never mixes with it. The number of samples is left out on purpose: more samples extend a cell.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from harness.core.question import QUESTION_SEEN
from harness.core.sizing import FULL

_DIGITS = 16


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of the canonical JSON of `value` (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Setting:
    """What a method and the dense baseline beside it have in common: the model with the hash of its weights, the length of
    prompts in tokens, the seed of the samples, the dtype, the type of device, and the kernel of dense attention. max_length:
    tokens of the longest text, where the user has set it. rope_dtype: of RoPE's frequencies, None where it is `dtype`. shape:
    the config for which a model's weights were drawn at random, None for a model with weights of its own. prefill_chunk: tokens
    of a prompt that go through the model at once, None for all."""

    model: str
    model_hash: str
    length: int
    seed: int
    dtype: str
    device_type: str
    dense_kernel: str
    max_length: int | None = None
    rope_dtype: str | None = None
    shape: dict[str, Any] | None = None
    prefill_chunk: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that determine numbers. A length that is the config's own has no entry, nor has RoPE in the
        model's dtype, as in every record before 2026-11-30: those keep their ids, and 16-bit arms are measured anew. Nor has a
        model with weights a shape, or a prompt that goes through it whole a chunk."""
        optional = ("max_length", "rope_dtype", "shape", "prefill_chunk")
        return {k: v for k, v in asdict(self).items() if k not in optional or v is not None}


@dataclass(frozen=True)
class Decoding:
    """A method that decodes sparsely: its name, its knobs, its kernel, and the hash of its trained weights, if it has any."""

    method: str
    knobs: dict[str, Any]
    kernel: str
    weights_hash: str | None = None


@dataclass(frozen=True)
class ArmIdentity:
    """One method in one setting. The dense baseline has no knobs, block size, kernel or weights (all None), and decodes with
    full attention, as every arm without a `decode`."""

    setting: Setting
    method: str
    sparsity: float | None
    knobs: dict[str, Any] = field(default_factory=dict)
    block_size: int | None = None
    kernel: str | None = None
    weights_hash: str | None = None
    decode: Decoding | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything that determines the arm's numbers, flat. Full attention at decode has no entry: arms keep the ids
        they had before there was another."""
        own = {k: v for k, v in asdict(self).items() if k != "setting" and (k, v) != ("decode", None)}
        return {**self.setting.as_dict(), **own}

    def prefill(self) -> ArmIdentity:
        """Return what the arm is at prefill, which its decoding doesn't change."""
        return replace(self, decode=None)

    @cached_property
    def id(self) -> str:
        """Return the arm's id, the digest of `as_dict`."""
        return digest(self.as_dict())


@dataclass(frozen=True)
class Samples:
    """Which samples a task draws, and how the model is given them: the task, its generator's version, the text behind all
    tasks, the chat template, the files that this task alone reads, by content, whether the question is seen at prefill, and how
    long prompts are (`harness.core.sizing`)."""

    task: str
    generator: str
    data: dict[str, Any]
    chat_template: bool
    files: dict[str, str] = field(default_factory=dict)
    question: str = QUESTION_SEEN
    sizing: str = FULL

    def as_dict(self) -> dict[str, Any]:
        """Return everything that determines the samples. A task that reads no file has no entry, and none says that the
        question is seen, or that prompts are of full length: cells keep the ids they had before there was another way."""
        usual: tuple[tuple[str, object], ...] = (("files", {}), ("question", QUESTION_SEEN), ("sizing", FULL))
        return {k: v for k, v in asdict(self).items() if (k, v) not in usual}


@dataclass(frozen=True)
class Cell:
    """One arm on one task: the unit that is planned, run, resumed and recorded."""

    arm: ArmIdentity
    samples: Samples

    def as_dict(self) -> dict[str, Any]:
        """Return everything that determines the cell's numbers, flat."""
        return {**self.arm.as_dict(), **self.samples.as_dict()}

    @cached_property  # asked for with every sample
    def id(self) -> str:
        """Return the cell's id, the digest of `as_dict`."""
        return digest(self.as_dict())

    @cached_property
    def pair(self) -> str:
        """Return an id that is equal for the cells of all methods that must see the same samples, dense among them."""
        return digest({**self.arm.setting.as_dict(), **self.samples.as_dict()})
