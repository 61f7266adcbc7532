"""The model class behind `--model sparse`: lm-eval's HFLM with the attention of a method in it.

What lm-eval asks is answered by the paths of this harness: models are loaded, methods built and prompts generated as for its
own tasks. Log-likelihoods are one prefill of prompt and continuation. No padding ever reaches a selection: log-likelihoods
are batched with others of the same length only, and generation prefills every prompt alone (harness.models.generate).
"""

from __future__ import annotations

import copy
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from torch import Tensor

from harness.arms.build import RunnableArm, build_arms, with_given_knob
from harness.core.errors import UserError
from harness.core.progress import progress_bar
from harness.core.settings import Settings
from harness.core.terminal import Terminal
from harness.lm_eval import arguments
from harness.lm_eval.greedy import GreedySettings, read_generation
from harness.lm_eval.misses import misses
from harness.lm_eval.run_totals import Lengths, RunTotals
from harness.measure.before_loading import describe
from harness.measure.sweep import load_model_of
from harness.models.bridge import Bridge
from harness.models.decoder import mean_density
from harness.models.generate import Generation, generate
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel
from harness.study.identity import digest
from harness.study.provenance import commit
from harness.tasks.chat_template import template_error
from harness.tasks.frozen_template import draws_at_random, published_template
from harness.tasks.tokens import stop_ids

CACHE_KEY = "sparse_attention_harness"
"""Entry of an answer cache that says whose answers it holds; lm-eval's own keys are hex digests."""
ASKED_LENGTH = "max_length"
"""What lm-eval's RULER calls the length that a prompt was to have, in tokens; its prompts are shorter."""
BLAME = "a kernel, the dtype or the weights are at fault"
log = logging.getLogger("lm_eval.sparse")
"""Below lm-eval's own logger, so that what ran is said where its command says the rest."""

Request = tuple[tuple[str, str], list[int], list[int]]
"""(context and continuation as text, tokens of the context, tokens of the continuation)."""


