"""Every decoder type of the installed transformers at toy size: the bridge beside the model's own eager attention.

    python -m tests.harness.models.decoders [TYPE ...]     # prints a row for each type, all types where none is named
    python -m tests.harness.models.decoders --write [TYPE ...]     # into decoders.csv and docs/decoders.md too

A type is `equal`, or `refused` in one line, or what must not be: `wrong`, `crash`. `not run` says that transformers itself
can't run the toy. Composite types (text and images) are tried by their text decoder.
"""

from __future__ import annotations

import csv
import logging
import re
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import methods
from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.generate import generate
from harness.models.loading import LoadedModel, wrap_model

TABLE = Path(__file__).with_name("decoders.csv")
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "decoders.md"
TRANSFORMERS = "5.23"
"""The version that table and document are of."""
STATES = {"equal": "Equal", "refused": "Refused", "not run": "Not run"}
HEAD = """# Decoders

Each of the {total} decoder types of transformers {version} is made at toy size with random weights, and run beside its
own eager attention. {equal} are equal, {refused} are refused in one line, and {not_run} could not be made or run by
transformers itself at this size.

Compared are the logits of prompts of 75, 30, 20 and 1 tokens, where the window has 24; of the longest in two chunks;
and under a method at `sparsity=0`. Compared too are the tokens that follow in a batch of the four, with those of
transformers' own `generate`. Logits may be 0.001 apart, relative to their norm; tokens must be the same.

```sh
python -m tests.harness.models.decoders --write             # makes this page and its table again, in minutes
python -m tests.harness.models.decoders phimoe llama        # prints the rows of some types
python -m pytest -m slow tests/harness/models/test_decoders.py
```

A type of text and images is tried by its text decoder. The kinds of layers are those of its default config. What is
refused is so before anything is measured."""
KINDS: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

WINDOW = 24
PROMPTS = (75, 30, 20, 1)
"""Tokens: three windows and more, just past one, inside one, and a single one."""
NEW_TOKENS = 5
TOLERANCE = 1e-3
"""How far logits may be from the model's own, relative to their norm, at any position."""

MOST_PARAMETERS = 100_000_000
"""A config that makes a larger model has names for its sizes that _SIZES doesn't know."""

_HEADS, _KV_HEADS, _HEAD_DIM, _LAYERS, _VOCABULARY = 4, 2, 16, 4, 160

_SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "vocab_size_per_layer_input": _VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "hidden_size": _HEADS * _HEAD_DIM,
    "n_embd": _HEADS * _HEAD_DIM,
    "d_model": _HEADS * _HEAD_DIM,
    "embedding_size": _HEADS * _HEAD_DIM,
    "word_embed_proj_dim": _HEADS * _HEAD_DIM,
    "decoder_layers": _LAYERS,
    "encoder_layers": _LAYERS,
    "decoder_attention_heads": _HEADS,
    "encoder_attention_heads": _HEADS,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "is_decoder": True,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": _LAYERS,
    "n_layer": _LAYERS,
    "n_layers": _LAYERS,
    "num_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "n_head": _HEADS,
    "n_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_seq_len": 512,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "rotary_dim": _HEAD_DIM,
    "window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "initializer_range": 0.15,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": _HEAD_DIM // 2,
    "qk_rope_head_dim": _HEAD_DIM // 2,
    "v_head_dim": _HEAD_DIM,
    "attention_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""Sizes of a toy by the names that configs give them; a config gets those that it knows."""

