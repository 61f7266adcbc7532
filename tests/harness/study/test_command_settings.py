"""The settings of a row measure it again, whatever the defaults are by then."""

from __future__ import annotations

import itertools
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import methods
from harness.arms.build import _knobs, build_decode_method, build_method
from harness.core.knob_names import asked_value
from harness.core.method_facts import method_facts
from harness.study.command_settings import (
    arm_settings,
    as_command_line,
    case_settings,
    document_settings,
    own_knobs,
    prompt_settings,
    sample_settings,
    searched_value,
    text,
)
from harness.study.store import Store
from tests.harness.settings import merged

RESULTS = Path(__file__).resolve().parents[3] / "results"
in_a_checkout = pytest.mark.skipif(not RESULTS.is_dir(), reason="results/ is only in a checkout")


@lru_cache
def recorded(study: str, kind: str) -> list[dict[str, Any]]:
    """Records of a study, read once: each is asked for several times."""
    return list(getattr(Store(RESULTS / study), kind).read())


def first(study: str, kind: str = "cells", **values: Any) -> dict[str, Any]:
    """The first identity in a study with these values, those of knobs among them."""
    identities = (record["identity"] for record in recorded(study, kind))
    match = next((i for i in identities if all({**i["knobs"], **i}.get(n) == v for n, v in values.items())), None)
    return pytest.skip("newer than the study") if match is None else match


ARMS = [
    *((("methods", "latency"), {"method": name, "sparsity": 0.9}) for name in methods.names() if name != "dense"),
    (("methods", "latency"), {"method": "dense"}),
    (("methods", "latency"), {"method": "flash_prefill", "sparsity": None}),
    (("methods", "latency"), {"method": "kascade", "sparsity": None}),
    (("longbench_mini", "cells"), {"method": "seer", "selection": "threshold"}),
    (("gate_truths", "cells"), {"method": "seer", "gates": "mass"}),
    (("longbench_mini_last_rows", "cells"), {"method": "seer", "selection": "threshold", "last": 2}),
]


@in_a_checkout
@pytest.mark.parametrize(("where", "arm"), ARMS)
def test_a_recorded_arm_is_composed_again(where: tuple[str, str], arm: dict[str, Any]) -> None:
    identity = first(*where, **arm)
    settings = merged(*arm_settings(identity))
    fields = ("method", "sparsity", "length", "seed", "dense_kernel")
    assert {name: getattr(settings, name) for name in fields} == {name: identity[name] for name in fields}
    assert (settings.dtype_choice, settings.device_choice) == (identity["dtype"], identity["device_type"])
    if identity["block_size"] is None:
        return
    assert (settings.block_size, settings.kernel) == (identity["block_size"], identity["kernel"])
    method = build_method(settings)
    knob = method.calibrates()
    assert (knob is None) == (settings.knob_value is None), "what was searched is given, and nothing else"
    if knob is not None:
        assert settings.knob_value is not None
        method.set_knob(knob, settings.knob_value)
    built = _knobs(settings, method)
    of_files = set(identity["knobs"]) - set(settings.method_knobs) if method.search_file() else set()
    for name in set(identity["knobs"]) - of_files:
        assert asked_value(settings.method, identity["knobs"], name) == asked_value(settings.method, built, name) or (
            method.search_file() and asked_value(settings.method, identity["knobs"], name) == settings.method_knobs[name]
        ), name


@pytest.mark.parametrize("sparsity", ["0.5", "null"])
@pytest.mark.parametrize("name", methods.names())
def test_an_arm_of_today_is_composed_again(name: str, sparsity: str) -> None:
    settings = merged(f"method={name}", f"sparsity={sparsity}", "length=1024")
    try:
        method = build_method(settings)
    except ValueError as error:
        assert sparsity == "null" and "needs sparsity" in str(error)
        return
    if (knob := method.calibrates()) is not None:
        method.set_knob(knob, max(knob.low, 1) if knob.whole else (knob.low * knob.high) ** 0.5 or 0.5)
    setting = {"model": "bundled", "length": 1024, "seed": 0, "dtype": "float32", "device_type": "cpu", "dense_kernel": "sdpa"}
    block = None if method.family == "none" else method.block_size
    arm = {
        "method": name,
        "sparsity": method.sparsity,
        "knobs": _knobs(settings, method),
        "block_size": block,
        "kernel": "sdpa",
    }
    again = merged(*arm_settings(setting | arm))
    rebuilt = build_method(again)
    if knob is not None:
        assert again.knob_value is not None
        rebuilt.set_knob(knob, again.knob_value)
    assert _knobs(again, rebuilt) == arm["knobs"] and rebuilt.sparsity == method.sparsity


