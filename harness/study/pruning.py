"""Taking records out of a study, and bringing them back byte for byte, whenever the process dies.

What is taken out stays in `records/pruned/N/`: the files as they were (`original/`), and which of their lines went. The steps:

1. The folder is made whole beside its name, with the files as they are to be (`next/`), and becomes `N.unfinished`.
2. Each file of records is replaced by its next one.
3. The folder becomes `N`.

Bringing back goes the other way: `restored/` appears in it whole, each file is replaced by its own there, and the folder
becomes `N.back`, which goes once the report is made.
Between the first and the last step a study is neither the one nor the other: `unfinished` says so, and every command stops
there (`harness.study.integrity`). The same command again, or bringing back, ends it. The files are locked all the while: no
other process adds to them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from harness.core.errors import UserError
from harness.core.files import partial_folder, write_atomically
from harness.study.parts import alone, parts_in
from harness.study.pruned_lines import Files, files_restored, files_without, records_of, text_of
from harness.study.record_io import RecordError, opened_locked
from harness.study.store import Record, Store, StudyFile

PRUNED = "pruned"
"""The folder of what was taken out, below that of the records."""
UNFINISHED, BACK = ".unfinished", ".back"
"""The ends of the names of one that is not done, and of one that was brought back."""
ORIGINAL, NEXT, RESTORED, DERIVED = "original", "next", "restored", "derived"
"""Folders in it: files as they were, as they are to be, as they are brought back; tables and pictures that can't be made
without what was taken out."""
ABOUT, SIZES = "about.json", "sizes.json"
"""What was taken out, and which lines of which kind; in `restored`, how long the files were that it was made of."""
OF_ARMS = ("cells", "latency", "mass", "arm_densities", "checks")
"""Kinds whose records name their arm."""
OF_CELLS = ("cells", "samples", "perplexity")
"""Kinds whose records name their cell."""
PRUNABLE = {*OF_ARMS, *OF_CELLS, "calibrations", "kernels"}
"""Kinds that anything is taken out of."""


@dataclass(frozen=True)
class Removed:
    """The ids of what is to be taken out: cells, arms with what else is recorded of them, calibrations, cases of kernels."""

    cells: frozenset[str] = frozenset()
    arms: frozenset[str] = frozenset()
    calibrations: frozenset[str] = frozenset()
    cases: frozenset[str] = frozenset()

    def takes(self, kind: str, record: Record) -> bool:
        """Return whether a record of a kind goes."""
        if kind in OF_CELLS and record["cell"] in self.cells:
            return True
        if kind in OF_ARMS:
            return record["arm"] in self.arms
        if kind == "calibrations":
            return record["calibration"] in self.calibrations
        return kind == "kernels" and record["case"] in self.cases


def take_out(store: Store, removed: Removed, what: str) -> int:
    """Take records out of a study and return the number under which they are kept. what: what they are, in words. Raises
    RecordError for corrupt records and where something is unfinished, UserError where a file can't be written, and where other
    processes write parts of the study, which can't be changed."""
    check_finished(store)
    if parts := parts_in(store.folder / "records"):
        raise UserError(
            f"{parts[0].parent}: {len(parts)} other processes write records of this study: wait for their end; what one that "
            "died on another host has left is joined by any command a day after it was written"
        )
    number = max([0, *taken_out(store)]) + 1
    home = _folder(store, number)
    halfway = home.with_name(f"{home.name}{UNFINISHED}")
    originals, following, positions = Files(), Files(), {}
    with _locked(store, [file for file in store.files() if file.kind in PRUNABLE and file.own.exists()]) as files:
        for file in files:
            if goes := _positions(file, removed):
                positions[file.kind] = goes
                originals |= {path.name: path.read_bytes() for path in (file.archived, file.path) if path.exists()}
                following |= files_without(text_of(file.path.parent, file), goes, file)
        with _partial(halfway) as folder:
            _write_all(folder / ORIGINAL, originals)
            _write_all(folder / NEXT, following)
            about = {"what": what, "lines": positions, "gone": [n for n, content in following.items() if content is None]}
            _write(folder / ABOUT, json.dumps(about, ensure_ascii=False).encode())
            folder.rename(halfway)
        _go_on(store, halfway, following)
    return number


