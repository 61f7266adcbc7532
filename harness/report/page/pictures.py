"""The recorded maps of attention, made small enough for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from harness.core.errors import UserError

WIDTH = 1400
"""Pixels that a map is wide at most."""
QUALITY = 78
"""Of WebP, from 0 to 100."""
MOST = 5_000_000
"""Bytes of all maps of a page together; those beyond are named, and not shown."""


def read_maps(folders: Iterable[Path], most: int = MOST) -> list[dict[str, str]]:
    """Return the maps of studies: `study`, `name` and `image`, an address that holds the picture as WebP, or "" where `most`
    bytes are full. Raises UserError for a file that is no picture."""
    maps, size = [], 0
    for path in (path for folder in folders for path in sorted((folder / "maps").glob("*.png"))):
        content = _webp(path)
        size += len(content)
        image = f"data:image/webp;base64,{base64.b64encode(content).decode()}" if size <= most else ""
        maps.append({"study": path.parents[1].name, "name": path.stem, "image": image})
    return maps


def _webp(path: Path) -> bytes:
    """Return a picture as WebP, no wider than WIDTH."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error}): draw it again with job=maps") from error
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, max(1, round(picture.height * WIDTH / picture.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
