"""A hundred ways in which records can be damaged, each with what is to be said of it."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]
DEEP = "[" * 100_000 + "]" * 100_000
DELETED = object()


@dataclass(frozen=True)
class Case:
    """A damage of the records in a folder. place: "FILE:LINE" or "FILE", with which the line about it begins."""

    name: str
    damage: Damage
    place: str
    says: str
    study: str = "models"


def edit_line(path: Path, line: int, edit: Callable[[bytes], bytes]) -> None:
    lines = path.read_bytes().splitlines()
    lines[line - 1] = edit(lines[line - 1])
    path.write_bytes(b"".join(part + b"\n" for part in lines))


def field(kind: str, path: str, value: Any, says: str, line: int = 1) -> Case:
    """Another value of a field, which may be inside others."""
    *parents, last = path.split(".")

    def edit(raw: bytes) -> bytes:
        data = json.loads(raw)
        inner = data
        for name in parents:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        if value is DELETED:
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value
        return json.dumps(data).encode()

    def damage(records: Path) -> None:
        edit_line(records / f"{kind}.jsonl", line, edit)

    shown = "deleted" if value is DELETED else json.dumps(value)[:20]
    return Case(f"{kind}.{path}={shown}", damage, f"{kind}.jsonl:{line}", says, study_of(kind))


def raw(kind: str, name: str, edit: Callable[[bytes], bytes], says: str, line: int = 1) -> Case:
    """Another line."""

    def damage(records: Path) -> None:
        edit_line(records / f"{kind}.jsonl", line, edit)

    return Case(f"{kind} {name}", damage, f"{kind}.jsonl:{line}", f": corrupt record, {says}", study_of(kind))


def number(kind: str, path: str, written: str) -> Case:
    """A number in JSON's grammar or Python's that is none."""
    case = field(kind, path, 12345.5, "")

    def damage(records: Path) -> None:
        case.damage(records)
        edit_line(records / f"{kind}.jsonl", 1, lambda line: line.replace(b"12345.5", written.encode()))

    says = f": corrupt record, {path}: NaN, Infinity and what is larger are no numbers here"
    return Case(f"{kind}.{path}={written}", damage, f"{kind}.jsonl:1", says)


def whole(kind: str, name: str, change: Damage, says: str, study: str | None = None) -> Case:
    """Something else where a file was; says: the place where it shows, ": " and the rest."""
    place, _, rest = says.partition(": ")
    return Case(f"{kind} {name}", lambda records: change(records / f"{kind}.jsonl"), place, rest, study or study_of(kind))


def archive(name: str, change: Callable[[bytes], bytes], says: str) -> Case:
    """Another archive of samples."""

    def damage(records: Path) -> None:
        (records / "samples.jsonl.xz").write_bytes(change((records / "samples.jsonl").read_bytes()))
        (records / "samples.jsonl").unlink()

    return Case(f"samples.jsonl.xz {name}", damage, "samples.jsonl.xz", says)


def study_of(kind: str) -> str:
    return "kernels" if kind == "kernels" else "models"


def of_samples(path: Path) -> None:
    path.write_bytes((path.parent / "samples.jsonl").read_bytes())


def unlink(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def to_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def without_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def again_otherwise(path: Path) -> None:
    first = json.loads(path.read_bytes().splitlines()[0])
    path.write_bytes(path.read_bytes() + json.dumps(first | {"date": "2027"}).encode() + b"\n")


def gate_by_self_check(path: Path) -> None:
    cells = path.parent / "cells.jsonl"
    cells.write_text(cells.read_text().replace('"status":"ok","reason":""', '"status":"gated","reason":"self-check: zero"'))
    path.unlink()


NUMBER, WHOLE, TEXT, OBJECT, LIST = "a number", "a whole number", "text", "an object", "a list"
ABSENT = [
    ("runs", "device"),
    ("runs", "versions"),
    ("samples", "score"),
    ("samples", "index"),
    ("samples", "cell"),
    ("cells", "identity"),
    ("cells", "pair"),
    ("latency", "total_ms"),
    ("mass", "kept"),
    ("checks", "status"),
    ("calibrations", "value"),
    ("perplexity", "nll"),
    ("kernels", "device"),
    ("gate_steps", "loss"),
    ("samples", "schema"),
]
WRONG: list[tuple[str, str, Any, str]] = [
    *[("samples", "score", value, f"expected {NUMBER}, got") for value in ("1", None, True, [1.0], {})],
    ("samples", "score", -3, f"expected {NUMBER} >= 0.0, got -3"),
    ("samples", "score", 1.5, f"expected {NUMBER} <= 1.0, got 1.5"),
    ("samples", "index", "0", f"expected {WHOLE}, got text"),
    ("samples", "index", 0.5, f"expected {WHOLE}, got {NUMBER}"),
    ("samples", "index", -1, f"expected {WHOLE} >= 0, got -1"),
    ("samples", "cell", 5, f"expected {TEXT}, got {WHOLE}"),
    ("samples", "run", None, f"expected {TEXT}, got null"),
    ("samples", "kernels", "sdpa", f"expected {LIST}, got text"),
    ("samples", "kernels.0", 7, f"expected {TEXT}, got {WHOLE}"),
    ("samples", "density", 7.0, f"expected {NUMBER} <= 1.001, got 7.0"),
    ("samples", "status", "fine", 'expected ok or gated, got "fine"'),
    ("samples", "cut", None, f"expected {WHOLE}, got null"),
    ("samples", "token_density", "0.1", f"expected {NUMBER} or null, got text"),
    ("runs", "versions", [], f"expected {OBJECT}, got {LIST}"),
    ("runs", "versions.torch", 2, f"expected {TEXT}, got {WHOLE}"),
    ("runs", "device", None, f"expected {TEXT}, got null"),
    ("runs", "command", ["python"], f"expected {TEXT}, got {LIST}"),
    ("cells", "status", "done", 'expected running or ok or failed or gated, got "done"'),
    ("cells", "identity", None, f"expected {OBJECT}, got null"),
    ("cells", "identity.length", "4k", f"expected {WHOLE}, got text"),
    ("cells", "identity.length", -3, f"expected {WHOLE} >= 1, got -3"),
    ("cells", "identity.seed", -1, f"expected {WHOLE} >= 0, got -1"),
    ("cells", "identity.model", None, f"expected {TEXT}, got null"),
    ("cells", "identity.sparsity", 3, f"expected {NUMBER} <= 1.0, got 3"),
    ("cells", "identity.knobs", [], f"expected {OBJECT}, got {LIST}"),
    ("cells", "identity.decode", {"method": 5, "knobs": {}}, f"expected {TEXT}, got {WHOLE}"),
    ("cells", "identity.chat_template", "no", "expected true or false, got text"),
    ("cells", "knobs", {"width": {}}, ""),
    ("cells", "date", 20270101, f"expected {TEXT}, got {WHOLE}"),
    ("latency", "total_ms", 0, f"expected {NUMBER} > 0.0, got 0"),
    ("latency", "total_ms", 1e308, f"expected {NUMBER} <= 1e+18, got 1e+308"),
    ("latency", "dense_ms", "fast", f"expected {NUMBER}, got text"),
    ("latency", "selection_ms", -3, f"expected {NUMBER} >= 0.0, got -3"),
    ("latency", "identity.kernel", 5, f"expected {TEXT} or null, got {WHOLE}"),
    ("latency", "kernel", None, f"expected {TEXT}, got null"),
    ("latency", "tflops", None, f"expected {NUMBER}, got null"),
    ("mass", "kept.0.0", "x", f"expected {NUMBER}, got text"),
    ("mass", "kept", [], "one of each layer"),
    ("mass", "kept.0", [], "one of each layer"),
    ("mass", "layers", [0, 1], "one of each layer"),
    ("perplexity", "tokens", 0, f"expected {WHOLE} >= 1, got 0"),
    ("perplexity", "seconds", 0, f"expected {NUMBER} > 0.0, got 0"),
    ("perplexity", "nll", None, "null, although the status is ok"),
    ("checks", "identity.chat_template", None, "expected true or false, got null"),
    ("calibrations", "value", "x", f"expected {NUMBER}, got text"),
    ("kernels", "identity.op", "dance", 'expected full or sparse or selection or block_map, got "dance"'),
    ("kernels", "times.total", [1.0], f"expected {LIST} of length >= 4"),
    ("kernels", "times", None, f"expected {OBJECT}, got null"),
    ("kernels", "dense_ms", 0, f"expected {NUMBER} > 0.0, got 0"),
    ("kernels", "identity.index", None, f"expected {TEXT}, got null"),
    ("gate_steps", "loss", "x", f"expected {NUMBER} or null, got text"),
]
CASES = [
    *[field(kind, name, DELETED, f": corrupt record, {name} missing") for kind, name in ABSENT],
    *[field(kind, name, value, says) for kind, name, value, says in WRONG],
    field("cells", "identity.dense_kernel", DELETED, "identity: dense_kernel missing", line=4),
    field("samples", "schema", 2, "a record of schema 2, this version reads 1"),
    field("samples", "colour", "red", 'a field that is not known, "colour": was it written by a newer version'),
    *[number("samples", "score", value) for value in ("NaN", "Infinity", "-Infinity", "1e400")],
    number("cells", "identity.sparsity", "NaN"),
    number("latency", "ttft_ms", "NaN"),
    raw("samples", "deep", lambda _: DEEP.encode(), "nested more than 32 deep"),
    raw("cells", "deep inside", lambda line: line.replace(b'"pydoc"', b"[" * 50 + b"]" * 50), "nested more than 32 deep", 1),
    raw("samples", "not UTF-8", lambda line: line.replace(b'"p"', b'"\xff"'), "not UTF-8 (byte"),
    raw("samples", "zero bytes", lambda _: b"\0" * 9, "not JSON"),
    raw("samples", "blank", lambda _: b"", "an empty line"),
    raw("samples", "half", lambda line: line[: len(line) // 2], "not JSON"),
    raw("samples", "list", lambda line: b"[" + line + b"]", "a list instead of an object"),
    raw("runs", "number", lambda _: b"5", "5 instead of an object"),
    whole(
        "perplexity",
        "line of another kind",
        of_samples,
        "perplexity.jsonl:1: document, nll, read, seconds missing: is it a line of samples.jsonl?",
    ),
    whole("runs", "missing", unlink, 'samples.jsonl:1: run "r1" is not in '),
    whole("runs", "empty", empty, 'samples.jsonl:1: run "r1" is not in '),
    whole("runs", "missing of kernels", unlink, 'kernels.jsonl:1: run "r1" is not in ', "kernels"),
    field("latency", "run", "zz", 'run "zz" is not in '),
    field("mass", "run", "zz", 'run "zz" is not in '),
    field("samples", "cell", "zz", 'cell "zz" is not in '),
    field("samples", "cell", "\x1b[31m\n", r': cell "\u001b[31m\n" is not in '),
    whole("cells", "missing", unlink, "samples.jsonl:1: cell "),
    whole("cells", "empty", empty, "samples.jsonl:1: cell "),
    whole("samples", "missing", unlink, "cells.jsonl:1: cell "),
    whole("samples", "empty", empty, "cells.jsonl:1: cell "),
    whole("perplexity", "missing", unlink, "cells.jsonl:2: cell "),
    whole("kernels", "missing", unlink, "study=demo: it has a leaderboard, and "),
    whole("checks", "missing", gate_by_self_check, "cells.jsonl:1: the self-check that gated this cell is not in "),
    whole("samples", "cut by a line", without_last_line, "cells.jsonl:3: cell "),
    whole("samples", "twice", again_otherwise, "samples.jsonl:5: corrupt record, cell="),
    whole("runs", "twice", again_otherwise, 'runs.jsonl:2: corrupt record, run="r1" is recorded otherwise in '),
    *[whole(kind, "a folder", to_folder, f"{kind}.jsonl: is no file") for kind in ("runs", "cells", "samples", "kernels")],
    whole("cells", "a broken link", to_broken_link, "cells.jsonl: is a link to a file that is not there: "),
    whole("latency", "a loop", to_loop, "latency.jsonl: can't be read ("),
    whole("mass", "a pipe", to_pipe, "mass.jsonl: is no file: "),
    archive("cut", lambda text: lzma.compress(text)[:-20], ": not readable as xz ("),
    archive("without its last newline", lambda text: lzma.compress(text[:-1]), ":4: ends within a line"),
    archive("that ends within a line", lambda text: lzma.compress(text[:-40]), ":4: ends within a line"),
    archive("with a second stream cut", lambda text: lzma.compress(text) + lzma.compress(text)[:9], ": not readable as xz ("),
    archive("with text after its end", lambda text: lzma.compress(text) + text, ": not readable as xz ("),
    archive("empty", lambda _: b"", ": not readable as xz (it is empty)"),
    archive("of plain text", lambda text: text, ": not readable as xz ("),
    archive("of other lines", lambda _: lzma.compress(b"{}\n"), ":1: corrupt record, "),
]
