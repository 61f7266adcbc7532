"""A wrong setting is one line that says what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from harness.core import checks
from harness.core.errors import UserError, did_you_mean


@pytest.mark.parametrize(
    ("check", "value", "result"),
    [
        (checks.whole_number, -3, -3),
        (lambda n, v: checks.whole_number(n, v, 1, 4), 4, 4),
        (lambda n, v: checks.whole_number_or_null(n, v, 1), None, None),
        (lambda n, v: checks.whole_number_or_null(n, v, 1), 1, 1),
        (checks.number, 3, 3.0),
        (checks.seconds, 0.5, 0.5),
        (checks.true_or_false, False, False),
        (checks.share, 0.02, 0.02),
        (checks.sparsity, None, None),
        (checks.sparsity, 0, 0.0),
        (checks.text, "results", "results"),
        (checks.text, 3, "3"),
        (checks.text_or_null, None, None),
    ],
)
def test_what_is_right_comes_back(check: Callable[[str, Any], Any], value: Any, result: Any) -> None:
    checked = check("x", value)
    assert checked == result and type(checked) is type(result)


@pytest.mark.parametrize(
    ("check", "values", "says"),
    [
        (checks.whole_number, (True, 1.0, "one", None), "must be a whole number"),
        (lambda n, v: checks.whole_number(n, v, 1), (0, -1), "must be a whole number of at least 1"),
        (lambda n, v: checks.whole_number(n, v, 1, 4), (0, 5), "must be a whole number of at least 1 and at most 4"),
        (lambda n, v: checks.whole_number_or_null(n, v, 1), (0, "a"), "must be null or a whole number of at least 1"),
        (
            lambda n, v: checks.whole_number_or_null(n, v, 1, 4),
            (5,),
            "must be null or a whole number of at least 1 and at most 4",
        ),
        (checks.number, (True, "one", None, float("nan"), float("inf")), "must be a finite number"),
        (checks.seconds, (0, -1, 1e6, True, "s"), "must be a number of seconds above 0"),
        (checks.true_or_false, (0, "yes", None), "must be true or false"),
        (checks.share, (0, 1, True, "x"), "must be a share of the accuracy, above 0 and below 1, for example 0.02"),
        (checks.sparsity, (1, -0.1, True, "x"), "must be at least 0 (keep every block) and below 1, for example 0.9"),
        (checks.text, ("", [], {}, True), "must be a name or a path"),
    ],
)
def test_what_is_wrong_is_one_line(check: Callable[[str, Any], Any], values: tuple[Any, ...], says: str) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"^x={re.escape(str(value))}: {re.escape(says)}$"):
            check("x", value)


def test_a_text_that_reads_as_what_would_be_right_is_quoted() -> None:
    quoted: list[tuple[Callable[[str, Any], Any], str]] = [
        (checks.whole_number, "1"),
        (checks.number, "-1e3"),
        (checks.sparsity, "0.5"),
        (checks.true_or_false, "true"),
    ]
    for check, value in quoted:
        with pytest.raises(UserError, match=f"^x='{value}': must be "):
            check("x", value)


def test_the_closest_choice_is_named_where_one_is_close() -> None:
    assert did_you_mean("seerr", ["random", "seer"]) == " (did you mean seer?)"
    assert did_you_mean("nothing", ["random", "seer"]) == ""
