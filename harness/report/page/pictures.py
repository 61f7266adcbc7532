"""The recorded maps of attention: pictures, made small enough for the page, and maps of single heads as numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from harness.core.errors import UserError
from harness.measure.head_patterns import read_patterns

WIDTH = 1400
"""Pixels that a map is wide at most."""
QUALITY = 78
"""Of WebP, from 0 to 100."""
MOST = 5_000_000
"""Bytes of all maps of a page together; those beyond are named, and not shown."""


def read_maps(folders: Iterable[Path], problems: list[str], most: int = MOST) -> list[dict[str, Any]]:
    """Return the maps of studies, each with `study` and `name`. A picture has `image`, an address that holds it as WebP, or ""
    where `most` bytes are full; the map of a head has `rows`, the shares of each query block up to the diagonal, and `note`.
    A file that is no picture, or no map, is left out, and a line on it is added to `problems`."""
    folders = list(folders)
    maps: list[dict[str, Any]] = []
    for path in (path for folder in folders for path in sorted((folder / "maps").glob("patterns_*.json"))):
        try:
            maps += _heads(path)
        except UserError as error:
            problems.append(str(error))
    size = 0
    for path in (path for folder in folders for path in sorted((folder / "maps").glob("*.png"))):
        try:
            content = _webp(path)
        except UserError as error:
            problems.append(str(error))
            continue
        size += len(content)
        image = f"data:image/webp;base64,{base64.b64encode(content).decode()}" if size <= most else ""
        maps.append({"study": path.parents[1].name, "name": path.stem, "image": image})
    return maps


def _heads(path: Path) -> list[dict[str, Any]]:
    """Return the maps of the heads of a file of `job=maps`."""
    record = read_patterns(path)
    made_of = f"{record.model}, {record.length:,} tokens of {record.task}, blocks of {record.block}. {record.command}"
    return [
        {
            "study": path.parents[1].name,
            "name": f"{pattern.kind}, layer {pattern.layer}, head {pattern.head}",
            "image": "",
            "rows": [list(row) for row in pattern.rows],
            "note": f"What the gates of {record.method} expect; {pattern.score:.2f} of it is on the pattern. {made_of}",
        }
        for pattern in record.patterns
    ]


def _webp(path: Path) -> bytes:
    """Return a picture as WebP, no wider than WIDTH. Raises UserError for a file that is none, or is too high for one."""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if picture.width > WIDTH:
            picture = picture.resize((WIDTH, max(1, round(picture.height * WIDTH / picture.width))), Image.Resampling.LANCZOS)
        picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error}): draw it again with job=maps") from error
    return buffer.getvalue()
