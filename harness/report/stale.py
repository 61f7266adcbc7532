"""Pictures that an earlier report left of rows that are gone: which files are the report's own, and removing those alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

KEYWORD = "Description"
"""The text chunk of a PNG file that says who drew it."""
DRAWN = "sparse-attention-harness: "
"""How it begins in files of this project."""
ROWS = f"{DRAWN}rows of a report"
GATE_CURVE = f"{DRAWN}gate curve of a report"
KEPT_MASS = f"{DRAWN}kept mass"
KERNELS = f"{DRAWN}kernels of a report"
COMPARED = f"{DRAWN}comparison"
"""Marks of pictures, by who draws and removes them together."""
NAMES = {
    ROWS: re.compile(
        r"((ttft(_native)?|decode_speed|pareto|accuracy|lengths|by_task|perplexity)(_\d+)?|blocks_\d+_0\.\d+(_\d+)?|tasks)"
        r"(_\d+-(prompt|document)s?(-\d+)?)?\.png"
    ),
    GATE_CURVE: re.compile(r"gate_curve(_\d+)?\.png"),
    KEPT_MASS: re.compile(r"kept_mass(_native)?(_\d+)?(_\d+-prompts?(-\d+)?)?\.png"),
    KERNELS: re.compile(r"(time_by_length|share_of_ideal|decode|both_passes)(_\d+)?\.png"),
}
"""By mark, the names of pictures in studies of one model and device: how those from before there were marks are known."""
BEGINNINGS = {
    ROWS: ("ttft", "decode_speed", "pareto", "accuracy", "lengths", "by_task", "perplexity", "blocks", "tasks"),
    GATE_CURVE: ("gate_curve",),
    KEPT_MASS: ("kept_mass",),
    KERNELS: ("time_by_length", "share_of_ideal", "decode", "both_passes"),
    COMPARED: ("compare",),
}
"""By mark, how the names of its pictures begin, before `_` or the end: a copy that someone named otherwise is theirs."""
HEAD = 4096
"""Bytes at the beginning of a file in which its mark stands, before the picture itself."""
BEFORE_MARKS = b"Software\0Matplotlib version"
"""What is in pictures that were drawn before there were marks."""


def remove_stale(folder: Path, mark: str, paths: Collection[Path], names: re.Pattern[str] | None = None) -> None:
    """Remove the pictures that an earlier call left in a folder, all but `paths`: those with its mark whose names begin as its
    do, and of those from before there were marks, or that were never written, the ones with its names (NAMES, or `names`). Any
    other file is someone else's and stays."""
    own_names = names or NAMES[mark]
    for path in sorted(folder.glob("*.png")):
        if path not in paths and path.is_file() and _is_own(path, mark, own_names):
            path.unlink()


def remove_named(folder: Path, names: Iterable[str]) -> None:
    """Remove files that only a report writes, where they are."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _is_own(path: Path, mark: str, names: re.Pattern[str]) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if DRAWN.encode() in head:
        beginnings = next(texts for kind, texts in BEGINNINGS.items() if mark.startswith(kind))
        return _mark_in(head) == mark and bool(re.fullmatch(rf"({'|'.join(beginnings)})(_.+)?\.png", path.name))
    return bool(names.fullmatch(path.name)) and (not head or BEFORE_MARKS in head)


def _mark_in(head: bytes) -> str:
    """Return the mark at the beginning of a PNG file: the whole text of its chunk, as one mark may begin with another."""
    before, chunk, text = head.partition(f"tEXt{KEYWORD}\0".encode())
    length = int.from_bytes(before[-4:]) - len(KEYWORD) - 1
    return text[:length].decode("latin-1") if chunk else ""
