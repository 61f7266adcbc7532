"""The self-check of an arm: on a short prompt, before its first sample, its promises are measured instead of believed.

The prompt is longer than every window of the model and every switch of its RoPE, as far as the prompts to come reach past them
and it stays below MOST tokens; the record says which it does not pass.

- dense attention through the bridge is the model's own attention (of the baseline),
- sparsity=0 is dense attention,
- where the question is not seen with its context, both at sparsity 0 are one dense prefill,
- where prompts come in chunks, so are these at sparsity 0,
- with the blocks held fixed, no row changes with the tokens after it: kernel and bridge keep the causal mask,
- the method selects the same blocks for a row whatever comes after its query block, unless it says that it reads the prompt's
  end, or a mean over all of it (`reads_end`): then earlier rows may depend on later tokens through the selection, and the check
  before, which holds for every method, is what remains.

All are read off the last hidden states, so that everything on the way is covered: mask function, positions, selection, kernel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.arms.build import RunnableArm
from harness.core.errors import UserError
from harness.core.question import QUESTION_REREAD, QUESTION_SEEN
from harness.measure.context import Kernels, RunContext
from harness.models.batch_cache import BatchCache
from harness.models.bridge import Bridge, LayerChoices
from harness.models.chunks import Chunks, prefill
from harness.models.edges import edges
from harness.models.loading import LoadedModel
from harness.models.rope_lengths import frequencies_of
from harness.study import identity
from harness.study.provenance import commit, device_name, now, versions
from harness.study.resume import recorded
from harness.study.schema import CheckRecord, Status
from harness.tasks.chat_template import chat_problem
from harness.tasks.tokens import stop_ids
from methods.parts.base import Method

BLOCKS = 12
"""The length of the prompt in blocks: enough that a method leaves some out, and milliseconds on a GPU."""
STRETCH = 32
"""Rows at least that a mean of distances is taken over, and that the prompt goes on past a window or a switch."""
MOST = {"cpu": 8_192}
"""Tokens of the prompt at most, by type of device; 32,768 where none is given."""
SAME = {torch.float16: 0.1, torch.bfloat16: 0.1}
"""How far two kernels may be apart in the mean row's hidden state, relative to it; 1e-2 in float32, where TF32 may run."""
STILL = {torch.float16: 5e-3, torch.bfloat16: 5e-3}
"""How far a row may move that must not: the same kernel on the same numbers. 1e-5 in float32."""
AT_ZERO = ("zero", "question", "chunks")
"""The checks of a method at sparsity 0, which are the same at every sparsity."""
REASONS = {
    "own": "dense attention through the bridge is {0:.2g} from the model's own (at most {1:.2g}): mask, scale or kernel",
    "zero": "sparsity=0 is {0:.2g} from dense attention (at most {1:.2g}): selection or kernel loses or adds something",
    "question": "a question after its context at sparsity 0 is {0:.2g} from dense attention (at most {1:.2g}): cache or kernel",
    "chunks": "a prompt in chunks at sparsity 0 is {0:.2g} from dense attention (at most {1:.2g}): cache or kernel",
    "causal": "rows change by {0:.2g} with the tokens after them, the blocks held fixed: kernel or bridge sees the future",
    "selection": "rows change by {0:.2g} with the tokens after their query block: the selection sees the future",
}


def check_id(context: RunContext, arm: RunnableArm) -> str:
    """Return the id of an arm's check: another one for another device, commit, version, chat template or question."""
    device = device_name(context.loaded.device)
    origin = [commit(), device, *(versions().get(name) for name in ("torch", "triton", "transformers"))]
    return identity.digest({**arm.identity.as_dict(), "origin": origin, "chat": context.chat, **_question_identity(context)})


def is_checked(context: RunContext, arm: RunnableArm) -> bool:
    """Return whether the arm's check is recorded already, well or ill."""
    return recorded(context.store.checks, check_id(context, arm)) is not None


