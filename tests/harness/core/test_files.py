"""Files are there whole or not at all, and others may read them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from harness.core.errors import UserError
from harness.core.files import writable_folder, write_atomically


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        path = write_atomically(tmp_path / "new" / "file", lambda file: file.write(b"abc"))
    finally:
        os.umask(before)
    assert path.read_bytes() == b"abc" and path.stat().st_mode & 0o777 == mode


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"file/below can't be written to \(.*\): name another folder"):
        writable_folder(tmp_path / "file" / "below")
    with pytest.raises(UserError, match=r"file/below can't be written \(.*\): make room, or name another folder") as caught:
        write_atomically(tmp_path / "file" / "below", lambda file: file.write(b"abc"))
    assert "\n" not in str(caught.value)
