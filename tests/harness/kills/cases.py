"""The commands that are killed: one or more for every job that writes anything, at toy size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.harness.settings import toy_arguments

RELEASE = "attn_gate_weights.pth"


@dataclass(frozen=True)
class Case:
    """A command that is killed and run again. `before` are commands that run first, unharmed. `processes` run it at once; they
    are `joined` where they train together, else they share the study alone."""

    name: str
    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    processes: int = 1
    joined: bool = False


def all_cases(model: Path, books: Path) -> list[Case]:
    """All cases on a toy model, with a folder of text."""
    toy = (*toy_arguments(model), "length=768", "samples=1", "progress=false")
    evaluate = (*toy, "samples=2")
    sweep = (*toy, "method=block_topk,streaming_llm", "samples=1", "-m")
    text = ("job.rows=documents", f"data.text_dir={books}", "block_size=32")
    train = (*toy, *text, "job=distill", "job.steps=3", "job.lengths=[128]", "job.tokens=256", "job.recall_sequences=1")
    prefill, decode = (
        (*train, "method=seer", "job.out=gates"),
        (*train, "decode=seer_r", "decode.block_size=32", "job.out=gates"),
    )
    prune = ("job=prune", "study=toy", "method=block_topk", "ask=false")
    recall = (*toy, *text, "job=gate_recall", "method=seer", "model.gates=gates", "job.lengths=[128]", "job.sequences=1")
    finetune = (
        *(*toy, *text, "job=finetune", "method=seer", "method.selection=topk", "job.steps=3", "job.lengths=[128]"),
        *("job.tokens=256", "job.held_out=1", "job.new_gates=true", "job.checkpoint_every=1", "job.out=finetuned"),
    )
    convert = (*toy, "job=convert_gates", "method=seer", "block_size=32")
    to_release = (*convert, "job.source=gates", "job.to=release", "job.out=released")
    kernels = (
        *("job=kernel_speed", "study=toy", "device=cpu", "latency_repeats=1", "latency_seconds=1", "job.shape=bundled"),
        *("job.lengths=[192]", "job.sparsities=[0.5]", "job.blocks=[64]", "job.kernels=[sdpa]", "job.indices=[uniform]"),
        *("job.selections=[block_topk]", "job.block_map=null", "progress=false"),
    )
    pretrain = (
        *("job=pretrain", "study=toy", "device=cpu", f"data.text_dir={books}", "job.vocab_size=300", "job.hidden=32"),
        *("job.intermediate=32", "job.layers=1", "job.heads=2", "job.kv_heads=1", "job.head_dim=16", "job.tokens=512"),
        *("job.steps=3", "job.max_length=512", "job.max_seconds=1e6", "job.workers=0", "job.compile=false"),
        *("job.probe_rows=1", "job.stdlib=false", "job.probe_every=1e6"),
    )
    return [
        Case("evaluate", evaluate),
        Case("evaluate, a sweep", sweep),
        Case("evaluate, decoding", (*toy, "method=dense", "decode=quest", "decode.sparsity=0.5")),
        Case("evaluate, two processes", evaluate, processes=2),
        Case("calibrating", (*toy, "method=blasst", "job=kept_mass")),
        Case("latency", (*toy, "job=latency", "latency_repeats=1", "latency_seconds=1")),
        Case("perplexity", (*toy, "job=perplexity", f"data.text_dir={books}", "length=256", "samples=2")),
        Case("kept_mass", (*toy, "job=kept_mass")),
        Case("kernel_speed", kernels),
        Case("maps", (*toy, "job=maps", "job.heads=[0]")),
        Case("report", (*toy, "job=report"), (evaluate,)),
        Case("compare", (*toy, "job=compare"), (sweep,)),
        Case("power", (*toy, "job=power", "job.discordance=0.1", "job.powers=[0.8]", "job.margins=[0.1]"), (evaluate,)),
        Case("archive", (*toy, "job=archive"), (evaluate,)),
        Case("prune", prune, (evaluate,)),
        Case("distill", (*prefill, "job.checkpoint_every=1")),
        Case("distill, no checkpoints", (*prefill, "job.checkpoint_every=0")),
        Case("distill, overwriting", (*prefill, "job.checkpoint_every=1", "job.overwrite=true"), ((*prefill, "job.lr=0.1"),)),
        Case("distill, for decoding", (*decode, "job.checkpoint_every=2")),
        Case("distill, two processes", (*prefill, "job.checkpoint_every=1"), processes=2, joined=True),
        Case("finetune", finetune),
        Case("finetune, two processes", finetune, processes=2, joined=True),
        Case("finetune, overwriting", (*finetune, "job.overwrite=true"), ((*finetune, "job.lr=0.1"),)),
        Case("gate_recall", recall, (prefill,)),
        Case("convert_gates, to a release", to_release, (prefill,)),
        Case("convert_gates, from a release", (*convert, "job.source=released", "job.out=back"), (prefill, to_release)),
        Case(
            "search_heads",
            (*toy, "job=search_heads", "method=duo_attention", "job.prompts=1", "job.out=heads", "block_size=16"),
        ),
        Case("export", (*toy, "job=export", "length=1024", "task=[niah_single_1,niah_single_2]")),
        Case("export, of results", ("job=export", "study=toy", "format=every_eval_ever", "progress=false"), (evaluate,)),
        Case("leaderboard", ("job=leaderboard", "progress=false"), (evaluate,)),
        Case("pretrain", pretrain),
    ]
