"""Files and folders that the user names: found, read and understood, or one line that says what is wrong with which of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, first_line


def input_file(setting: str, value: str, advice: str) -> Path:
    """Return the path of a file that a setting names. Raises UserError, ending in `advice`, where it is no file that can be
    read."""
    path = Path(value).expanduser()
    reason = "a folder, no file" if os.path.isdir(path) else None
    if not os.path.exists(path):
        reason = "a link to nothing" if os.path.islink(path) else "no such file"
    if reason is None and not os.path.isfile(path):
        reason = "no file to read"
    if reason is None and not os.access(path, os.R_OK):
        reason = "may not be read"
    if reason is not None:
        raise UserError(f"{setting}={value}: {reason}; {advice}")
    return path


def input_folder(setting: str, value: str, advice: str) -> Path:
    """Return the path of a folder that a setting names. Raises UserError, ending in `advice`, where it is no folder that can be
    read."""
    path = Path(value).expanduser()
    if not os.path.isdir(path):
        raise UserError(f"{setting}={value}: {'a file, no folder' if os.path.exists(path) else 'no such folder'}; {advice}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{setting}={value}: may not be read; {advice}")
    return path


def text_files(setting: str, value: str, advice: str) -> list[Path]:
    """Return the .txt files below a folder that a setting names, sorted. Raises UserError, ending in `advice`, where there is
    none, or one that can't be read."""
    folder = input_folder(setting, value, advice)
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise UserError(f"{setting}={value}: no .txt file there; {advice}")
    for path in paths:
        input_file(setting, str(path), "take it out, or mend it")
    return paths


def read_bytes(path: Path, advice: str = "") -> bytes:
    """Return the content of a file. Raises UserError, ending in `advice`, where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}{advice}") from error


def read_text(path: Path, advice: str = "") -> str:
    """Return the text of a file, UTF-8; what is none stands as U+FFFD in it. Raises UserError, ending in `advice`, where it
    can't be read."""
    return read_bytes(path, advice).decode("utf-8", errors="replace")


def parse_json(content: str | bytes, name: object, advice: str = "") -> Any:
    """Return what JSON holds. name: of the file, or of its line. Raises UserError, ending in `advice`, for what is no JSON, or
    is nested too deeply to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise UserError(f"{name}: JSON that is nested too deeply{advice}") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"{name}: no JSON ({first_line(error)}){advice}") from None


def read_json_object(path: Path, advice: str = "") -> dict[str, Any]:
    """Return the JSON object that a file holds. Raises UserError, ending in `advice`, where none can be read."""
    content = parse_json(read_bytes(path, advice), path, advice)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object{advice}")
    return content
