"""job=export: the samples of this harness as tasks of lm-eval, for `--include_path`, one task and file a name and length.

Prompts are whole (answer prefix and, where the model asks for it, chat template included), so that lm-eval adds nothing to
them; limits are per task and scores come from the task's own metric. The folder may be moved; scoring needs this package.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from harness.core import checks
from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.output import check_own_output
from harness.core.settings import Settings, read_settings
from harness.core.sizing import FULL
from harness.core.terminal import Terminal
from harness.lm_eval.exported import SPLIT
from harness.measure.request_checks import check_data
from harness.models.loading import load_tokenizer
from harness.report.exports.table import OPTIONS
from harness.study.provenance import command, commit
from harness.tasks import registry
from harness.tasks.checks import check_sample
from harness.tasks.frozen_template import published_template
from harness.tasks.names import expand_tasks
from harness.tasks.sample import Sample
from harness.tasks.tokenizer_hash import tokenizer_hash

PREFIX = "harness"
"""First part of the tasks' names in lm-eval, where `niah_single_1` is its own."""
SHIM = '''"""Called by the task files beside it; written by `python -m harness job=export`."""

from pathlib import Path

from harness.lm_eval import exported


def load(file, **_):
    return exported.load(Path(__file__).with_name(file))


process_results = exported.process_results
'''
HEADER = "# The prompts are whole: no --apply_chat_template, --system_instruction or --num_fewshot.\n"


def main(cfg: DictConfig) -> None:
    """Write the tasks of one command. Raises UserError for samples that can't be built or aren't sound."""
    settings = read_settings(cfg)
    if names := [f"{name}=" for name in ("to", *OPTIONS) if f"job.{name}" in settings.given]:
        raise UserError(f"{', '.join(names)}: of results, with format=; tasks, as here, go to out=")
    out = checks.text("job.out", settings.options["out"])
    check_own_output("job.out", out)
    check_data(settings, expand_tasks(settings.tasks))
    written = export(settings, Path(out).expanduser())
    console = Terminal()
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    group, folder = group_name(settings.length), written[0].parent
    console.print(f"lm-eval knows them with --include_path {folder} --tasks {group}", highlight=False, soft_wrap=True)


def export(settings: Settings, out: Path) -> list[Path]:
    """Write samples, task files, their group and the module they call into `out`. Return the paths."""
    console = Terminal()
    console.quiet = not settings.progress
    tokenizer = load_tokenizer(str(settings.model["path"]), settings.chat_options)
    data = {**settings.data, "chat_template": bool(settings.model.get("chat_template"))}
    samples: dict[str, list[Sample]] = {}
    for name in expand_tasks(settings.tasks):
        console.print(f"making {settings.samples} samples of {name}", style="dim", highlight=False, soft_wrap=True)
        samples[name] = registry.get(name).samples(tokenizer, settings.length, settings.samples, settings.seed, data)
        for sample in samples[name]:
            if reason := check_sample(sample, tokenizer):
                raise UserError(f"{name}, sample {sample.index}: {reason}")
    origin = {
        "length": settings.length,
        "seed": settings.seed,
        "model": str(settings.model["name"]),
        "tokenizer": tokenizer_hash(tokenizer),
        "chat_template": data["chat_template"],
        **({} if data["sizing"] == FULL else {"sizing": data["sizing"]}),
        **(published_template(tokenizer)[1] if data["chat_template"] else {}),
        "commit": commit(),
        "command": command(),
    }
    files = {f"{PREFIX}_tasks.py": SHIM}
    for name, rows in samples.items():
        stem = task_name(name, settings.length)
        files[f"{stem}.jsonl"] = "".join(json.dumps(asdict(s), ensure_ascii=False) + "\n" for s in rows)
        files[f"{stem}.yaml"] = _task(name, rows, origin)
    group = _group(settings.length, list(samples), chat=data["chat_template"])
    files[f"{group_name(settings.length)}.yaml"] = group  # last: it names the others
    return [_write(out / file, text) for file, text in files.items()]


def _write(path: Path, text: str) -> Path:
    """Write a file, whole or not at all; return its path. Raises UserError where it can't be written."""
    return write_atomically(path, lambda file: file.write(text.encode()))


def task_name(name: str, length: int) -> str:
    """Return what a task is called in lm-eval."""
    return f"{PREFIX}_{name}_{length}"


def group_name(length: int) -> str:
    """Return what all exported tasks of a length are called together."""
    return f"{PREFIX}_{length}"


def _task(name: str, samples: list[Sample], origin: dict[str, object]) -> str:
    """Return the file of one task. Raises UserError where its samples have different limits of new tokens."""
    limits = {sample.max_new_tokens for sample in samples}
    if len(limits) != 1:
        raise UserError(f"{name}: samples of {len(limits)} different limits of new tokens; a task of lm-eval has one")
    stem, task = task_name(name, samples[0].length), registry.get(name)
    fields = {
        "task": stem,
        "dataset_kwargs": {"file": f"{stem}.jsonl"},
        "output_type": "generate_until",
        "test_split": SPLIT,
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answers}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": limits.pop(),
            "until": [] if task.stop is None else [task.stop],
        },
        "metadata": {"version": task.version(bool(origin["chat_template"])), "haystack": samples[0].haystack, **origin},
    }
    calls = f"custom_dataset: !function {PREFIX}_tasks.load\nprocess_results: !function {PREFIX}_tasks.process_results\n"
    return HEADER + calls + OmegaConf.to_yaml(OmegaConf.create(fields))


def _group(length: int, names: list[str], chat: bool) -> str:
    """Return the file of the group: the unweighted mean of its tasks, as RULER averages."""
    versions = dict.fromkeys(registry.get(name).version(chat) for name in names)
    fields = {
        "group": group_name(length),
        "task": [task_name(name, length) for name in names],
        "aggregate_metric_list": [{"metric": "score", "aggregation": "mean", "weight_by_size": False}],
        "metadata": {"version": "+".join(versions)},
    }
    return OmegaConf.to_yaml(OmegaConf.create(fields))
