"""The settings that measure a recorded row again, whatever the defaults are by then: `python -m harness SETTINGS`.

They are made of what the record identifies the row by, so rows of any age have them. What a record knows by content alone is
named as the reader's: DATA, a folder of data files, and a model that no file of conf/model names, a folder of its own name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from harness.core.conf_files import defaults, groups, setting_names
from harness.core.knob_names import RELEASED, asked_value
from harness.core.method_facts import method_facts
from harness.core.question import QUESTION_SEEN
from harness.core.sizing import FULL

PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*")
"""A text that Hydra reads as one without quotes, if it is no word of WORDS."""
WORDS = ("true", "false", "null", "nan", "inf")
"""What Hydra reads as something else than a text, in any case."""
ANY_SHAPE = "shape/custom"
"""The choice of the group `model` for random weights of any config."""
PYDOC, HUB = re.compile(r"pydoc-[\d.]+"), "paul_graham_essays"
"""What records call the prose of data.haystack=pydoc and of data.haystack=hub."""


def as_command_line(settings: Sequence[str]) -> str:
    """Return settings as a shell takes them behind `python -m harness`."""
    return shlex.join(settings)


def arm_settings(identity: Mapping[str, Any]) -> list[str]:
    """Return the settings of an arm, from its identity as records hold it: model, method with its knobs, and how they ran."""
    knobs, decode = identity["knobs"], identity.get("decode") or {"method": _full_attention(), "knobs": {}}
    values: dict[str, Any] = dict(_model(identity)) | {"method": identity["method"]}
    if identity["block_size"] is not None:
        values |= {f"method.{name}": value for name, value in _method_knobs(identity)}
        values |= {"knob_value": searched_value(identity), "block_size": identity["block_size"]}
    values |= {"sparsity": None if own_knobs(identity) else identity["sparsity"], "decode": decode["method"]}
    values |= {f"decode.{name}": value for name, value in _decode_knobs(decode)}
    values[RELEASED] = bool(knobs.get(RELEASED) or decode["knobs"].get(RELEASED))
    values |= {"length": identity["length"], "seed": identity["seed"], "dtype": identity["dtype"]}
    values |= {"device": identity["device_type"], "kernel": identity["kernel"], "dense_kernel": identity["dense_kernel"]}
    values["decode_kernel"] = decode.get("kernel")
    values["prefill.chunk"] = identity.get("prefill_chunk")
    optional = ("kernel", "decode_kernel", "knob_value", "model.max_length", "prefill.chunk")
    return [f"{name}={text(value)}" for name, value in values.items() if value is not None or name not in optional]


def sample_settings(identity: Mapping[str, Any], tasks: Sequence[str], samples: int) -> list[str]:
    """Return the settings of the samples of cells of one arm on these tasks. identity: of one of the cells."""
    values: dict[str, Any] = {"task": list(tasks), "task.sizing": identity.get("sizing", FULL)}
    values |= {"samples": max(1, samples), "question": identity.get("question", QUESTION_SEEN)}
    values["model.chat_template"] = identity["chat_template"]
    values |= _chat_options(identity["data"]) | _data(identity["data"], identity.get("files") or {})
    return [f"{name}={text(value)}" for name, value in values.items()]


def timed_decoding(timing: Mapping[str, Any]) -> list[str]:
    """Return the settings of the decoding that a record of times holds, none where it holds none."""
    if timing.get("decode_steps") is None:
        return []
    batches = sorted(int(batch) for batch in {*timing["decode_tokens_s"], *timing["decode_failed"]})
    graph = "graph" in timing["decode_timing"].values()
    values = {"decode_batches": batches, "decode_steps": timing["decode_steps"], "decode_graph": graph}
    return [f"job.{name}={text(value)}" for name, value in values.items()]


def document_settings(identity: Mapping[str, Any], documents: int) -> list[str]:
    """Return the settings of job=perplexity, from the identity of its cell."""
    data = identity["data"]
    pydoc = PYDOC.fullmatch(str(data.get("text"))) is not None
    values = {"job": "perplexity", "job.text": "pydoc" if pydoc else "auto", "job.min_tokens": data.get("least")}
    values |= {"job.stride": data.get("stride"), "samples": max(1, documents)} | ({} if pydoc else {"data.text_dir": "DATA"})
    return [f"{name}={text(value)}" for name, value in values.items()]


def prompt_settings(identity: Mapping[str, Any], prompts: int) -> list[str]:
    """Return the settings of the prompts of a measurement without answers, from its identity, as far as that says them."""
    tasks, data = identity.get("tasks"), identity.get("text")
    values: dict[str, Any] = {"samples": prompts} | ({"task": tasks} if tasks else {})
    values |= {"model.chat_template": identity["chat"]} if "chat" in identity else {}
    values |= _chat_options(data) | _data(data, {}) if isinstance(data, Mapping) else {}
    return [f"{name}={text(value)}" for name, value in values.items()]


def case_settings(identity: Mapping[str, Any]) -> list[str]:
    """Return the settings of job=kernel_speed that time a case, from its identity. Beside a sparse case
    the dense kernels are timed that its times are compared with."""
    op, index = identity["op"], identity["index"]
    kernel = [identity["kernel"]] if identity["kernel"] else []
    values: dict[str, Any] = {"job": "kernel_speed"}
    values |= {f"job.{name}": identity[name] for name in ("phase", "shape")}
    values |= {"job.lengths": [identity["length"]], "job.batches": [identity["batch"]]}
    if identity["block"] is not None:
        values["job.blocks"] = [identity["block"]]
    if identity["sparsity"] is not None:
        values["job.sparsities"] = [identity["sparsity"]]
    values |= {"job.dense_kernels": kernel} if op == "full" else {}
    values |= {"job.kernels": kernel, "job.indices": [index]} if op == "sparse" else {}
    values |= {"job.selections": [identity["selection"]]} if identity["selection"] else {}
    values |= {"job.last": [identity["last"]]} if "last" in identity else {}
    values["job.block_map"] = identity["kernel"] if op == "block_map" else None
    return [f"{name}={text(value)}" for name, value in (values | {n: identity[n] for n in ("dtype", "seed")}).items()]


def searched_value(identity: Mapping[str, Any]) -> Any:
    """Return the value of the knob that was searched for the sparsity of an arm; None where a formula gives it."""
    if not identity["sparsity"]:
        return None
    known = (identity["knobs"].get(name) for name in method_facts(identity["method"]).searched)
    return next((value for value in known if value is not None), None)


def own_knobs(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that a formula gave for the sparsity of an arm whose sparsity is searched by now: they keep the same
    blocks without a sparsity. Empty for any other arm."""
    facts, knobs = method_facts(identity["method"]), identity["knobs"]
    if not identity["sparsity"] or not facts.searched or searched_value(identity) is not None:
        return {}
    return {name: knobs[name] for name in facts.instead if name not in facts.searched and knobs.get(name) is not None}


