"""Every method looks the same in every picture, and no two alike, whatever colours a reader can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from harness.core import conf_files
from harness.core.conf_files import about_of, groups
from harness.core.errors import UserError
from harness.report.figures import looks
from harness.report.figures.looks import (
    DASHES,
    FREE,
    MARKERS,
    SERIES,
    LineLook,
    Look,
    contrast,
    line_look,
    looks_of,
    method_look,
)

VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
"""What is seen of linear RGB (Machado, Oliveira & Fernandes 2009, severity 1)."""
TO_LMS = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
"""From linear RGB to OKLab (Ottosson 2020)."""
APART, SAME_MARKER, MUTED = 10.0, 15.0, 6.0
"""Hundredths of OKLab: what any two methods are apart for the usual vision, two of one marker for each kind, and a method from
what is none. About 2 can just be seen."""


def stated() -> dict[tuple[str, str], Look]:
    """Return the looks that the files of methods state; one of somebody's own may leave it out."""
    names = [(group, name) for group in ("method", "decode") for name in groups()[group]]
    return {(group, name): Look(**about_of(group, name)["look"]) for group, name in names if "look" in about_of(group, name)}


def distance(one: str, other: str, vision: str) -> float:
    """Return how far two colours are apart for a kind of vision."""
    channels = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in (one, other)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(np.clip(linear @ VISION[vision].T, 0, 1) @ TO_LMS.T) @ TO_LAB.T
    return float(100 * np.linalg.norm(lab[0] - lab[1]))


def test_every_method_states_its_look_and_one_of_both_phases_the_same() -> None:
    assert len({name for _, name in stated()}) >= 20
    for (_, name), look in stated().items():
        assert method_look(name) == look
        assert look.marker in MARKERS
        assert contrast(look.colour, looks.PAPER) > 3, "a thin line must be seen on white"


def test_methods_are_told_apart_with_any_vision() -> None:
    by_name = {name: look for (_, name), look in stated().items()}
    for (one, a), (other, b) in combinations(by_name.items(), 2):
        assert distance(a.colour, b.colour, "usual") >= APART, (one, other)
        if a.marker == b.marker:
            assert min(distance(a.colour, b.colour, vision) for vision in VISION) >= SAME_MARKER, (one, other)
    assert not {look.marker for look in by_name.values()} & {look.marker for look in FREE}


def test_what_is_no_method_looks_like_none() -> None:
    for muted in SERIES:
        assert all(distance(muted.colour, look.colour, "usual") >= MUTED for look in stated().values()), muted


def test_a_look_does_not_depend_on_what_else_is_in_the_picture() -> None:
    names = groups()["method"]
    assert looks_of(names) == {name: looks_of([name])[name] for name in names}
    assert looks_of(["strange", *names])["strange"] == method_look("strange")


def test_names_that_no_file_knows_never_look_alike() -> None:
    names = [f"strange_{i}" for i in range(len(FREE))]
    assert len(set(looks_of(names).values())) == len(FREE)
    assert looks_of([*names, "one_more"])["one_more"] in FREE


def test_lines_of_a_method_share_its_colour_and_marker() -> None:
    first, *others = (line_look(method_look("seer"), number) for number in range(len(DASHES)))
    assert first == LineLook(*method_look("seer"), "-")
    assert {(line.colour, line.marker) for line in others} == {method_look("seer")}
    assert len({line.dash for line in (first, *others)}) == len({line.fill for line in (first, *others)}) == len(DASHES)
    assert line_look(method_look("oracle"), bound=True).dash == looks.BOUND_DASH


def test_words_in_a_methods_colour_are_readable_on_both_backgrounds() -> None:
    for look in stated().values():
        for background in (looks.PAPER, looks.NIGHT):
            assert contrast(looks.text_colour(look.colour, background), background) >= 4.5
            assert contrast(looks.line_colour(look.colour, background), background) >= 3


@pytest.fixture
def of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A conf/ with one method whose file the test writes."""
    (tmp_path / "method").mkdir()
    monkeypatch.setattr(looks, "groups", lambda: {"method": ["sieve"]})
    monkeypatch.setattr(conf_files, "conf_dir", lambda: tmp_path)
    looks._stated.cache_clear()
    about_of.cache_clear()
    yield tmp_path / "method" / "sieve.yaml"
    looks._stated.cache_clear()
    about_of.cache_clear()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("{look: blue}", "about.look=blue: it holds colour and marker"),
        ("{look: {colour: blue, marker: o}}", 'about.look.colour=blue: write it as "#0072B2"'),
        ('{look: {colour: "#0072B2", marker: +}}', r"about.look.marker=\+: one of o s D"),
        ('{look: {colour: "#0072B2"}}', ".*it holds colour and marker"),
        ("blue", "about=blue: it holds facts by their names"),
    ],
)
def test_a_look_that_is_none_is_refused(of_a_user: Path, about: str, said: str) -> None:
    of_a_user.write_text(f"name: sieve\nabout: {about}\n")
    with pytest.raises(UserError, match=rf"sieve\.yaml: {said}"):
        method_look("sieve")


def test_a_users_method_without_a_look_gets_a_free_one(of_a_user: Path) -> None:
    of_a_user.write_text("name: sieve\n")
    assert method_look("sieve") in FREE
