"""Which rows form a line, and what it is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.report.lines import rows_by_line
from harness.study.full_rows import FullRows
from tests.harness.report.support import decoded, row


def test_variants_are_lines_of_their_own_named_by_what_differs() -> None:
    two = [row("a", s, 4096, 0.8, knobs={"pool": p, "width": 3}) for s in (0.5, 0.9) for p in ("max", "mass")]
    assert {n: len(r) for n, r in rows_by_line(two).items()} == {"a (pool max)": 2, "a (pool mass)": 2}
    assert set(rows_by_line([r for r in two if r.knobs["pool"] == "max"])) == {"a"}, "nothing differs: no bracket"


def test_a_threshold_found_for_each_sparsity_is_one_line() -> None:
    topk = [row("a", s, 4096, 0.8, knobs={"selection": "topk", "threshold": None}) for s in (0.5, 0.9)]
    thresholds = [row("a", s, 4096, 0.8, knobs={"selection": "threshold", "threshold": s / 100}) for s in (0.5, 0.9)]
    lines = rows_by_line(topk + thresholds)
    assert {n: len(r) for n, r in lines.items()} == {"a (selection topk)": 2, "a (selection threshold)": 2}
    native = [replace(row("a", 0.0, 4096, 0.8, knobs={"threshold": t}), sparsity=None) for t in (0.1, 0.2)]
    assert {n: len(r) for n, r in rows_by_line(native).items()} == {"a": 2}
    fixed = [row("a", s, 4096, 0.8, knobs={"width": w}) for s in (0.5, 0.9) for w in (1, 2)]
    assert set(rows_by_line(fixed)) == {"a (width 1)", "a (width 2)"}


def test_a_knob_of_few_values_tells_lines_apart_before_a_threshold_does() -> None:
    both = [
        row("a", s, 4096, 0.8, knobs={"threshold": s / 100 + extra} | ({"last": 2} if extra else {}))
        for s in (0.5, 0.9)
        for extra in (0.0, 0.001)
    ]
    assert {n: len(r) for n, r in rows_by_line(both).items()} == {"a": 2, "a (last 2)": 2}
    assert set(rows_by_line(both[:2])) == {"a", "a (last 2)"}, "of as many values a whole number tells them apart"


def test_a_knob_that_came_later_names_a_line_even_where_all_rows_have_it() -> None:
    """In another study the bare name stands for rows without it."""
    later = [row("random", s, 4096, 0.8, knobs={"seed": 0, "last": 2}) for s in (0.8, 0.9)]
    assert set(rows_by_line(later)) == {"random (last 2)"}
    assert set(rows_by_line([row("random", 0.8, 4096, 0.8, knobs={"seed": 0, "last": 0})])) == {"random"}
    thresholds = [row("oracle", s, 4096, 0.8, knobs={"selection": "threshold", "threshold": s / 100}) for s in (0.8, 0.9)]
    assert {n: len(r) for n, r in rows_by_line(thresholds).items()} == {"oracle (threshold)": 2}


def test_rows_from_before_a_knob_are_of_the_line_without_a_name() -> None:
    rows = [row("a", 0.5, 4096, 0.8, knobs={"pool": "max"} | rule) for rule in ({}, {"rule": "even"}, {"rule": "best"})]
    assert set(rows_by_line(rows)) == {"a", "a (rule even)", "a (rule best)"}


def test_lengths_along_the_axis_do_not_split_a_line() -> None:
    rows = [row("a", 0.9, n, 0.8, knobs={"threshold": n / 1e7}) for n in (4096, 8192)]
    assert {n: len(r) for n, r in rows_by_line(rows, along="length").items()} == {"a": 2}


def test_kernels_of_one_method_are_lines_of_their_own() -> None:
    rows = [row("a", 0.5, 4096, 0.8, kernels=(kernel,)) for kernel in ("sdpa", "triton")]
    assert set(rows_by_line(rows)) == {"a (kernel sdpa)", "a (kernel triton)"}


def test_a_row_without_a_kernel_is_no_line_of_its_own() -> None:
    """Of a mass alone, or of a cell that failed."""
    rows = [row("a", sparsity, 4096, 0.8, kernels=kernels) for sparsity, kernels in ((0.5, ("sdpa",)), (0.8, ()), (0.9, ()))]
    assert set(rows_by_line(rows)) == {"a"}


def test_the_kernel_of_dense_layers_is_no_line_of_its_own() -> None:
    more: dict[str, Any] = {"dense_layer_kernel": "fa3"}
    rows = [row("a", s, 4096, 0.8, kernels=kernels, **more) for s, kernels in ((0.5, ("fa3", "triton")), (0.9, ("triton",)))]
    assert set(rows_by_line(rows)) == {"a"}
    rows.append(row("a", 0.8, 4096, 0.8, kernels=("fa3",), **more))
    assert set(rows_by_line(rows)) == {"a (kernel triton)", "a (kernel fa3)"}, "where it alone ran it is the row's"


def test_decoding_tells_lines_apart_and_budgets_are_one_line() -> None:
    rows = [decoded("net", budget, 0.9) for budget in (256, 1024)] + [row("full", 0.0, 4096, 0.95)]
    assert {name: len(part) for name, part in rows_by_line(rows, along="decode_density").items()} == {
        "full (net)": 2,
        "full (full)": 1,
    }
    assert set(rows_by_line(rows)) == {"full (net, budget 256)", "full (net, budget 1024)", "full (full)"}
    deep = [
        decoded("net", budget, 0.9, density=budget / 4096 + 0.3 * (wide == 2), wide=wide)
        for budget in (256, 1024)
        for wide in (0, 2)
    ]
    assert {name: len(part) for name, part in rows_by_line(deep, along="decode_density").items()} == {
        "full (wide 0)": 2,
        "full (wide 2)": 2,
    }, "a number that is not what is spent"
    thresholds = [decoded("net", 256, 0.9, density=value, threshold=value) for value in (0.01, 0.02)]
    assert set(rows_by_line(thresholds, along="decode_density")) == {"full"}, "a threshold moves along the density"
    other = decoded("net", 256, 0.9, shared=True)
    assert "full (net, shared True)" in rows_by_line([*rows, other], along="decode_density")


def test_lines_may_be_called_by_what_was_asked_for() -> None:
    """So that a method has one name at all lengths and of all models."""
    cut = replace(row("seer", 0.9, 4096, 0.8, knobs={"last": 2}), full_rows=FullRows(1, 1, cut=True))
    assert set(rows_by_line([cut])) == {"seer (last 1)"} and set(rows_by_line([cut], asked=True)) == {"seer"}
