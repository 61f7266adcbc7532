"""Hold the README to what it promises: a command near the top, short findings, and numbers that stand in leaderboards."""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from typing import NamedTuple

import pytest

from tests.documents import README, ROOT, TOP, without_markup, words

FINDING = 15
"""Words of a finding of the README."""
FIRST_COMMAND = 25
"""Line of the README that its first command may stand in at the latest."""
MATCHED = 0.02
"""How far a row's measured density may lie from the request, relative to it, where the README quotes the row."""


def test_the_first_command_stands_near_the_top() -> None:
    lines = README.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("```sh"))
    assert first + 1 <= FIRST_COMMAND


def section(title: str) -> str:
    """Return the text of a section of the README."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README.read_text(), re.DOTALL | re.MULTILINE)
    return text


def findings() -> list[str]:
    items = re.findall(r"^- (.*(?:\n  .*)*)", section("Which method?"), re.MULTILINE)
    return [without_markup(" ".join(item.split())) for item in items]


def test_findings_are_short() -> None:
    assert len(findings()) == 3
    assert [finding for finding in findings() if len(words(finding)) > FINDING] == []


class Quoted(NamedTuple):
    """A row that a finding of the README quotes: the study, what selects the row, and what the knob holds."""

    study: str
    method: str
    length: int
    sparsity: float
    knob: str = ""


QWEN = "pareto_Qwen2.5-Coder-0.5B-Instruct-Q4_K_M-unverified"
QUOTED = [
    [Quoted(QWEN, "flash_prefill", 8192, 0.8)],
    [Quoted("last_rows", "seer", 32768, 0.9, "last=2")],
    [Quoted("bundled", method, 32768, 0.9) for method in ("seer", "block_topk", "random")],
]
"""The rows behind each finding, in the README's order."""


@lru_cache
def leaderboard(study: str) -> list[dict[str, str]]:
    with (ROOT / "results" / study / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def quoted_row(quoted: Quoted) -> dict[str, str]:
    """Return the one average row that is meant."""
    (row,) = [
        row
        for row in leaderboard(quoted.study)
        if row["task"] == "avg"
        and row["method"] == quoted.method
        and row["length"] == str(quoted.length)
        and row["sparsity"] == str(quoted.sparsity)
        and quoted.knob in row["knob"]
    ]
    return row


def percent(fraction: str) -> str:
    return f"{100 * float(fraction):.0f}"


@pytest.mark.parametrize("number", range(3))
def test_findings_are_rows_at_their_density(number: int) -> None:
    """Each number of a finding stands in its row, and the row's density is within 2 % of the request."""
    finding = findings()[number]
    times = re.findall(r"prefill (\S+)× as fast", finding)
    for quoted in QUOTED[number]:
        row = quoted_row(quoted)
        request = 1 - quoted.sparsity
        assert row["status"] == "ok"
        assert abs(float(row["density"]) - request) <= MATCHED * request
        assert f"density {float(row['density']):.3f}," in finding
        assert f"{quoted.length // 1024}k" in finding
        assert f" {percent(row['accuracy'])}," in finding and f"dense {percent(row['dense_accuracy'])}" in finding
        if "prefill" in finding:
            faster = float(row["dense_ttft_ms"]) / float(row["ttft_ms"])
            assert times == [f"{faster:.1f}"] if times else "prefill no faster" in finding and faster <= 1.01


def averages() -> list[dict[str, str]]:
    """Return the average rows of all studies that compare a method with dense attention."""
    names = sorted(path.parent.name for path in (ROOT / "results").glob("*/leaderboard.csv"))
    return [row for name in names for row in leaderboard(name) if row["task"] == "avg" and row.get("difference_low")]


def test_tables_of_findings_are_rows_of_leaderboards() -> None:
    """Density, accuracy, difference and interval of a line stand in one row, and "matched" is true of it."""
    rows = {}
    for row in averages():
        difference, low, high = (f"{100 * float(row[f'difference{end}']):+.1f}" for end in ("", "_low", "_high"))
        numbers = (f"{float(row['density']):.3f}", percent(row["accuracy"]), percent(row["dense_accuracy"]), difference)
        off = abs(float(row["density"]) / (1 - float(row["sparsity"])) - 1) if row["sparsity"] else 1.0
        rows[*numbers, f"{low} to {high}"] = "yes" if off <= MATCHED else "no"
    lines = re.findall(
        r"\| (0\.\d{3}) \| (yes|no) \| (\d+) \| (\d+) \| (\S+) \| (\S+ to \S+) \|",
        (ROOT / "docs" / "findings.md").read_text().replace("−", "-"),
    )
    assert len(lines) >= 50
    assert [line for line in lines if rows.get((line[0], *line[2:])) != line[1]] == []


def test_at_8k_no_row_saves_more_of_the_prefill_than_the_readme_says() -> None:
    (bound,) = re.findall(r"saves more than (\d+) % of the prefill", " ".join(section("Which method?").split()))
    savings = [
        1 - float(row["ttft_ms"]) / float(row["dense_ttft_ms"])
        for path in (ROOT / "results").glob("*/leaderboard.csv")
        for row in leaderboard(path.parent.name)
        if row.get("length") == "8192" and "0.5B" in row["model"] and row.get("ttft_ms") and row.get("dense_ttft_ms")
    ]
    assert 0 < max(savings) <= float(bound) / 100


def test_the_map_of_the_tree_names_every_room() -> None:
    named = set(re.findall(r"^\s*([\w/]+)/  ", section("Find your way"), re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "harness").glob("*/__init__.py")} | {"bundled"}
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name in TOP and path.name != ".ci"}
    assert named == rooms | (tops - {"kernels"}) | {"kernels/attention_kernels"}


def test_every_document_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.]+)\)", README.read_text()))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