def text(value: Any) -> str:
    """Return a value, a list or a dict of them as Hydra reads it back: a text in quotes where it would be read as another."""
    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{text(key)}:{text(entry)}' for key, entry in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    value = str(value)
    if PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash counts only before a quote
    ending = len(quoted) - len(quoted.rstrip("\\"))
    return f"'{quoted}{chr(92) * ending}'"


def _method_knobs(identity: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the knobs of a method's file. Those that a sparsity takes the place of are null beside one: it decides them."""
    method, knobs, own = identity["method"], identity["knobs"], own_knobs(identity)
    decided = method_facts(method).instead if identity["sparsity"] is not None else ()
    for name in _names("method", method):
        yield name, own.get(name) if name in decided else asked_value(method, knobs, name)


def _decode_knobs(decode: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the knobs of a file of a method of decoding; those that are not recorded are newer, and at their defaults."""
    standing = defaults("decode", decode["method"]) if decode["method"] in groups()["decode"] else {}
    yield from ((name, decode["knobs"].get(name, standing[name])) for name in _names("decode", decode["method"]))


def _full_attention() -> str:
    """Return the choice of the group `decode` that has no knobs: full attention."""
    return next(choice for choice in groups()["decode"] if not _names("decode", choice))


@lru_cache
def _names(group: str, choice: str) -> tuple[str, ...]:
    """Return the names of the settings of a choice, none where it is of another version."""
    known = setting_names(group, choice) if choice in groups()[group] else []
    return tuple(name for name in known if name != "name" and "." not in name)


def _model(identity: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that name a model."""
    name, shape = identity["model"], identity.get("shape")
    same = (choice for choice in groups()["model"] if defaults("model", choice)["name"] == name)
    choice = next((choice for choice in same if shape in (None, defaults("model", choice)["shape"])), None)
    if choice is not None:
        yield "model", choice
    elif shape is not None:
        yield from (("model", ANY_SHAPE), ("model.name", name), ("model.shape", shape))
    else:
        yield from (("model", "hf"), ("model.path", name.partition("@")[0]), ("model.name", name))
    yield "model.max_length", identity.get("max_length")


def _chat_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a chat template was given, where it read that."""
    return {f"model.{name}": data[name] for name in ("date", "enable_thinking") if name in data}


def _data(data: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of the text behind generated tasks, and of their files."""
    prose, values = str(data.get("haystack")), {}
    if PYDOC.fullmatch(prose) or prose == HUB:
        values["data.haystack"] = "hub" if prose == HUB else "pydoc"
    if files or not values:
        values["data.dir"] = "DATA"
    return values | ({"data.words": "DATA"} if data.get("words") else {})