class SparseLM(HFLM):
    """A causal decoder under one method of prefill and, with decode=, one of decoding.

    Arguments are those of --model_args (see harness.lm_eval.arguments). `batch_size` sequences are decoded together, or their
    log-likelihoods computed together where they are of one length. overlong: "error" where a prompt and what is to come do not
    fit into max_length, or "left": cut from the left, as HFLM does, and counted in the results.
    Raises UserError for whatever this can't honour.
    """

    def __init__(self, batch_size: int | str = 1, overlong: str = "error", **model_args: Any) -> None:
        settings, hflm_arguments = arguments.parse(model_args)
        self.overlong, batch = arguments.overlong(overlong), arguments.batch_size(batch_size)
        if (described := describe(settings)) is not None:  # before the weights are read
            _max_length(hflm_arguments, described)
            _arm(settings, described)
        self.loaded = load_model_of(settings)
        self.arm = _arm(settings, self.loaded)
        self._bridge = Bridge(
            self.loaded,
            self.arm.method,
            sparse_kernel=settings.kernel,
            dense_kernel=settings.dense_kernel,
            decoding=self.arm.decoding,
            decode_kernel=settings.decode_kernel,
        )
        hflm_arguments["max_length"] = _max_length(hflm_arguments, self.loaded)
        tokenizer = copy.deepcopy(self.loaded.tokenizer)  # HFLM gives it a padding token; the harness's own stays as it is
        with _without_warnings():
            super().__init__(self.loaded.model, tokenizer=tokenizer, batch_size=batch, **hflm_arguments)
        self._totals: dict[str, RunTotals] = defaultdict(RunTotals)
        self._task = ""
        self._chat = False
        self._rows: list[int] = []
        self._logits = 1

    # -- what lm-eval asks -------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-probability, whether greedy decoding gives it) of each continuation."""
        return self._by_task(requests, partial(super().loglikelihood, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows of max_length, one prefill a window."""
        return self._by_task(requests, partial(super().loglikelihood_rolling, disable_tqdm=disable_tqdm))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return greedy continuations, cut before the first stop word."""
        return self._by_task(requests, partial(self._generate, disable_tqdm=disable_tqdm))

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results file says: the model, the method as it was built, and what ran, by task."""
        identity = self.arm.identity.as_dict()
        del identity["length"]  # of the harness's own samples
        totals = {name: total.as_dict() | {"warnings": self._misses(total)} for name, total in self._totals.items()}
        given = published_template(self.loaded.tokenizer)[1] if self._chat else {}
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.loaded.dtype),
            "model_sha": self.loaded.revision_hash,
            "sparse_attention": identity | given | {"commit": commit(), "tasks": totals, "notices": list(self.arm.notices)},
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages in the model's chat template. Raises UserError where they can't be put into it, and where it draws at
        random."""
        self._chat = True
        template = getattr(self.tokenizer, "chat_template", None)
        if not template:
            raise UserError("--apply_chat_template: this model's tokenizer has no chat template; leave it out")
        if isinstance(template, str) and draws_at_random(template):
            raise UserError(
                "this model's chat template draws at random, so that no prompt comes twice: no --apply_chat_template"
            )
        try:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        except Exception as error:  # a template is a program of the model's author: whatever it raises is its mistake
            raise UserError(f"{template_error(error)}; correct it, or no --apply_chat_template") from error

    def _misses(self, totals: RunTotals) -> list[str]:
        """Return what a task's totals say against the arm."""
        return misses(totals, self.arm.identity, dense=self.arm.method is None)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse a cache of answers (--use_cache) that another model or method gave: lm-eval's keys don't tell them apart."""
        answers = cache_hook.dbdict
        if answers is not None:
            setting = {"max_length": self.max_length, "overlong": self.overlong}
            known = (self.arm.identity, self.arm.former or self.arm.identity)  # files may be older than this version
            fingerprint, former = (digest(identity.as_dict() | setting) for identity in known)
            if len(answers) and answers.get(CACHE_KEY) not in (fingerprint, former):
                raise UserError("--use_cache: the file holds answers of another model, method or setting; name another file")
            answers[CACHE_KEY] = fingerprint
        super().set_cache_hook(cache_hook)

    def _by_task(self, requests: Sequence[Instance], answer: Callable[[list[Instance]], list[Any]]) -> list[Any]:
        """Answer the requests task by task, so that densities are known for each; in the order they came."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            places[str(request.task_name)].append(place)
        answers: list[Any] = [None] * len(requests)
        for self._task, task_places in places.items():
            with self._bridge:
                task_answers = answer([requests[place] for place in task_places])
            for place, task_answer in zip(task_places, task_answers, strict=True):
                answers[place] = task_answer
            log.info("%s: %s", self._task, self._totals[self._task].line())
            for line in self._misses(self._totals[self._task]):
                log.warning("%s: %s", self._task, line)
        return answers

    # -- log-likelihoods ---------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Call HFLM's on requests of one length at a time: it pads a batch to its longest."""
        totals = self._totals[self._task]
        lengths: dict[int, list[int]] = defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            length = len(context) + len(continuation) - 1  # the last token is only predicted
            if len(continuation) > self.max_length:
                raise UserError(f"{self._task}: a continuation of {len(continuation)} tokens and max_length={self.max_length}")
            if length > self.max_length:
                self._refuse_unless_left(length)
                totals.cut += 1
                length = self.max_length
            lengths[length].append(place)
        answers: list[Any] = [None] * len(requests)
        quiet = disable_tqdm or override_bs is not None  # a rolling likelihood comes here a batch at a time
        with progress_bar(Terminal(stderr=True), not quiet) as progress:
            bar = progress.add_task(f"log-likelihoods of {self._task}", total=len(requests))
            for length, places in sorted(lengths.items(), reverse=True):
                batch = [requests[place] for place in places]
                self._logits = max(len(continuation) for _, _, continuation in batch)
                likelihoods = super()._loglikelihood_tokens(batch, disable_tqdm=True, override_bs=override_bs)
                totals.add_prefills(self._bridge)
                totals.lengths.add(length, sum(self._rows))
                self._rows.clear()
                for place, likelihood in zip(places, likelihoods, strict=True):
                    if math.isnan(likelihood[0]):
                        raise UserError(f"{self._task}: a log-likelihood is NaN: {BLAME}")
                    answers[place] = likelihood
                progress.advance(bar, len(places))
        return answers

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return logits [B, n, vocabulary] of the last n tokens of inps [B, T], n being the longest continuation at hand.

        Those of a whole long prompt would not fit. HFLM counts continuations from the end.
        """
        if attn_mask is not None or labels is not None:
            raise UserError("encoder-decoder models are not supported")
        self._rows.append(inps.shape[0])
        with torch.inference_mode():
            return self.model(input_ids=inps, use_cache=False, logits_to_keep=self._logits).logits

    # -- generation --------------------------------------------------------------------------------------------------

    def _generate(self, requests: Sequence[Instance], disable_tqdm: bool) -> list[str]:
        eos = self.tokenizer.eos_token_id
        stop = None if eos is None else self.tok_decode(eos, skip_special_tokens=False)
        settings = [read_generation(request.args[1], self.max_gen_toks, stop) for request in requests]
        prompts = [self.prompt_ids(request.args[0], own.max_new) for request, own in zip(requests, settings, strict=True)]
        for request, prompt in zip(requests, prompts, strict=True):
            if isinstance(asked := request.doc.get(ASKED_LENGTH), int):
                self._totals[self._task].by_length.setdefault(asked, Lengths()).add(len(prompt))
        by_stop: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for place in sorted(range(len(requests)), key=lambda place: -len(prompts[place])):  # equal lengths side by side
            by_stop[settings[place].until].append(place)
        texts = [""] * len(requests)
        with progress_bar(Terminal(stderr=True), not disable_tqdm) as progress:
            bar = progress.add_task(f"generating for {self._task}", total=len(requests))
            for places in by_stop.values():
                for place, text in self._continue(places, prompts, settings, partial(progress.advance, bar)):
                    texts[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
        return texts

    def _continue(
        self, places: list[int], prompts: list[list[int]], settings: list[GreedySettings], advance: Callable[[int], None]
    ) -> list[tuple[int, str]]:
        """Continue the prompts at `places`, all with the same stop words. Return (place, text) of each."""
        until, totals = settings[places[0]].until, self._totals[self._task]

        def text(ids: list[int]) -> str:
            return str(self.tok_decode(ids))

        def note(first: int, done: list[Generation]) -> None:
            steps = self._bridge.decoder.take_densities() if self._bridge.decoder is not None else []
            for row, generation in enumerate(done):
                if not generation.finite:
                    raise UserError(f"{self._task}: logits are NaN or infinite: {BLAME}")
                if (density := mean_density(steps, row, generation.steps)) is not None:
                    totals.decode_density.add(density)
            totals.add_prefills(self._bridge)
            for place in places[first : first + len(done)]:
                totals.lengths.add(len(prompts[place]))
            advance(len(done))

        generations = generate(
            self.loaded,
            [prompts[place] for place in places],
            [settings[place].max_new for place in places],
            stop_ids=stop_ids(self.tokenizer, self.model),
            batch_tokens=sys.maxsize,
            batch_size=self.batch_size,
            on_batch=note,
            ended=lambda ids: any(word in text(ids) for word in until),
        )
        cut = partial(postprocess_generated_text, stop=list(until), think_end_token=None)
        return [(place, cut(text(generation.ids))) for place, generation in zip(places, generations, strict=True)]

    def prompt_ids(self, text: str, max_new: int) -> list[int]:
        """Return the token ids of a prompt as HFLM has them: one BOS, where the tokenizer sets one.

        Raises UserError where the answer leaves no room, or the prompt doesn't fit and isn't to be cut.
        """
        room = self.max_length - max_new
        if room < 1:
            raise UserError(f"{self._task}: max_gen_toks={max_new} leaves no room for a prompt in max_length={self.max_length}")
        ids = list(self.tok_encode(text))
        if len(ids) > room:
            self._refuse_unless_left(len(ids) + max_new)
            self._totals[self._task].cut += 1
        return ids[-room:]

    def _refuse_unless_left(self, length: int) -> None:
        if self.overlong == "error":
            raise UserError(
                f"{self._task}: {length} tokens, prompt and what is to come, exceed max_length={self.max_length}; "
                "overlong=left in --model_args cuts from the left, as HFLM does"
            )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence HFLM's warning of arguments that may be ignored with a model that is loaded already: others are refused."""
    logger = logging.getLogger(HFLM.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _max_length(hflm_arguments: Mapping[str, Any], loaded: LoadedModel) -> int:
    """Return the tokens of prompt and answer at most. Raises UserError for more than the model reaches."""
    max_length = int(hflm_arguments.get("max_length", loaded.max_length))
    check_length(loaded, max_length, f"max_length={max_length}")
    return max_length


def _arm(settings: Settings, loaded: LoadedModel) -> RunnableArm:
    """Return the arm that was asked for, its weights loaded.

    Raises UserError for a knob that must be found: lm-eval has no prompts of one length to find it on.
    """
    arm = build_arms(settings, loaded)[-1]
    for notice in arm.notices:
        log.warning(notice)
    knob = None if arm.method is None else arm.method.calibrates()
    if knob is None:
        return arm
    if (given := with_given_knob(settings, arm, knob)) is not None:
        return given
    raise UserError(
        f"{arm.identity.method} has no formula for sparsity={settings.sparsity}, and lm-eval no prompts to find its "
        f"{knob.name} on: give knob_value=VALUE; `python -m harness job=densities` finds it, and says it"
    )