def finish(store: Store, what: str) -> int | None:
    """Go on with taking out what a process was taking out when it died, in the same words. Returns its number, None where
    there is no such thing. Raises UserError where a file can't be written."""
    for number, halfway in taken_out(store).items():
        if halfway.name.endswith(UNFINISHED) and not (halfway / RESTORED).is_dir() and said_of(halfway) == what:
            about = json.loads((halfway / ABOUT).read_bytes())
            with _locked(store, [file for file in store.files() if file.kind in about["lines"]]):
                _go_on(store, halfway, _still_next(store, halfway) | dict.fromkeys(about["gone"]))
            return number
    return None


def _still_next(store: Store, halfway: Path) -> Files:
    """Return the files that are still to be replaced. What was added to one after the process died is added here too."""
    files = Files()
    for path in sorted((halfway / NEXT).glob("*")):
        there, content = store.folder / "records" / path.name, path.read_bytes()
        now, before = there.read_bytes() if there.exists() else b"", (halfway / ORIGINAL / path.name).read_bytes()
        if now.startswith(before):
            files[path.name] = content + now[len(before) :]
    return files


def _go_on(store: Store, halfway: Path, following: Files) -> None:
    """Replace files by those that follow, and be done."""
    _replace_all(store, following)
    shutil.rmtree(halfway / NEXT, ignore_errors=True)
    halfway.rename(halfway.with_name(halfway.name.removesuffix(UNFINISHED)))


def _positions(file: StudyFile, removed: Removed) -> list[int]:
    """Return which of the lines of a kind go, of both of its files."""
    records = records_of(text_of(file.path.parent, file), file)
    return [position for position, record in enumerate(records) if removed.takes(file.kind, record)]


def bring_back(store: Store, number: int) -> None:
    """Bring back what was taken out under a number; what was recorded since comes after it. `forget` is the end of it.

    Raises UserError, and changes nothing, for a number that there isn't, for any but the last one, and where that can't be done
    (`files_restored`).
    """
    home = _find(store, number)
    staged, lines = home / RESTORED, json.loads((home / ABOUT).read_bytes())["lines"]
    with _locked(store, [file for file in store.files() if file.kind in lines]) as files:
        if not staged.is_dir():
            restored = Files()
            for file in files:
                restored |= files_restored(file, home / ORIGINAL, lines[file.kind])
            about = {
                "sizes": {file.path.name: file.path.stat().st_size for file in files if file.path.exists()},
                "gone": [name for name, content in restored.items() if content is None],
            }
            with _partial(staged) as folder:
                _write_all(folder, restored)
                _write(folder / SIZES, json.dumps(about).encode())
                folder.rename(staged)
        _replace_all(store, _staged(store, staged))
    for path in sorted((home / DERIVED).glob("*")):
        path.replace(store.folder / path.name)
    forget(store, number)
    home.rename(_folder(store, number).with_name(f"{number}{BACK}"))


def is_back(store: Store, number: int) -> bool:
    """Return whether the last that was brought back under a number is still there, for the same command to go on after it."""
    return _folder(store, number).with_name(f"{number}{BACK}").is_dir()


def forget(store: Store, number: int) -> None:
    """Remove what was brought back under a number, once nothing is left to be done."""
    shutil.rmtree(_folder(store, number).with_name(f"{number}{BACK}"), ignore_errors=True)
    with suppress(OSError):  # something else is in it
        _folder(store, number).parent.rmdir()


def _staged(store: Store, staged: Path) -> Files:
    """Return the files that are to be brought back. What was added to one after a process died is added here too."""
    about = json.loads((staged / SIZES).read_bytes())
    files = Files({path.name: path.read_bytes() for path in staged.iterdir() if path.name != SIZES})
    files |= dict.fromkeys(about["gone"])
    for name, size in about["sizes"].items():
        path, content = store.folder / "records" / name, files[name] or b""
        now = path.read_bytes() if path.exists() else b""
        files[name] = now if content and now.startswith(content) else (content + now[size:] or files[name])
    return files


