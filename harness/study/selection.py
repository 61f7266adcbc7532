"""Which recorded arms and cells a command names: by what it gives of model, method, knobs, length and so on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.core import checks
from harness.core.conf_files import setting_names
from harness.core.errors import UserError
from harness.core.knob_names import RELEASED, asked_value
from harness.core.question import QUESTION_SEEN
from harness.core.settings import Settings
from harness.study.command_settings import text
from harness.study.pruning import OF_ARMS, Removed
from harness.study.store import Record, Store

OF_CELLS_ALONE = ("question", "task")
"""What an arm's identity has not: where it is given, single cells go. What else is known of an arm goes with its last cell."""


@dataclass(frozen=True)
class Selector:
    """A setting that chooses among records: as the command has it, and whether a record is of its value."""

    text: str
    fits: Callable[[Record], bool]
    of_cells_alone: bool = False


@dataclass(frozen=True)
class Selection:
    """What is chosen of a study, and what is not. records: all of an arm (by id) that go or stay, cells first in both."""

    removed: Removed
    gone: Mapping[str, list[Record]]
    left: Mapping[str, list[Record]]
    cases: list[Record]


def selectors(settings: Settings) -> Iterator[Selector]:
    """Yield what the settings that were given choose by."""
    given, options = settings.given, settings.options
    if options["arm"] is not None:
        arm = _arm_id(options["arm"])
        yield Selector(f"arm={arm}", lambda record: str(record.get("arm", "")).startswith(arm))
    for name, recorded in (("method", settings.method), ("model", settings.model["name"])):
        asked = options[name] if options[name] is not None else recorded
        if options[name] is not None or name in given or (name == "model" and {"model.name", "model.path"} & given):
            yield _equal(name, name if name == "method" else _model_field, asked)
    for name, value in settings.method_knobs.items():
        if f"method.{name}" in given:
            yield _method_knob(name, value)
    if "decode" in given:
        full = setting_names("decode", settings.decode) == ["name"]
        yield _equal("decode", _decode_method, None if full else settings.decode, settings.decode)
    for name, value in settings.decode_knobs.items():
        if f"decode.{name}" in given:
            yield _decode_knob(name, value)
    own = {
        "sparsity": settings.sparsity,
        "length": settings.length,
        "seed": settings.seed,
        "kernel": settings.kernel,
        "dense_kernel": settings.dense_kernel,
    }
    yield from (_equal(name, name, value) for name, value in own.items() if name in given)
    others: tuple[tuple[str, Callable[[Mapping[str, Any]], Any], Any], ...] = (
        ("block_size", lambda identity: identity.get("block_size", identity.get("block")), settings.block_size),
        ("dtype", lambda identity: identity["dtype"], settings.dtype_choice),
        ("device", lambda identity: identity.get("device_type"), settings.device_choice.partition(":")[0]),
        ("prefill.chunk", lambda identity: identity.get("prefill_chunk"), settings.prefill_chunk),
    )
    yield from (_equal(name, of, value) for name, of, value in others if name in given)
    if RELEASED in given:
        released = settings.as_released
        yield Selector(f"{RELEASED}={str(released).lower()}", lambda r: bool(r.get("knobs", {}).get(RELEASED)) == released)
    if "question" in given:
        question = settings.question
        yield Selector(f"question={question}", lambda r: r["identity"].get("question", QUESTION_SEEN) == question, True)
    if "task" in given:
        tasks = settings.tasks
        yield Selector(f"task={','.join(tasks)}", lambda r: r["identity"].get("task") in tasks, True)


def _arm_id(value: Any) -> str:
    """Return the id of an arm, or its beginning. Raises UserError for what the command line reads as another number."""
    if isinstance(value, float | bool):
        raise UserError(f"arm={value}: that id reads as a number: quote it, 'arm=\"ID\"', or leave its last letters out")
    return checks.text("arm", value)


