"""Every method's file runs as a demo and draws what the method keeps."""

from __future__ import annotations

import re
import runpy
import sys
from itertools import pairwise

import pytest

import methods
from methods import decode
from methods.decode.parts.demo import demo as decode_demo
from methods.parts.demo import demo
from methods.parts.demo_layers import DRAWN

MODULES = [methods.get(name).__module__ for name in methods.names()] + [decode.get(name).__module__ for name in decode.names()]
SMALL = ["--tokens", "197", "--block-size", "16"]  # 13 blocks, the last one short
DENSITY = {"methods.dense": 1.0, "methods.decode.dense": 1.0, "methods.decode.quest": 36 / 91}
"""Of demos that can't leave three quarters out: Quest keeps three blocks at least, 36 of the 91 that are causal."""


def run(module: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """As `python -m MODULE OPTIONS` does, in this process."""
    monkeypatch.setattr(sys, "argv", [module, *SMALL, *options])
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def maps(text: str) -> list[list[str]]:
    """The lines of the picture of each head, attention and what is kept side by side, without their titles."""
    return [part.splitlines()[1:] for part in text.split("\n\n") if part.startswith("head ")]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
def test_a_demo_draws_a_map_and_says_the_density(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(module, monkeypatch, "--sparsity", "0.75")
    text = capsys.readouterr().out
    drawn = maps(text)
    assert len(drawn) == len(DRAWN)
    rows = 13
    for lines in drawn:
        assert len(lines) == rows
        for row, line in enumerate(lines):
            attention, keeps = line.split()
            assert len(attention) % (row + 1) == len(keeps) % (row + 1) == 0, "no more is drawn than is causal"
            assert set(attention + keeps) <= set("·░▒▓█")
            assert keeps[-1] != "·" or module == "methods.moba", "the diagonal is kept"
    density = float(re.search(r"^density (\d\.\d{3}): head 0 keeps .* of its attention\.$", text, re.M)[1])  # type: ignore[index]
    assert density == pytest.approx(DENSITY.get(module, 0.25), abs=0.04)  # of so few blocks
    keeps = "".join(line.split()[1] for lines in drawn for line in lines)
    assert ("·" in keeps or "░" in keeps) == (density < 1)


def test_a_smaller_sparsity_and_a_native_knob_keep_more(capsys: pytest.CaptureFixture[str]) -> None:
    densities = []
    for options in (["--sparsity", "0.9"], ["--sparsity", "0.6"], ["--window", "150"]):
        demo("streaming_llm", [*SMALL, *options])
        densities.append(float(re.findall(r"^density (\S+):", capsys.readouterr().out, re.M)[0]))
    assert all(fewer < more for fewer, more in pairwise(densities))
    demo("seer", [*SMALL, "--selection", "threshold", "--sparsity", "0.8"])
    assert "The knob threshold was bisected for the sparsity." in capsys.readouterr().out
    decode_demo("quest", [*SMALL, "--budget", "48", "--shared", "true"])
    assert "budget=48, dense_layers=2, shared=True" in capsys.readouterr().out


def test_the_picture_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for columns, cells in ((80, 13), (20, 7), (200, 26)):  # a character for each block, for two blocks; two for each block
        monkeypatch.setenv("COLUMNS", str(columns))
        demo("streaming_llm", SMALL)
        last = maps(capsys.readouterr().out)[0][-1]
        assert [len(part) for part in last.split()] == [cells, cells] or columns == 80


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("random", ["--last", "2"], "error: method random needs sparsity in"),
        ("seer", ["--sparsity", "1.5"], "error: sparsity=1.5: must be at least 0"),
        ("xattention", ["--threshold", "high"], "error: method xattention, threshold=high: must be a finite number or null"),
        ("seer", ["--tokens", "100"], "error: --tokens 100: must be from 8 blocks"),
        (
            "minference",
            ["--patterns", "mine.json"],
            "error: mine.json: a demo searches its own made-up heads and takes no file",
        ),
        ("seer", ["--topk", "3"], "error: unrecognized arguments: --topk 3"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    name: str, options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo(name, options)
    assert line in capsys.readouterr().err.splitlines()[-1]