@pytest.mark.parametrize("name", methods.names())
def test_the_facts_of_a_method_name_what_it_searches(name: str) -> None:
    rules = {"selection": "threshold", "dense_first": True}  # of methods that search under them alone
    knobs = {knob: value for knob, value in rules.items() if knob in methods.registry.knobs(name)}
    method = methods.build(name, sparsity=None if methods.get(name).family == "none" else 0.5, **knobs)
    knob, facts = method.calibrates(), method_facts(name)
    assert (knob.name in facts.searched) if knob else not facts.searched
    if knob is not None:
        method.set_knob(knob, 0.25)
        identity = {"method": name, "sparsity": 0.5, "knobs": method.knobs()}
        assert searched_value(identity) == 0.25
        assert searched_value(identity | {"sparsity": 0.0}) is None


@pytest.mark.parametrize("name", methods.names())
def test_what_a_sparsity_takes_the_place_of_goes_with_none(name: str) -> None:
    for knob in method_facts(name).instead:
        rules: list[dict[str, Any]] = [{}, {"selection": knob}, {"selection": "nz_ratio"}, {"rule": knob}]
        said = []
        for rule, value in itertools.product(rules, (0.5, 1)):
            with pytest.raises(ValueError) as caught:
                methods.build(name, sparsity=0.5, **{knob: value, **rule})
            said.append(str(caught.value))
        assert any("give one of them" in message for message in said), (knob, said)


def test_what_a_formula_gave_is_given_where_a_search_would_now() -> None:
    """Without a sparsity the same blocks are kept: rows of selection=nz_ratio are older than the search of its number."""
    knobs = {"selection": "nz_ratio", "nz_ratio": 0.1, "threshold": None, "pool": "max"}
    setting = {"model": "bundled", "length": 1024, "seed": 0, "dtype": "float32", "device_type": "cpu", "dense_kernel": "sdpa"}
    older = setting | {"method": "oracle", "sparsity": 0.9, "knobs": knobs, "block_size": 64, "kernel": "sdpa"}
    settings = merged(*arm_settings(older))
    assert (settings.sparsity, settings.method_knobs["nz_ratio"], settings.knob_value) == (None, 0.1, None)
    assert own_knobs(older) == {"nz_ratio": 0.1} and not own_knobs(older | {"knobs": knobs | {"blocks": 7}})


@in_a_checkout
def test_decoding_is_composed_again() -> None:
    for name in ("quest", "oracle", "streaming", "random"):
        decoded = (record["identity"] for record in recorded("decode_accuracy", "cells") if "decode" in record["identity"])
        identity = next(identity for identity in decoded if identity["decode"]["method"] == name)
        settings = merged(*arm_settings(identity))
        assert settings.decode_kernel == identity["decode"]["kernel"]
        assert build_decode_method(settings).knobs() == identity["decode"]["knobs"]


@in_a_checkout
def test_samples_documents_and_prompts_are_asked_for_again() -> None:
    cell = next(r["identity"] for r in recorded("gate_truths", "cells") if r["identity"].get("files"))
    line = "task=[qa_1,vt] task.sizing=full samples=8 question=seen model.chat_template=true data.dir=DATA"
    assert sample_settings(cell, ["qa_1", "vt"], 8) == line.split(" ")
    settings = merged(*arm_settings(cell), *(s for s in sample_settings(cell, ["qa_1", "vt"], 8) if "sizing" not in s))
    assert settings.tasks == ("qa_1", "vt") and settings.model["path"] == settings.model["name"] == cell["model"]
    document = next(r["identity"] for r in recorded("perplexity", "cells"))
    settings = merged(*arm_settings(document), *document_settings(document, 13))
    assert (settings.job, settings.options["text"], settings.samples) == ("perplexity", "pydoc", 13)
    assert settings.options["min_tokens"] == document["data"]["least"]
    mass = recorded("methods", "mass")[0]["identity"]
    settings = merged("job=kept_mass", *arm_settings(mass), *prompt_settings(mass, 11))
    assert (list(settings.tasks), settings.samples) == (mass["tasks"], 11)


@in_a_checkout
def test_a_kernel_case_is_composed_again() -> None:
    cases = {record["identity"]["op"]: record["identity"] for record in recorded("decode_speed", "kernels")}
    for identity in cases.values():
        options = merged(*case_settings(identity)).options
        assert options["lengths"] == [identity["length"]] and options["shape"] == identity["shape"]


@pytest.mark.parametrize(
    "value", ["plain", "a b", "it's", "back\\", "a\\'b", "[x]", "a,b", "true", "NULL", "1e3", "{a: 1}", "ü=", ""]
)
def test_hydra_reads_a_text_back_as_it_was(value: str) -> None:
    override = OverridesParser.create().parse_override(f"model.name={text(value)}")
    assert override.value() == value and isinstance(override.value(), str)
    assert shlex.split(as_command_line([f"model.name={text(value)}"])) == [f"model.name={text(value)}"]


def test_numbers_keep_every_digit() -> None:
    assert text(0.1 + 0.2) == "0.30000000000000004" and text(3) == "3" and text([None, True]) == "[null,true]"
