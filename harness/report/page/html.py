"""One HTML file of rows, claims, maps and versions, with the libraries that draw them: it asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.report.figures import looks
from harness.report.joined import JoinedRow
from harness.report.joined_columns import COLUMNS
from harness.report.page.rows import SHOWN, looks_of_rows, packed

SCRIPTS = ("data.js", "details.js", "front.js", "tasks.js", "board.js", "rest.js", "main.js")
"""The page's own scripts, in the order in which they run."""
INSTALL = "pip install 'sparse-attention-harness[page]', or .[page] in a checkout"
SIGNS = (looks.DENSE_SIGN, looks.BOUND_SIGN, looks.OFF_DENSITY_SIGN, looks.GATED_SIGN, looks.NATIVE_SIGN, looks.FRONT_SIGN)


def check_libraries() -> None:
    """Raise UserError where a library that the page holds is not installed."""
    for name in ("plotly", "itables", "markdown-it-py"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise UserError(f"job=page needs {name}, which is not installed: {INSTALL}") from None


def write_page(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a page of what `page_content` returns, in one step. Returns `path`. Raises UserError where it can't be written, or
    a library is missing."""
    text = page_html(content)
    return write_atomically(path, lambda file: file.write(text.encode(errors="replace")))


def page_content(
    rows: Sequence[JoinedRow],
    versions: Sequence[Mapping[str, Any]] = (),
    claims: Mapping[str, Any] | None = None,
    maps: Sequence[Mapping[str, Any]] = (),
    title: str = "",
) -> dict[str, Any]:
    """Return all that a page shows, as JSON has it. rows: of all studies, as `rows.page_rows` returns them; title: of one
    study, its name."""
    return {
        "title": title,
        "rows": packed(rows),
        "count": len(rows),
        "columns": {name: {"unit": COLUMNS[name].unit, "meaning": COLUMNS[name].meaning} for name in SHOWN},
        "looks": looks_of_rows(rows),
        "dashes": [looks.PLOTLY_DASHES[dash] for dash in looks.DASHES],
        "dense_dash": looks.PLOTLY_DASHES[looks.DENSE_DASH],
        "bound_dash": looks.PLOTLY_DASHES[looks.BOUND_DASH],
        "signs": SIGNS,
        "versions": list(versions),
        "claims": claims or {"claims": [], "stories": {}},
        "maps": list(maps),
        "libraries": {name: metadata.version(name) for name in ("plotly", "itables")},
    }


def page_html(content: Mapping[str, Any]) -> str:
    """Return the page. Whatever the content holds is data in it: no text of it can become markup or code."""
    check_libraries()
    plotly = inline_script(_file("plotly", "package_data", "plotly.min.js"))
    own = inline_script("\n".join(_asset(name) for name in SCRIPTS))
    tables = base64.b64encode(_file("itables", "html", "dt_bundle.js").encode()).decode()
    style = _file("itables", "html", "dt_bundle.css") + _asset("page.css")
    name = str(content["title"])
    parts = {
        "POLICY": _policy(plotly, own),
        "TITLE": html.escape(f"{name}: " if name else "") + "sparse attention, measured",
        "STYLE": re.sub("</(?=style)", r"<\\/", style, flags=re.IGNORECASE),
        "DATA": json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "TABLES": tables,
        "PLOTLY": plotly,
        "OWN": own,
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda place: parts[place[1]], _asset("page.html"))


def inline_script(text: str) -> str:
    """Return a script as it may stand in HTML, which would take these three for its own, within the script's texts too."""
    return re.sub(r"<(?=/script|script|!--)", r"\\x3c", text, flags=re.IGNORECASE)


def _policy(*scripts: str) -> str:
    """Return what the browser is told to allow: these scripts and nothing else, no network, no forms."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return resources.files("harness.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _file(package: str, *parts: str) -> str:
    """Return a file of a library. Raises UserError where another release has it no more."""
    try:
        return resources.files(package).joinpath(*parts).read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError) as error:
        raise UserError(f"job=page needs {'/'.join(parts)} of {package}, which is not there: {INSTALL}") from error
