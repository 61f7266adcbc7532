"""Train the bundled model from nothing: ``python -m harness job=pretrain data.text_dir=BOOKS``.

A small Llama (GQA, RoPE) learns from `harness.training.bundled_model.mixture` at mixed lengths, short ones first. Everything it learns
from is drawn afresh at every step; progress (and with it the lengths and the learning rate) follows the steps, or the clock
where `max_seconds` ends the run first.
"""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

from harness.core.errors import UserError
from harness.report.figures.training import draw_training_curve
from harness.training.bundled_model.batches import Batch, Stream, loader, longest
from harness.training.bundled_model.corpus import Corpus, build_corpus, read_stdlib, read_texts
from harness.training.bundled_model.mixture import Mixture
from harness.training.bundled_model.muon import BatchedMuon
from harness.training.bundled_model.probe import probe
from harness.training.bundled_model.tokenizer import save_tokenizer, train_tokenizer

KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass
class Pretrain:
    """The recipe. `tokens` a step; `lr` for AdamW, `muon_lr` (0: AdamW for all) for the matrices inside the layers."""

    text_dir: str
    out: str
    vocab_size: int = 4096
    hidden: int = 256
    intermediate: int = 768
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 1e8
    max_length: int = 131072
    tokens: int = 65536
    steps: int = 20000
    max_seconds: float = 540.0
    lr: float = 3e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    seed: int = 1
    workers: int = 12
    compile: bool = True
    device: str = "cuda"
    probe_every: float = 90.0
    probe_rows: int = 8
    books_for_words: int = 20000
    stdlib: bool = True


def main(cfg: DictConfig) -> Path:
    """Run ``job=pretrain``: the fields of conf/job/pretrain.yaml, with text_dir, seed and device from the top level."""
    if not cfg.data.text_dir:
        raise UserError("job=pretrain needs text: data.text_dir=FOLDER, a folder of .txt files such as public-domain books")
    known = {f.name for f in fields(Pretrain)}
    job = {str(k): v for k, v in cfg.job.items() if k in known}
    device = "cuda" if str(cfg.device) == "auto" else str(cfg.device)
    return pretrain(Pretrain(**{**job, "text_dir": str(cfg.data.text_dir), "seed": int(cfg.seed), "device": device}))


def train_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention without padding, K/V un-repeated; what every training row needs."""
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=kwargs.get("scaling"), enable_gqa=True
    )
    return out.transpose(1, 2), None


def build_model(recipe: Pretrain, tokenizer: Any) -> LlamaForCausalLM:
    """A fresh Llama of the recipe's shape, embeddings tied, in fp32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_length,
        rope_theta=recipe.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    AttentionInterface.register("pretrain_causal", train_attention)
    AttentionMaskInterface.register("pretrain_causal", lambda *args, **kwargs: None)
    model.set_attn_implementation("pretrain_causal")
    return model


def optimizers(model: LlamaForCausalLM, recipe: Pretrain) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n] if recipe.muon_lr else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {
            "params": [p for p in rest if p.ndim >= 2],
            "weight_decay": recipe.weight_decay if not recipe.muon_lr else 0.0,
        },
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=recipe.device == "cuda")
    ]
    if matrices:
        made.append(BatchedMuon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    return made


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted next-token loss over the batch's scored places only: the logits of the rest are never made."""
    hidden = model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.where])
    each = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    return torch.stack(
        [(each * batch.weights).sum() / batch.weights.sum(), each[batch.weights == 1.0].mean().nan_to_num().detach()]
    )


def prepare(recipe: Pretrain) -> tuple[Any, Corpus]:
    """Tokenizer (trained, saved to `out`) and tokenised corpus."""
    texts = read_texts(recipe.text_dir)
    if recipe.stdlib:
        texts |= read_stdlib()
    tokenizer = train_tokenizer(
        (t[i : i + 20_000] for t in texts.values() for i in range(0, len(t), 60_000)), recipe.vocab_size
    )
    save_tokenizer(tokenizer, Path(recipe.out))
    return tokenizer, build_corpus(texts, tokenizer, recipe.books_for_words)


