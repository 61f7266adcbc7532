"""Train the bundled model from nothing: ``python -m harness job=pretrain data.text_dir=BOOKS``.

A small Llama (GQA, RoPE) learns from `bundled_model.mixture` at mixed lengths, short ones first. Everything it learns
from is drawn afresh at every step; progress (and with it the lengths and the learning rate) follows the steps, or the clock
where `max_seconds` ends the run first.
"""

from __future__ import annotations

import math
import multiprocessing as mp
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM

from harness.core import checks
from harness.core.errors import UserError
from harness.core.files import writable_folder
from harness.core.input_files import text_files
from harness.core.output import check_own_output
from harness.core.settings import read_settings
from harness.report.figures.training import draw_training_curve
from harness.training.bundled_model.batches import Batch, Stream, loader, longest
from harness.training.bundled_model.corpus import Corpus, build_corpus, read_stdlib, read_texts
from harness.training.bundled_model.mixture import Mixture
from harness.training.bundled_model.model import ATTENTION, build_model, losses
from harness.training.bundled_model.muon import BatchedMuon
from harness.training.bundled_model.probe import probe
from harness.training.bundled_model.recipe import PretrainRecipe
from harness.training.bundled_model.save import save_model
from harness.training.bundled_model.tokenizer import train_tokenizer
from harness.training.bundled_model.train_log import TrainLog

UNFINISHED_LOG = "train_log.unfinished.jsonl"
"""The log while the training goes on: train_log.jsonl is of the model that is there."""
LOG_SECONDS = 10
"""Seconds of training between two lines of the log."""
KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def main(cfg: DictConfig) -> Path:
    """Run ``job=pretrain``: the fields of conf/job/pretrain.yaml, with text_dir, seed and device from the top level.

    Return the folder of the model. Raises UserError without text.
    """
    settings = read_settings(cfg)
    text_dir = settings.data["text_dir"]
    if text_dir is None:
        raise UserError("job=pretrain needs text: data.text_dir=FOLDER, a folder of .txt files such as public-domain books")
    text_files("data.text_dir", text_dir, "name a folder of plain-text books")
    check_own_output("job.out", checks.text("job.out", settings.options["out"]))
    device = "cuda" if settings.device_choice == "auto" else settings.device_choice
    own = {**settings.options, "out": str(settings.options["out"])}
    return pretrain(PretrainRecipe(**own, text_dir=text_dir, seed=settings.seed, device=device))


def optimizers(model: LlamaForCausalLM, recipe: PretrainRecipe) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything, or Muon for the layers' matrices and AdamW for the other weights."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n] if recipe.muon_lr else []
    in_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_muon]
    groups = [
        {
            "params": [p for p in others if p.ndim >= 2],
            "weight_decay": recipe.weight_decay if not recipe.muon_lr else 0.0,
        },
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=recipe.device == "cuda")
    ]
    if matrices:
        chosen.append(BatchedMuon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    return chosen


def prepare(recipe: PretrainRecipe) -> tuple[Any, Corpus]:
    """Return a tokenizer trained on the recipe's text, and the tokenised corpus."""
    texts = read_texts(recipe.text_dir)
    if recipe.stdlib:
        texts |= read_stdlib()
    tokenizer = train_tokenizer(
        (text[i : i + 20_000] for text in texts.values() for i in range(0, len(text), 60_000)), recipe.vocab_size
    )
    return tokenizer, build_corpus(texts, tokenizer, recipe.books_for_words)


def probed_lengths(progress: float, final: int) -> list[int]:
    """Return the lengths, in tokens, that are probed at this point of training."""
    return [n for n in (1024, 4096, 16384, 32768, 65536, 131072) if n <= longest(progress, final) and n <= final]


def rate(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then a cosine to 2 %."""
    return min(1.0, progress / warmup + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(recipe: PretrainRecipe) -> Path:
    """Run the recipe; write model.safetensors (bf16), config, tokenizer and train_log.jsonl into `out`, and return it.

    What is in `out` stays until the new model is there; killed before, the same command begins anew. Raises UserError for a
    GPU that isn't there, or a folder that can't be written to.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UserError("job=pretrain needs a GPU; device=cpu is for trying the code at toy size")
    out = writable_folder(Path(recipe.out))
    print(f"reading {recipe.text_dir} and training the tokenizer", flush=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer, corpus = prepare(recipe)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    progress = mp.Value("d", 0.0)
    stream = Stream(tokenizer, corpus, progress, seed=recipe.seed, tokens=recipe.tokens, final=recipe.max_length)  # type: ignore[arg-type]
    batches = loader(stream, recipe.workers)
    model = build_model(recipe, tokenizer).to(recipe.device)
    if recipe.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    log = TrainLog(out / UNFINISHED_LOG)
    log.begin(recipe, model, corpus)
    held_out = Mixture(tokenizer, corpus, seed=10**9 + recipe.seed)
    with sdpa_kernel(KERNELS, set_priority=True):
        step, tokens = train(model, batches, progress, recipe, log, held_out)
        model.eval().to(torch.bfloat16)
        model.set_attn_implementation("sdpa")
        save_model(model, tokenizer, out)
        log.write(saved=out.name, step=step, tokens=tokens)
        model.set_attn_implementation(ATTENTION)
        log.write(step=step, probe=probe(model, held_out, probed_lengths(1.0, recipe.max_length), 2 * recipe.probe_rows))
    log.path.replace(out / "train_log.jsonl")
    draw_training_curve(out / "train_log.jsonl", out / "training.png")
    return out


def train(
    model: LlamaForCausalLM,
    batches: Iterator[Batch],
    progress: Synchronized[float],
    recipe: PretrainRecipe,
    log: TrainLog,
    held_out: Mixture,
) -> tuple[int, int]:
    """Train a model until the recipe's steps or seconds are over; return the steps done and the tokens seen.

    progress: set to the share that is done, which the source of `batches` goes by. held_out: rows for the probes on the way.
    Raises UserError where the loss is not finite.
    """
    opts = optimizers(model, recipe)
    peak = [g["lr"] for o in opts for g in o.param_groups]
    amp = torch.autocast(recipe.device, dtype=torch.bfloat16) if recipe.device == "cuda" else nullcontext()
    started = last_log = last_probe = time.time()
    tokens = step = 0
    running: list[torch.Tensor] = []
    done = 0.0
    while done < 1.0:
        batch = next(batches).to(recipe.device)
        scale = rate(done, recipe.warmup)
        for group, lr in zip((g for o in opts for g in o.param_groups), peak, strict=True):
            group["lr"] = lr * scale
        with amp:
            step_losses = losses(model, batch)
        step_losses[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        running.append(step_losses.detach())
        step, tokens = step + 1, tokens + batch.ids.numel()
        if step % 4 == 0 and recipe.device == "cuda":
            torch.cuda.current_stream().synchronize()  # keep the clock honest: progress follows work done, not work queued
        now = time.time()
        done = max(step / recipe.steps, (now - started) / recipe.max_seconds)
        progress.value = min(done, 1.0)
        if now - last_log > LOG_SECONDS or done >= 1 or step == 1:
            log.write_losses(running, step=step, seconds=now - started, done=done, tokens=tokens, length=batch.ids.shape[1])
            running, last_log = [], now
        if now - last_probe > recipe.probe_every and done < 1:
            model.eval()
            with amp:
                log.write(step=step, probe=probe(model, held_out, probed_lengths(done, recipe.max_length), recipe.probe_rows))
            model.train()
            last_probe = time.time()
            started += last_probe - now  # probes do not count as training time
    return step, tokens