_SHARED_KEYS = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "dbrx": {"attn_config": {"kv_n_heads": _KV_HEADS, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "gemma3n": _SHARED_KEYS,
    "gemma3n_text": _SHARED_KEYS,
    "gemma4": {"global_head_dim": 2 * _HEAD_DIM},
    "gemma4_text": {"global_head_dim": 2 * _HEAD_DIM},
    "gpt_neo": {"attention_types": [[["global", "local"], _LAYERS // 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": _HEAD_DIM // 2},
    "xmod": {"default_language": "en_XX"},
}
"""What else a type needs to be a toy."""

_OWN_LAYER_TYPES = "layers_block_type"
"""A field of hybrid types, from which they make their layer types themselves."""


@dataclass(frozen=True)
class Outcome:
    """What came of a type: its state, see the module, and why where it is not equal."""

    kind: str
    state: str
    why: str = ""


def config_of(kind: str, **sizes: Any) -> Any:
    """Return the toy config of a type's text decoder, with other sizes where some are given."""
    default = CONFIG_MAPPING[kind]()
    text = default.get_text_config(decoder=True)
    text = (
        default if type(text) is type(default) else text
    )  # the text config of an encoder-decoder hides what makes its decoder
    known, aliases = set(text.to_dict()), dict(getattr(type(text), "attribute_map", None) or {})
    toy = {name: size for name, size in _SIZES.items() if name in known or name in aliases}
    toy = {name: size for name, size in toy.items() if aliases.get(name, name) == name or aliases[name] not in toy}
    kinds = getattr(text, "layer_types", None)
    computed = isinstance(getattr(type(text), "layer_types", None), property) or hasattr(text, _OWN_LAYER_TYPES)
    if kinds and not computed and "use_sliding_window" not in known:  # all kinds of layers that there are, in turn
        first = list(kinds[:_LAYERS]) if set(kinds[:_LAYERS]) == set(kinds) else list(dict.fromkeys(kinds))
        toy["layer_types"] = (first * _LAYERS)[:_LAYERS]
    if "qk_rope_head_dim" in known:  # MLA: no head size of its own, and as many KV heads as heads
        toy.pop("head_dim", None)
        toy |= {"num_key_value_heads": _HEADS}
    return type(text)(**toy | _OWN_SIZES.get(kind, {}) | sizes)


def build(kind: str, *, most_parameters: float = float("inf"), **sizes: Any) -> Any:
    """Return the toy model of a type, of random weights, with eager attention. Raises ValueError where it is no toy."""
    config = config_of(kind, **sizes)
    if most_parameters < float("inf"):
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if parameters > most_parameters:
            raise ValueError(
                f"the smallest toy has {parameters / 1e6:.0f} million parameters: its config has sizes of other names"
            )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.float().eval()


def try_kind(kind: str, *, most_parameters: float = MOST_PARAMETERS) -> Outcome:
    """Return what comes of a type: of its logits at prefill, in chunks and under a method that keeps everything, and of its
    tokens in a batch of unequal prompts."""
    with _quiet():
        try:
            model = build(kind, most_parameters=most_parameters)
            expected = [_logits(model, prompt) for prompt in _prompts()]
            tokens = [_own_tokens(model, prompt) for prompt in _prompts()]
        except Exception as error:  # transformers' own; whatever it is, there is nothing to compare with
            return Outcome(kind, "not run", _line(error))
        try:
            return _compare(kind, wrap_model(model, None, name=kind), expected, tokens)
        except (UserError, ValueError) as error:
            return Outcome(kind, "refused", _line(error, kind=False))
        except Exception as error:
            return Outcome(kind, "crash", _line(error))


def _compare(kind: str, loaded: LoadedModel, expected: list[Tensor], tokens: list[list[int]]) -> Outcome:
    model, prompts, wrong = loaded.model, _prompts(), {}
    with Bridge(loaded, None):
        wrong["logits"] = max(_distance(_logits(model, p), e) for p, e in zip(prompts, expected, strict=True))
        wrong["logits in chunks"] = _distance(_in_chunks(model, prompts[0]), expected[0])
        generated = generate(loaded, [p[0].tolist() for p in prompts], NEW_TOKENS, stop_ids=set(), batch_tokens=10**6)
    with Bridge(loaded, methods.build("block_topk", sparsity=0.0, block_size=16)):
        wrong["logits at sparsity 0"] = _distance(_logits(model, prompts[0]), expected[0])
    differ = [f"{name} are {distance:.1e} off" for name, distance in wrong.items() if not distance <= TOLERANCE]
    same = sum(one.ids == other for one, other in zip(generated, tokens, strict=True))
    if same < len(prompts):
        differ.append(f"{len(prompts) - same} of {len(prompts)} prompts go on in another way")
    return Outcome(kind, "wrong", "; ".join(differ)) if differ else Outcome(kind, "equal")


def _prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, _VOCABULARY, (1, length), generator=generator) for length in PROMPTS]


@torch.inference_mode()
def _logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@torch.inference_mode()
def _in_chunks(model: Any, ids: Tensor) -> Tensor:
    cache, middle = DynamicCache(config=model.config), ids.shape[1] // 2 + 3
    return torch.cat([model(input_ids=part, past_key_values=cache).logits for part in (ids[:, :middle], ids[:, middle:])], 1)


@torch.inference_mode()
def _own_tokens(model: Any, ids: Tensor) -> list[int]:
    model.generation_config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=2)  # nothing is forced
    out = model.generate(ids, attention_mask=torch.ones_like(ids))
    return out[0, ids.shape[1] :].tolist()


def _distance(logits: Tensor, expected: Tensor) -> float:
    return float(((logits - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)).max())


def _line(error: Exception, *, kind: bool = True) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first}" if kind else first


@contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers say nothing about toys."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_table() -> dict[str, Outcome]:
    """Return what is expected of every type of transformers TRANSFORMERS, by type."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        return {row["type"]: Outcome(row["type"], row["state"], row["why"]) for row in csv.DictReader(file)}


def write_table(outcomes: Sequence[Outcome]) -> None:
    """Write the table that tests compare with, and the document."""
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("type", "state", "why"))
        writer.writerows((outcome.kind, outcome.state, outcome.why) for outcome in outcomes)
    DOCUMENT.write_text(document(outcomes), encoding="utf-8")


def document(outcomes: Sequence[Outcome]) -> str:
    """Return the document of a table: the types of each state, by reason."""
    counts = Counter(outcome.state for outcome in outcomes)
    lines = [
        HEAD.format(version=TRANSFORMERS, total=len(outcomes), **{name.replace(" ", "_"): counts[name] for name in STATES})
    ]
    for state, title in STATES.items():
        lines += ["", f"## {title}", ""]
        by_reason: dict[str, list[str]] = {}
        for outcome in outcomes:
            if outcome.state == state:
                by_reason.setdefault(_general(outcome), []).append(f"`{outcome.kind}`")
        for reason, kinds in sorted(by_reason.items(), key=lambda item: (state != "equal" and -len(item[1]), item)):
            item = f"- **{reason}:** {', '.join(kinds)}" if state == "equal" else f"- {reason}. {', '.join(kinds)}"
            lines += textwrap.wrap(item, 116, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _general(outcome: Outcome) -> str:
    """Return why a type is not equal, in words that other types may share: without its own names. For an equal one, its first
    letter."""
    if outcome.state == "equal":
        return outcome.kind[0]
    reason = outcome.why.removeprefix(f"{outcome.kind}: ")
    if outcome.state == "not run":
        return reason.partition(":")[0]
    reason = re.sub(rf"^{re.escape(outcome.kind)} has (.*); supported are.*", r"Layers of other kinds: \1", reason)
    reason = re.sub(r"\b[A-Z]\w+(ForCausalLM|LMHeadModel)\b", "the model", reason)
    reason = re.sub(r" in [A-Z]\w+Attention\b", "", reason)
    reason = re.sub(r"\b[A-Z]\w+Attention\b", "the layer", reason)
    reason = re.sub(r"(: | is )not supported$", "", reason)
    return reason[0].upper() + reason[1:]


def main(arguments: list[str]) -> None:
    """Try types and print, or write, what came of them."""
    write, outcomes = "--write" in arguments, []
    named = [argument for argument in arguments if argument != "--write"]
    for kind in named or KINDS:
        outcomes.append(try_kind(kind))
        print(f"{outcomes[-1].kind}: {outcomes[-1].state} {outcomes[-1].why}".strip(), flush=True)
    print(dict(Counter(outcome.state for outcome in outcomes)))
    if write:
        by_kind = (read_table() if named else {}) | {outcome.kind: outcome for outcome in outcomes}
        write_table([by_kind[kind] for kind in sorted(by_kind)])


if __name__ == "__main__":
    main(sys.argv[1:])