def _model_field(identity: Mapping[str, Any]) -> Any:
    """Return the model of an arm, or the shape of a kernel's case."""
    return identity.get("model", identity.get("shape"))


def _decode_method(identity: Mapping[str, Any]) -> Any:
    return (identity.get("decode") or {}).get("method")


def _equal(name: str, field: str | Callable[[Mapping[str, Any]], Any], value: Any, shown: Any = None) -> Selector:
    """Return what chooses the records of a value in their identity, at a name in it or as a function finds it."""
    of: Callable[[Mapping[str, Any]], Any] = field if callable(field) else lambda identity: identity.get(field)
    said = f"{name}={'null' if value is None and shown is None else value if shown is None else shown}"
    return Selector(said, lambda record: _same(of(record["identity"]), value))


def _method_knob(name: str, value: Any) -> Selector:
    def fits(record: Record) -> bool:
        identity = record["identity"]
        knobs = record.get("knobs", identity.get("knobs", {}))
        return _same(asked_value(identity["method"], knobs, name), value)

    return Selector(f"method.{name}={text(value)}", fits)


def _decode_knob(name: str, value: Any) -> Selector:
    def fits(record: Record) -> bool:
        decode = record["identity"].get("decode")
        return decode is not None and _same(decode["knobs"].get(name), value)

    return Selector(f"decode.{name}={text(value)}", fits)


def _same(recorded: Any, asked: Any) -> bool:
    """Return whether two values are equal, numbers to the last digits that a command line has."""
    if isinstance(recorded, float) and isinstance(asked, int | float) and not isinstance(asked, bool):
        return math.isclose(recorded, asked, rel_tol=1e-6, abs_tol=1e-12)
    return bool(recorded == asked)


def select(store: Store, chosen: list[Selector]) -> Selection:
    """Return what the selectors choose, all of them together. Raises RecordError for corrupt records."""
    by_kind = {file.kind: file.read() for file in store.files() if file.kind in (*OF_ARMS, "calibrations", "kernels")}
    of_arms = [selector for selector in chosen if not selector.of_cells_alone]
    single = len(of_arms) < len(chosen)

    def fits(record: Record, among: list[Selector]) -> bool:
        return all(selector.fits(record) for selector in among)

    cells = frozenset(record["cell"] for record in by_kind["cells"] if fits(record, chosen))
    with_others = {record["arm"] for record in by_kind["cells"] if record["cell"] not in cells}
    named = [record for kind in OF_ARMS for record in by_kind[kind]]
    arms = {record["arm"] for record in named if fits(record, of_arms)} - with_others
    if single:  # what else is known of an arm goes with its last cell
        arms &= {record["arm"] for record in by_kind["cells"] if record["cell"] in cells}
    cases = [record for record in by_kind["kernels"] if fits(record, of_arms) and not single]
    gone: dict[str, list[Record]] = {}
    left: dict[str, list[Record]] = {}
    for record in named:
        goes = record["arm"] in arms or record.get("cell") in cells
        (gone if goes else left).setdefault(record["arm"], []).append(record)
    calibrations = frozenset(
        record["calibration"] for record in by_kind["calibrations"] if _serves(record, gone) and not _serves(record, left)
    )
    removed = Removed(cells, frozenset(arms), calibrations, frozenset(record["case"] for record in cases))
    return Selection(removed, gone, left, cases)


def _serves(calibration: Record, arms: Mapping[str, list[Record]]) -> bool:
    """Return whether the value that a calibration found is that of an arm, by all that both identities say."""
    own = calibration["identity"]
    for records in arms.values():
        identity = records[0]["identity"]
        fields = (own.keys() & identity.keys()) - {"knobs"}
        knobs = own["knobs"].keys() - {calibration["knob"]}
        if all(own[name] == identity[name] for name in fields) and all(
            own["knobs"][name] == identity["knobs"].get(name) for name in knobs
        ):
            return True
    return False
