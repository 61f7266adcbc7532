"""The checklist of the paper's items: what of each is measured, in which studies, and by which command, as a CSV and as
Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from harness.core.errors import UserError
from harness.core.files import write_atomically
from harness.core.input_files import read_text
from harness.report.csv_file import read_csv, write_csv
from harness.report.figures.paper.drawing import Drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.items import ITEMS

FILE, PAGE = "checklist.csv", "README.md"
"""The files of the checklist beside the pictures."""
BEGIN, END = "<!-- job=paper writes what follows -->", "<!-- job=paper wrote what precedes -->"
"""The lines of a page between which the checklist stands."""
SEPARATOR = ";"
"""Between the studies of an entry."""


@dataclass(frozen=True)
class Entry:
    """One picture in the checklist. file: its name without an ending. studies: joined by SEPARATOR. command: what makes
    its rows, empty where none does yet; needs: what that waits for, or what has to be at hand."""

    item: str
    number: str
    shows: str
    file: str
    model: str
    device: str
    studies: str
    status: str
    command: str
    needs: str


def entry_of(item: Item, drawing: Drawing) -> Entry:
    """Return the entry of a picture."""
    return Entry(
        item.name,
        item.number,
        item.shows,
        item.name + drawing.suffix,
        drawing.model,
        drawing.device,
        SEPARATOR.join(drawing.studies),
        drawing.status,
        item.makes_rows,
        item.needs,
    )


def read_entries(folder: Path) -> list[Entry]:
    """Return the entries of a folder, none where it has no checklist, or one of another version."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return [Entry(**row) for row in read_csv(path)]
    except (TypeError, UnicodeDecodeError):
        return []


def write_entries(folder: Path, drawn: Mapping[str, Sequence[Entry]]) -> list[Path]:
    """Write the checklist with the entries of the items that were drawn, those of the others as they were, and the page
    beside it; return both paths. Raises UserError where they can't be written."""
    before: dict[str, list[Entry]] = {}
    for entry in read_entries(folder):
        before.setdefault(entry.item, []).append(entry)
    entries = [entry for name in ITEMS for entry in drawn.get(name, before.get(name, []))]
    path = write_csv(folder / FILE, [field.name for field in fields(Entry)], map(astuple, entries))
    text = page(entries, folder)
    return [path, write_atomically(folder / PAGE, lambda file: file.write(text.encode()))]


def page(entries: Sequence[Entry], folder: Path) -> str:
    """Return the page of a folder of pictures."""
    pictures = "\n\n".join(f"![{entry.number}, {entry.model or 'published values'}]({entry.file}.png)" for entry in entries)
    return (
        "# The paper, item by item\n\n"
        "The figures and tables of SeerAttention (arXiv 2410.13276), drawn from the records of these studies alone.\n"
        "Published values stand in grey beside what was measured.\n"
        "Each item is a PNG, a PDF, and a CSV with every value that is drawn, ours and published.\n\n"
        "```sh\npython -m harness job=paper             # all of them\npython -m harness job=paper item=fig6   # one\n```\n\n"
        f"{checklist(entries, folder, folder)}\n\n## Pictures\n\n{pictures}\n"
    )


def checklist(entries: Sequence[Entry], pictures: Path, below: Path) -> str:
    """Return the checklist as Markdown: a table, and the commands below it.

    pictures: the folder of the pictures, beside which the studies lie. below: the folder of the page.
    """
    lines = ["| item | shows | model | study | status |", "| --- | --- | --- | --- | --- |"]
    for entry in entries:
        names = [name for name in entry.studies.split(SEPARATOR) if name]
        studies = ", ".join(f"[{name}]({_study_link(pictures.parent / name, below)})" for name in names)
        picture = f"[{entry.number}]({_link(pictures / f'{entry.file}.png', below)})"
        lines.append(f"| {picture} | {entry.shows} | {entry.model or '–'} | {studies or '–'} | {entry.status} |")
    return "\n".join([*lines, "", *_commands(entries)])


def _study_link(study: Path, below: Path) -> str:
    """Return the link to what is said of a study, to its folder where nothing is."""
    readme = study / "README.md"
    return _link(readme if readme.exists() else study, below)


def _link(path: Path, below: Path) -> str:
    """Return a path as a page in the folder `below` links to it."""
    return Path(os.path.relpath(path, below)).as_posix()


def _commands(entries: Iterable[Entry]) -> list[str]:
    """Return the commands that make the rows, each once, and a sentence for items that wait for one."""
    by_command: dict[str, dict[str, None]] = {}
    waiting: dict[str, dict[str, None]] = {}
    for entry in entries:
        place = by_command.setdefault(entry.command, {}) if entry.command else waiting.setdefault(entry.needs, {})
        place[entry.number] = None
    lines = ["Rows come from these commands; FOLDER is a model's.", "", "```sh"]
    for command, numbers in by_command.items():
        lines += [f"# {', '.join(numbers)}", command.replace(" --tasks ", " \\\n    --tasks ")]
    lines.append("```")
    if waiting:
        lines += ["", "No command makes the rows of these yet:", ""]
        lines += [f"- {', '.join(numbers)}: {needs}." for needs, numbers in waiting.items()]
    return lines


def write_page(path: Path, entries: Sequence[Entry], pictures: Path) -> Path:
    """Replace what stands between BEGIN and END in a Markdown file by the checklist, and return its path. Raises UserError
    for a file that can't be read or written, or that has not each of the two lines once, in this order."""
    text = read_text(path)
    if not (text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)):
        raise UserError(
            f"page={path}: it needs a line {BEGIN} and after it a line {END}, each once: the checklist goes between"
        )
    block = f"{BEGIN}\n\n{checklist(entries, pictures, path.parent)}\n\n{END}"
    whole = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    return write_atomically(path, lambda file: file.write(whole.encode()))