def check_arm(
    context: RunContext, arm: RunnableArm, task_names: Sequence[str], *, zero: Method | None, asked: Any = None
) -> None:
    """Check an arm on the start of the first prompt of its tasks, and record what was found.

    zero: the arm's method at sparsity 0, None where there is none. asked: what it was made of, as JSON holds it: arms of the
    same method at other sparsities have it in common, and in one command it is compared with dense attention once; None: for
    each. What keeps the check from running is raised, and nothing recorded: a full memory is no verdict.
    """
    loaded, known = context.loaded, context.sweep.at_zero
    prompt, unchecked = _prompt(context, arm, task_names)
    began = time.monotonic()  # making the samples is not the check's time
    setting, how = arm.identity.setting.as_dict(), [vars(context.kernels), context.question, context.chunk]
    key = identity.digest([asked, arm.identity.method, arm.identity.weights_hash, setting, how, prompt])
    distances, density = measure(
        loaded,
        arm,
        prompt,
        zero=zero,
        kernels=context.kernels,
        question=context.question,
        chunk=context.chunk,
        at_zero=None if arm.method is None else known.get(key),
    )
    if asked is not None and arm.method is not None:
        known[key] = {name: pair for name, pair in distances.items() if name in AT_ZERO}
    wrong = [REASONS[name].format(*pair) for name, pair in distances.items() if not pair[0] <= pair[1]]
    chat = chat_problem(loaded.tokenizer, stop_ids(loaded.tokenizer, loaded.model), context.chat) or ""
    reason = "; ".join(filter(None, [chat, *wrong]))
    if reason:
        context.complain(f"self-check of {arm.identity.method}: {reason}; its rows will be gated")
    reached = [length for length in unchecked if length < context.length]
    if reached:
        context.complain(
            f"self-check of {arm.identity.method}: it reads {len(prompt)} tokens; what the model does past {reached[0]}, "
            "a window or a switch of its RoPE, is not checked"
        )
    context.store.checks.append(
        CheckRecord(
            check=check_id(context, arm),
            arm=arm.identity.id,
            run=context.run.run,
            identity={**arm.identity.as_dict(), "chat_template": context.chat, **_question_identity(context)},
            status=Status.GATED if reason else Status.OK,
            reason=reason,
            found={name: list(pair) for name, pair in distances.items()},
            tokens=len(prompt),
            unchecked=unchecked,
            density=density,
            seconds=time.monotonic() - began,
            date=now(),
        )
    )


def _question_identity(context: RunContext) -> dict[str, str]:
    """Return when the question is asked, where it isn't seen: as in a cell's identity."""
    return {} if context.question == QUESTION_SEEN else {"question": context.question}