def marks(progress: float, final: int) -> list[int]:
    """The lengths probed at this point of training."""
    return [n for n in (1024, 4096, 16384, 32768, 65536, 131072) if n <= longest(progress, final) and n <= final]


def pretrain(recipe: Pretrain) -> Path:
    """Run the recipe; writes model.safetensors (bf16), config, tokenizer and train_log.jsonl into `out`."""
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UserError("job=pretrain needs a GPU; device=cpu is for trying the code at toy size")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, corpus = prepare(recipe)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    progress = mp.Value("d", 0.0)
    stream = Stream(tokenizer, corpus, progress, seed=recipe.seed, tokens=recipe.tokens, final=recipe.max_length)  # type: ignore[arg-type]
    batches = loader(stream, recipe.workers)
    model = build_model(recipe, tokenizer).to(recipe.device)
    if recipe.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    opts = optimizers(model, recipe)
    peak = [g["lr"] for o in opts for g in o.param_groups]
    held_out = Mixture(tokenizer, corpus, seed=10**9 + recipe.seed)
    amp = torch.autocast(recipe.device, dtype=torch.bfloat16) if recipe.device == "cuda" else nullcontext()
    kernels = ExitStack()
    kernels.enter_context(sdpa_kernel(KERNELS, set_priority=True))

    def write(**row: Any) -> None:
        print(json.dumps(row), flush=True)
        with (out / "train_log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")

    write(
        recipe=asdict(recipe) | {"text_dir": Path(recipe.text_dir).name, "out": out.name},
        parameters=sum(p.numel() for p in model.parameters()),
        corpus_tokens=len(corpus.tokens),
        corpus_files=len(corpus.files),
        corpus_sha256=corpus.sha256,
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if recipe.device == "cuda" else "cpu",
    )
    started, last_log, last_probe = time.time(), time.time(), time.time()
    tokens = step = 0
    running: list[torch.Tensor] = []
    done = 0.0
    while done < 1.0:
        batch = next(batches)
        batch = Batch(*(getattr(batch, f).to(recipe.device, non_blocking=True) for f in Batch.__dataclass_fields__))
        scale = min(1.0, done / recipe.warmup + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group, lr in zip((g for o in opts for g in o.param_groups), peak, strict=True):
            group["lr"] = lr * scale
        with amp:
            losses = loss_of(model, batch)
        losses[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        running.append(losses.detach())
        step, tokens = step + 1, tokens + batch.ids.numel()
        if step % 4 == 0 and recipe.device == "cuda":
            torch.cuda.current_stream().synchronize()  # keep the clock honest: progress follows work done, not work queued
        now = time.time()
        done = max(step / recipe.steps, (now - started) / recipe.max_seconds)
        progress.value = min(done, 1.0)
        if now - last_log > 10 or done >= 1:
            mean = torch.stack(running).mean(0).tolist()
            write(
                step=step,
                seconds=round(now - started, 1),
                progress=round(done, 4),
                loss=round(mean[0], 4),
                answer_loss=round(mean[1], 4),
                tokens=tokens,
                length=batch.ids.shape[1],
            )
            running, last_log = [], now
        if now - last_probe > recipe.probe_every and done < 1:
            model.eval()
            with amp:
                write(step=step, probe=probe(model, held_out, marks(done, recipe.max_length), recipe.probe_rows))
            model.train()
            last_probe = time.time()
            started += last_probe - now  # probes do not count as training time
    model.eval().to(torch.bfloat16)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(out)
    write(saved=out.name, step=step, tokens=tokens)
    model.set_attn_implementation("pretrain_causal")
    write(step=step, probe=probe(model, held_out, marks(1.0, recipe.max_length), 2 * recipe.probe_rows))
    kernels.close()
    draw_training_curve(out / "train_log.jsonl", out / "training.png")
    return out