def keep_derived(store: Store, number: int, paths: Iterable[Path]) -> None:
    """Move tables and pictures that can't be made any more to what was taken out, with which they come back."""
    folder = _folder(store, number) / DERIVED
    for path in paths:
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)


def taken_out(store: Store) -> dict[int, Path]:
    """Return the folders of what was taken out of a study, by number, one that is not done too."""
    folder = store.folder / "records" / PRUNED
    paths = {path.name.removesuffix(UNFINISHED): path for path in (folder.iterdir() if folder.is_dir() else ())}
    return {int(name): paths[name] for name in sorted(paths) if name.isdecimal()}


def said_of(folder: Path) -> str:
    """Return what was taken out into a folder, in words."""
    try:
        return str(json.loads((folder / ABOUT).read_bytes())["what"])
    except (OSError, ValueError, LookupError, TypeError):
        return f"{folder / ABOUT} can't be read"


def unfinished(store: Store) -> str:
    """Return, in one line, that a process died as it took records out or brought them back; "" where none did."""
    for number, path in taken_out(store).items():
        if path.name.endswith(UNFINISHED) or (path / RESTORED).is_dir():
            return (
                f"{path}: records were being taken out, or brought back, when the process died; nothing is lost, the same "
                f"command goes on, and this brings them back: {undo_command(store, number)}"
            )
    return ""


def check_finished(store: Store) -> None:
    """Raise RecordError where `unfinished` says something."""
    if problem := unfinished(store):
        raise RecordError(problem)


def undo_command(store: Store, number: int) -> str:
    """Return the command that brings back what was taken out under a number."""
    results = [] if store.folder.parent == Path("results") else [f"results={store.folder.parent}"]
    return shlex.join(["python", "-m", "harness", "job=prune", *results, f"study={store.folder.name}", f"undo={number}"])


def _folder(store: Store, number: int) -> Path:
    return store.folder / "records" / PRUNED / str(number)


def _find(store: Store, number: int) -> Path:
    """Return the folder of a number. Raises UserError where there is none, or a later one, which was taken out of what this one
    left."""
    known = taken_out(store)
    if number not in known:
        there = "; ".join(f"{n} is {said_of(path)}" for n, path in known.items()) or "nothing is out of this study"
        raise UserError(f"undo={number}: there is no such number; {there}")
    if number != max(known):
        raise UserError(f"undo={number}: the last one comes back first: {undo_command(store, max(known))}")
    return known[number]


@contextmanager
def _locked(store: Store, files: Sequence[StudyFile]) -> Iterator[Sequence[StudyFile]]:
    """Hold the study, and the locks of kinds of records where locks work, and yield these. A kind that is all archived has no
    file to lock: nothing adds to it but by making one, which is as good as adding to it later. Raises UserError where another
    process holds the study for too long."""
    with alone(store.folder / "records"), ExitStack() as stack:
        for file in files:
            if os.path.lexists(file.path):
                stack.enter_context(opened_locked(file.path, os.O_RDWR, fcntl.LOCK_EX, needed=False))
        yield files


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Make a folder that becomes `path` once it is whole. Raises UserError where it can't be written."""
    try:
        with partial_folder(path) as folder:
            yield folder
    except (OSError, UserError) as error:
        with suppress(OSError):
            path.parent.rmdir()  # where nothing else is in it
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(f"{path} can't be written ({reason}): make room; nothing was changed") from error


def _write_all(folder: Path, files: Files) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if content is not None:
            _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    """Write a file and sync it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace_all(store: Store, files: Files) -> None:
    """Replace files of records one after the other, each in one step. Raises UserError, which says how to go on, where that
    fails."""
    try:
        for name, content in files.items():
            path = store.folder / "records" / name
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, partial(_fill, content=content))
    except (OSError, UserError) as error:
        raise UserError(f"{error}; {unfinished(store)}") from error


def _fill(file: BinaryIO, content: bytes) -> None:
    file.write(content)