def _prompt(context: RunContext, arm: RunnableArm, task_names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the start of the first sample's prompt, and the windows and switches of the model that it does not pass."""
    block = 64 if arm.method is None else arm.method.block_size
    prompt, lengths = context.first_prompt(task_names), edges(context.loaded)
    most = min(len(prompt), MOST.get(context.loaded.device.type, 32_768))
    start = list(prompt[: prompt_tokens(block, [length for length in lengths if length < most])])
    return start, [length for length in lengths if length >= len(start)]


def prompt_tokens(block: int, passed: Sequence[int]) -> int:
    """Return the tokens of the prompt for blocks of a size, past all lengths of `passed`; off the block."""
    blocks = max([BLOCKS, *(-(-(length + STRETCH) // block) for length in passed)])
    return blocks * block + block // 2 + 3


def _worst_mean(distances: Tensor, lengths: Sequence[int]) -> float:
    """Return the mean of rows' distances [1, tokens], the worst of any stretch between the lengths at which the model does
    something else: a short stretch would be lost in the mean of all. One of fewer than STRETCH rows goes with that before it:
    a single row may be far off where experts are chosen."""
    starts, tokens = [0], distances.shape[1]
    for length in lengths:
        if starts[-1] + STRETCH <= length <= tokens - STRETCH:
            starts.append(length)
    ends = [*starts[1:], tokens]
    return torch.stack([distances[:, a:b].mean() for a, b in zip(starts, ends, strict=True)]).max().item()


@torch.inference_mode()
def measure(
    loaded: LoadedModel,
    arm: RunnableArm,
    prompt: Sequence[int],
    *,
    zero: Method | None,
    kernels: Kernels,
    question: str,
    chunk: int | None = None,
    at_zero: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[dict[str, tuple[float, float]], float | None]:
    """Return {check: (distance measured, distance allowed)} of an arm on a prompt, and the density of its method there.

    The checks are the keys of REASONS, those that apply; distances are relative (`row_distances`). zero: the method at
    sparsity 0, None where there is none. chunk: tokens of a prompt that go through the model at once; here they are a third
    of it at most. at_zero: what the checks AT_ZERO have come to already. Raises UserError where all layers have a window, and
    the method acts in none.
    """
    ids = torch.tensor([list(prompt)], device=loaded.device)
    still = STILL.get(loaded.dtype, 1e-5)
    distances: dict[str, tuple[float, float]] = {}
    if at_zero is None:
        distances |= _beside_dense(loaded, arm, ids, zero, kernels, question, chunk)
    else:
        distances |= at_zero
    choices = LayerChoices()
    with _bridge(loaded, arm.method, kernels, choices) as bridge:
        before = hidden(loaded, ids)
        densities = bridge.prefill_densities()
        if arm.method is not None and not densities:
            raise UserError(
                f"every layer of {loaded.name} has a window shorter than the {len(prompt)} tokens of the self-check, and "
                f"{arm.identity.method} acts in layers without: measure method=dense, or another model"
            )
        density = densities[0] if arm.method is not None else None
        noise = row_distances(hidden(loaded, ids), before).max().item()  # 0, but for kernels that add in any order
        limit = max(still, 4 * noise)
        edge, inside = _cuts(len(prompt), arm)
        choices.held = True
        after = hidden(loaded, other_tokens(ids, inside, loaded))
        distances["causal"] = row_distances(after[:, :inside], before[:, :inside]).max().item(), limit
        choices.held = False
        if arm.method is not None and not arm.method.reads_end:
            after = hidden(loaded, other_tokens(ids, edge, loaded))
            distances["selection"] = row_distances(after[:, :edge], before[:, :edge]).max().item(), 10 * limit
    return distances, density


def _beside_dense(
    loaded: LoadedModel,
    arm: RunnableArm,
    ids: Tensor,
    zero: Method | None,
    kernels: Kernels,
    question: str,
    chunk: int | None,
) -> dict[str, tuple[float, float]]:
    """Return {check: (distance measured, distance allowed)} of what is compared with dense attention on a prompt, ids [1,N]:
    its own through the bridge where the arm is the baseline, else that of the method at sparsity 0."""
    same, distances = SAME.get(loaded.dtype, 1e-2), dict[str, tuple[float, float]]()
    with _bridge(loaded, None, kernels):
        dense = hidden(loaded, ids)
    if arm.method is None:
        distances["own"] = _worst_mean(row_distances(dense, hidden(loaded, ids)), edges(loaded)), same
    elif zero is not None:
        with _bridge(loaded, zero, kernels):
            distances["zero"] = _worst_mean(row_distances(hidden(loaded, ids), dense), edges(loaded)), same
    if question != QUESTION_SEEN and (arm.method is None or zero is not None):
        with _bridge(loaded, zero, kernels) as bridge:
            context_tokens = 3 * ids.shape[1] // 4
            asked = hidden_of_question(bridge, ids, context_tokens, reread=question == QUESTION_REREAD)
            distances["question"] = row_distances(asked, dense[:, context_tokens:]).mean().item(), same
    if chunk is not None and (arm.method is None or zero is not None):
        step = 1 if zero is None else zero.chunk_step
        tokens = min(chunk, max(step, ids.shape[1] // 3 // step * step))
        with _bridge(loaded, zero, kernels) as bridge:
            in_chunks = hidden_in_chunks(bridge, ids, tokens)
        distances["chunks"] = _worst_mean(row_distances(in_chunks, dense), edges(loaded)), same
    return distances


def _bridge(loaded: LoadedModel, method: Method | None, kernels: Kernels, choices: LayerChoices | None = None) -> Bridge:
    """Return a bridge that prefills by the method with these kernels."""
    return Bridge(loaded, method, sparse_kernel=kernels.sparse, dense_kernel=kernels.dense, choices=choices)


def _cuts(tokens: int, arm: RunnableArm) -> tuple[int, int]:
    """Return two places from which on the tokens are replaced: at the edge of a query block, also of one that a kernel has
    merged to 128, and inside one. Where the kernel itself decides, tile by tile, only the edge will do."""
    block = 64 if arm.method is None else arm.method.block_size
    wide = math.lcm(block, 128)
    step = wide if wide <= 3 * tokens // 4 else block
    edge = max(min(step, tokens - 1), 3 * tokens // 4 // step * step)
    inside = min(tokens - 1, edge + block // 2 + 1)
    return edge, edge if arm.method is not None and arm.method.in_kernel else inside


def hidden(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """Return the last hidden states [1, tokens, width] of a prompt, float32."""
    return loaded.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()


def hidden_of_question(bridge: Bridge, ids: Tensor, context_tokens: int, *, reread: bool) -> Tensor:
    """Return the last hidden states [1, tokens - context_tokens, width], float32, of what follows the first `context_tokens`
    tokens, prefilled as `generate` does it, in a cache without room to spare."""
    loaded, tokens = bridge.loaded, ids.shape[1]
    decoder, cache = loaded.model.get_decoder(), BatchCache(loaded.layers, rows=1, prompt=tokens, columns=tokens)
    cache.prefill(0, tokens)
    with frequencies_of(loaded.model, tokens):
        decoder(input_ids=ids if reread else ids[:, :context_tokens], past_key_values=cache, use_cache=True)
        cache.crop_prompt(context_tokens)
        with bridge.in_full():
            return decoder(input_ids=ids[:, context_tokens:], past_key_values=cache, use_cache=True).last_hidden_state.float()


def hidden_in_chunks(bridge: Bridge, ids: Tensor, chunk: int) -> Tensor:
    """Return the last hidden states [1, tokens, width], float32, of a prompt in chunks of so many tokens."""
    loaded, states = bridge.loaded, []
    handle = loaded.model.get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state.float()))
    try:
        prefill(loaded, ids, Chunks(chunk, bridge.chunked))
    finally:
        handle.remove()
    return torch.cat(states, 1)


def other_tokens(ids: Tensor, start: int, loaded: LoadedModel) -> Tensor:
    """Return the prompt with other tokens from `start` on, each different from what it was."""
    vocabulary = min(len(loaded.tokenizer), loaded.model.get_input_embeddings().weight.shape[0])
    step = 1 + 37 * torch.arange(ids.shape[1] - start, device=ids.device) % (vocabulary - 1)
    return torch.cat((ids[:, :start], (ids[:, start:] + step) % vocabulary), dim=1)


def row_distances(one: Tensor, other: Tensor) -> Tensor:
    """Return how far each row of `one` is from the same row of `other`, relative to it: [1, tokens]. NaN stays NaN."""
    return (one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-12)
