"""Tasks: what a model is asked, made to a length by the model's own tokenizer, and how its answer is scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from harness.core.errors import UserError
from harness.tasks import cache, files, longbench, ruler
from harness.tasks.context import context_tokens
from harness.tasks.haystack import haystack as find_haystack
from harness.tasks.haystack import source_of
from harness.tasks.longbench import LongBenchTask
from harness.tasks.prompts import bos_allowed, chat_problem, template_twice, truncated
from harness.tasks.protocol import AnyTask
from harness.tasks.ruler import questions
from harness.tasks.sample import Sample
from harness.tasks.scoring import string_match_all, string_match_part
from harness.tasks.sizing import Sizer, encode, without_second_bos

__all__ = [
    "VERSION",
    "AnyTask",
    "Sample",
    "Task",
    "chat_problem",
    "check_sample",
    "context_tokens",
    "encode",
    "encode_all",
    "get",
    "get_samples",
    "group",
    "groups",
    "names",
    "sets_bos",
    "sources",
    "stop_ids",
    "stop_of",
]

VERSION = cache.VERSION
CACHE = Path(".cache/samples")
"""Where samples are kept, below the working folder."""
GROUPS = {"niah": tuple(ruler.NIAH_TASKS), "ruler_core": ruler.CORE, "ruler": ruler.NAMES, **longbench.GROUPS}


@dataclass(frozen=True)
class Task:
    """A task of RULER by name; `metric(prediction, answers)` is in [0, 1]."""

    name: str
    version = str(VERSION)
    fixed = False
    asks = True
    stop: ClassVar[str | None] = None

    def metric(self, prediction: str, answers: Sequence[str]) -> float:
        """RULER's string_match_part where questions are asked about documents, else its string_match_all."""
        match = string_match_part if self.name in ruler.DOCUMENTS else string_match_all
        return match(prediction, answers)

    def score(self, prediction: str, sample: Sample) -> float:
        """The metric, for a sample."""
        return self.metric(prediction, sample.answers)

    def source(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """None: samples are made, from the haystack and the words."""
        return None

    def count(self, most: int, data: dict[str, Any]) -> int:
        """As many as are wanted."""
        return most

    def samples(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """`get_samples` with the settings of the `data` group, kept on disk below the working folder."""
        return get_samples(
            self.name,
            tokenizer,
            length,
            n,
            seed=seed,
            haystack=source_of(data),
            words=data.get("words"),
            folder=data.get("dir"),
            cache_dir=CACHE,
            chat_template=bool(data.get("chat_template")),
        )

    def spare(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """The samples of a seed that no test has."""
        return self.samples(tokenizer, length, n, seed, data)


def sets_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a BOS token in front of every text."""
    return tokenizer.bos_token_id is not None and encode(tokenizer, "a")[0] == tokenizer.bos_token_id


def stop_ids(tokenizer: Any, model: Any = None) -> set[int]:
    """The token ids that end an answer: the tokenizer's, and those of the model's generation config (end of turn, …)."""
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {tokenizer.eos_token_id, *(more if isinstance(more, list | tuple) else [more])} - {None}


def stop_of(tokenizer: Any, sample: Sample) -> frozenset[int]:
    """The token ids that end this sample's answer beside the model's own, by its task's rules: mostly none."""
    text = get(sample.task).stop
    return frozenset() if text is None else frozenset(tokenizer(text, add_special_tokens=False)["input_ids"][-1:])


def encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """`encode` for many texts; fast tokenizers work on them in parallel."""
    rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"] if texts else []
    return [without_second_bos(list(ids), tokenizer.bos_token_id) for ids in rows]


def names() -> list[str]:
    """Every task."""
    return [*ruler.NAMES, *longbench.NAMES, *longbench.NAMES_E]


def groups() -> list[str]:
    """Names that stand for several tasks."""
    return list(GROUPS)


def get(name: str) -> AnyTask:
    """The task called `name`; UserError lists the names there are."""
    if name in ruler.NAMES:
        return Task(name)
    if name in longbench.NAMES or name in longbench.NAMES_E:
        return LongBenchTask(name)
    known = ", ".join((*ruler.NAMES, *longbench.NAMES))  # the buckets of LongBench-E are in the groups
    raise UserError(f"task {name} is not known; choose from: {known}, or a group: {', '.join(groups())}")


def group(name: str | Sequence[str]) -> list[str]:
    """The task names that a name, a group, a comma list or a list of these stands for."""
    parts = name.split(",") if isinstance(name, str) else list(name)
    found: dict[str, None] = {}
    for part in (p.strip() for p in parts):
        found |= dict.fromkeys(GROUPS[part] if part in GROUPS else (get(part).name,))
    return list(found)


def sources(name: str, data: Mapping[str, Any]) -> dict[str, str]:
    """The files that task `name` reads beside prose and word list, by name, each with the name of its content: part of the
    identity of its cells. A file that isn't there yet is downloaded; UserError where that fails."""
    return _sources(name, data.get("dir"))


def _sources(name: str, folder: str | None) -> dict[str, str]:
    if name in ruler.DOCUMENTS:
        return {ruler.DOCUMENTS[name].names[0]: questions.read(files.locate(ruler.DOCUMENTS[name], folder, name)).name}
    more = _more_words(name, folder)
    return {} if more is None else {more.name: files.short_hash(more)}


def _more_words(name: str, folder: str | None) -> Path | None:
    """The longer word list of a task that can use one."""
    return files.find(ruler.MORE_WORDS, folder) if folder is not None and name in ruler.LONG_LISTS else None


def _words(path: str | None) -> tuple[tuple[str, ...] | None, str | None]:
    """The words of a file, and the hash of its content, which names them in the cache."""
    if path is None:
        return None, None
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"data.words={path}: no such file; give a text file of words, or RULER's english_words.json")
    return _parsed(raw := file.read_bytes(), file.suffix == ".json"), hashlib.sha256(raw).hexdigest()[:12]


@lru_cache(maxsize=8)
def _parsed(raw: bytes, as_json: bool) -> tuple[str, ...]:
    text = raw.decode("utf-8")
    return tuple(sorted(set(json.loads(text).values() if as_json else text.split())))


def get_samples(
    task: str,
    tokenizer: Any,
    length: int,
    n: int,
    *,
    seed: int = 0,
    haystack: str | None = None,
    words: str | None = None,
    folder: str | None = None,
    cache_dir: Path | None = None,
    chat_template: bool = False,
) -> list[Sample]:
    """The first `n` samples of `task`, one of RULER's, at `length` tokens, prompt and answer together. `folder` has the files
    of those tasks that read any (see `sources`); None: they are downloaded once.

    Sample i depends on (seed, task, length, i), the prose, the files and the tokenizer, and on nothing else. With `cache_dir`
    they are kept on disk, and only those not there yet are made. Raises UserError for an unknown task, a length too short
    for it, or a file that isn't there.
    """
    get(task)
    own_words, words_hash = _words(words)
    asked = questions.read(files.locate(ruler.DOCUMENTS[task], folder, task)) if task in ruler.DOCUMENTS else None
    more = _words(str(found))[0] if (found := _more_words(task, folder)) else None
    made = ruler.builder(task, length, own_words, more=more, questions=asked)
    hay = find_haystack(haystack) if made.prose else None
    path = None
    samples: dict[int, Sample] = {}
    if cache_dir is not None:
        template = cache.template_hash(tokenizer) if chat_template else False
        key = (task, length, seed, hay.name if hay else None, words_hash, template, cache.tokenizer_hash(tokenizer))
        path = cache.cache_file(Path(cache_dir), *key, *_sources(task, folder).values())
        samples = cache.read(path)
    missing = [i for i in range(n) if i not in samples]
    if missing:
        sizer = Sizer(task, made, tokenizer, length, seed, hay, chat_template)
        samples |= {i: sizer.sample(i) for i in missing}
        if path is not None:
            cache.write(path, samples)
    return [replace(samples[i], context=ruler.context_of(task, samples[i].prompt)) for i in range(n)]


def check_sample(sample: Sample, tokenizer: Any, ids: Sequence[int] | None = None) -> str | None:
    """None if the sample is sound, else what is wrong: not one BOS (none where the tokenizer sets none), too long, cut, in a
    chat template twice, or an answer (of a question about documents: what it is answered from) that isn't in the text before
    the question where the task puts it there.

    `ids` are the prompt's tokens where they are known: those that the model will see."""
    ids = encode(tokenizer, sample.prompt) if ids is None else ids
    bos = tokenizer.bos_token_id
    allowed = bos_allowed(sample.prompt, tokenizer)
    if bos is not None and (ids.count(bos) > allowed or list(ids[:2]) == [bos, bos]):
        right = "one" if allowed == 1 else f"{allowed}, as in the chat template"
        return f"{ids.count(bos)} BOS tokens in the prompt; there must be {right}"
    if bos is not None and ids[0] != bos and sets_bos(tokenizer):
        return "no BOS token in front of the prompt, where this tokenizer sets one; there must be one"
    if len(ids) + sample.max_new_tokens > sample.length:
        return f"prompt of {len(ids)} tokens and {sample.max_new_tokens} to generate exceed length {sample.length}"
    if (wrong := truncated(sample.prompt, ids, tokenizer) or template_twice(sample.prompt, tokenizer)) is not None:
        return wrong
    for text in sample.evidence or (sample.answers if sample.verbatim else ()):
        if text not in sample.prompt[: sample.context]:
            return f"{'the document' if sample.evidence else 'answer'} {text[:60]!r} is not in the prompt"
    return None
