"""The log of a training of the bundled model: a JSON object a line, which is printed as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from harness.core.errors import UserError
from harness.training.bundled_model.corpus import Corpus
from harness.training.bundled_model.recipe import PretrainRecipe


@dataclass(frozen=True)
class TrainLog:
    """The log in a file, which a new training begins anew."""

    path: Path

    def begin(self, recipe: PretrainRecipe, model: LlamaForCausalLM, corpus: Corpus) -> None:
        """Write the first row, what is trained, in place of all rows of a training before."""
        self.path.unlink(missing_ok=True)
        self.write(
            recipe=asdict(recipe) | {"text_dir": Path(recipe.text_dir).name, "out": Path(recipe.out).name},
            parameters=sum(p.numel() for p in model.parameters()),
            corpus_tokens=len(corpus.tokens),
            corpus_files=len(corpus.files),
            corpus_sha256=corpus.sha256,
            torch=torch.__version__,
            gpu=torch.cuda.get_device_name() if recipe.device == "cuda" else "cpu",
        )

    def write(self, **row: Any) -> None:
        """Append a row."""
        print(json.dumps(row), flush=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write_losses(
        self, running: Sequence[torch.Tensor], *, step: int, seconds: float, done: float, tokens: int, length: int
    ) -> None:
        """Append the mean of the losses [2] since the last row. Raises UserError where it is not finite."""
        mean = torch.stack(list(running)).mean(0)
        if not bool(mean.isfinite().all()):
            raise UserError(
                f"step {step}: the loss is {float(mean[0])}; probably too large a step: lower job.lr or job.muon_lr"
            )
        loss, answer_loss = mean.tolist()
        self.write(
            step=step,
            seconds=round(seconds, 1),
            progress=round(done, 4),
            loss=round(loss, 4),
            answer_loss=round(answer_loss, 4),
            tokens=tokens,
            length=length,
        )
