"""The claims and verdicts of results/CLAIMS.md, read from its tables, and the story below each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import UserError

if TYPE_CHECKING:
    from markdown_it.token import Token

NAME = "CLAIMS.md"
"""The file in the folder of the studies."""
COLUMNS = ("no.", "claim", "published", "here", "verdict")
"""The columns of a table of claims."""
STORY = re.compile(r"(\d+)\. (.+)")
"""The heading of a story: the number of its claims, and a title."""


def read_claims(path: Path, beside: str = "") -> dict[str, Any]:
    """Return `claims`, one a row of a table, with the heading above it, and `stories` (HTML, by number), both empty where there
    is no file. HTML in the file is shown as text. beside: the way from the page to the file's folder, before relative links.
    Raises UserError for a file that can't be read."""
    from markdown_it import MarkdownIt

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {"claims": [], "stories": {}}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({getattr(error, 'strerror', None) or error}): claims come from it") from error
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    claims: list[dict[str, str]] = []
    stories: dict[str, dict[str, str]] = {}
    for level, title, body in _parts(markdown.parse(text)):
        claims += [{"part": title, **dict(zip(COLUMNS, cells, strict=True))} for cells in _claims(body)]
        if level == "h3" and (heading := STORY.fullmatch(title)):
            _set_links(body, beside)
            html = markdown.renderer.render(body, markdown.options, {})
            stories[heading[1]] = {"title": heading[2], "html": html}
    return {"claims": claims, "stories": stories}


def _parts(tokens: Sequence[Token]) -> list[tuple[str, str, list[Token]]]:
    """Return the parts of a document: the level and the text of a heading, and what is below it up to the next one."""
    parts: list[tuple[str, str, list[Token]]] = []
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            parts.append((token.tag, _text(tokens[place + 1]), []))
        elif parts and token.type != "heading_close" and tokens[place - 1].type != "heading_open":
            parts[-1][2].append(token)
    return parts


def _claims(tokens: Sequence[Token]) -> list[list[str]]:
    """Return the cells of the rows of those tables that hold claims."""
    rows: list[list[str]] = []
    table: list[list[str]] = []
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            table = []
        elif token.type == "tr_open":
            table.append([])
        elif token.type in ("th_open", "td_open"):
            table[-1].append(_text(tokens[place + 1]))
        elif token.type == "table_close" and tuple(table[0]) == COLUMNS:
            rows += table[1:]
    return rows


def _text(token: Token) -> str:
    """Return the text of a line, without marks and links."""
    return "".join(child.content for child in token.children or ())


def _set_links(tokens: Sequence[Token], beside: str) -> None:
    """Have links lead on from the page: those to a story to the page's own, relative ones to the files beside the claims."""
    for child in (child for token in tokens for child in token.children or () if child.type == "link_open"):
        target = str(child.attrs.get("href", ""))
        if story := re.match(r"#(\d+)-", target):
            child.attrs["href"] = f"#claim-{story[1]}"
        elif beside and not re.match(r"[a-z][a-z0-9+.-]*:|[#/]", target):
            child.attrs["href"] = f"{beside}/{target}"
