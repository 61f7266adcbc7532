"""Where an error comes from: the line of a method's author that led to it, and its traceback without this machine's folders.

An error that a measurement keeps loses its frames, which hold the tensors of a batch. So what they say is noted first
(`note_origin`), and stays with the error.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from harness.core.errors import UserError
from harness.core.printable import cut

OWN = ("harness", "methods", "attention_kernels")
"""The packages of this project."""
HELPERS = ("methods.parts", "methods.decode.parts")
"""Modules of methods/ that methods are made with."""
LONGEST = 20_000
"""Characters of a traceback that a record keeps: its beginning and its end."""


@dataclass(frozen=True)
class Frame:
    """One call on the way to an error: its module, what is called in it, and its place as FILE:LINE."""

    module: str
    function: str
    place: str
    in_library: bool

    @property
    def package(self) -> str:
        """Return the outermost package of its module."""
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Origin:
    """Where an error comes from. author: FILE:LINE in the code of a method's author, or of another user of this project, empty
    where none is on the way. place: the same, else the innermost line of this project. failing_package: the one that
    can't be imported, empty for any other error. traceback: as text."""

    author: str
    place: str
    failing_package: str
    traceback: str


def note_origin(error: BaseException) -> None:
    """Keep with an error where it comes from, before its frames are let go."""
    if _noted(error) is None:  # raised again without its frames, it would say less
        with suppress(AttributeError):  # an exception without a dict keeps its frames at least
            error.harness_origin = _read(error)  # type: ignore[attr-defined]


def origin(error: BaseException) -> Origin:
    """Return where an error comes from, as noted or as its frames say now."""
    return _noted(error) or _read(error)


def _noted(error: BaseException) -> Origin | None:
    noted = getattr(error, "harness_origin", None)
    return noted if isinstance(noted, Origin) else None


def in_words(error: BaseException) -> str:
    """Return an error in one line with its type, the package that can't be imported, if that is it, and the line of the code
    that it comes from."""
    place = origin(error).place
    return first_line(error) + (f" ({place})" if place else "")


def first_line(error: BaseException) -> str:
    """Return an error's type and its first line, after the name of the package that can't be imported, if there is one."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    library = origin(error).failing_package
    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == library
    about = f"the package {library} is {'not installed' if missing else 'installed and fails'}: " if library else ""
    return f"{about}{type(error).__name__}: {first}"


def as_user_error(error: ValueError) -> UserError:
    """Return what a user is told where methods or kernels raise a ValueError, made of one line for what they can't do: that
    line. One that Python raised in them, of a wrong unpacking say, is a mistake in the code, and says where."""
    if isinstance(error, UserError):
        return error
    return UserError(str(error) if _raised_on_purpose(error) else in_words(error))


def _raised_on_purpose(error: BaseException) -> bool:
    """Return whether a `raise` statement raised an error, not Python or a library."""
    last = next(reversed(traceback.extract_tb(error.__traceback__)), None)
    return last is None or (last.line or "raise").startswith("raise")


def _read(error: BaseException) -> Origin:
    frames = _frames(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:  # of a module that could not even be imported
        frames.append(Frame("methods.", "<module>", f"{_short(error.filename)}:{error.lineno}", in_library=False))
    library = _library(error, frames)
    author = "" if library else _author(frames)
    own = [frame.place for frame in frames if frame.package in OWN]
    return Origin(author, author or (own[-1] if own else ""), library, _text(error))


def _library(error: BaseException, frames: list[Frame]) -> str:
    """Return the package, none of this project's, that failed while it was imported; empty for an error of another kind."""
    last_own = max((place for place, frame in enumerate(frames) if frame.package in OWN), default=None)
    if last_own is None:
        return ""
    imported = [frame.package for frame in frames[last_own + 1 :] if frame.function == "<module>"]
    if imported:
        return imported[0]
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return "" if name in OWN else name


def _author(frames: list[Frame]) -> str:
    """Return the innermost line of a method's author: in methods/, or in a file of the user's own that the harness called."""
    called = False
    author = ""
    for frame in frames:
        called = called or frame.package == "harness"
        of_method = frame.package == "methods" and not frame.module.startswith(HELPERS)
        of_user = called and frame.package not in OWN and not frame.in_library
        if of_method or of_user:
            author = frame.place
    return author


def _frames(frames: TracebackType | None) -> list[Frame]:
    """Return the calls on the way to an error, the outermost first."""
    read = []
    while frames is not None:
        code, module = frames.tb_frame.f_code, str(frames.tb_frame.f_globals.get("__name__", ""))
        folder = _short(code.co_filename).partition("/")[0]
        module = f"{folder}.{module}" if module == "__main__" and folder in OWN else module  # as python -m runs it
        library = code.co_filename.startswith(("<frozen", "<string>", *_library_folders()))
        read.append(Frame(module, code.co_name, f"{_short(code.co_filename)}:{frames.tb_lineno}", library))
        frames = frames.tb_next
    return read


def _text(error: BaseException) -> str:
    """Return the traceback as Python prints it, files without the folders of this machine."""
    told = traceback.TracebackException.from_exception(error)
    errors: list[traceback.TracebackException | None] = [told]
    while errors:
        current = errors.pop()
        if current is not None:
            for frame in current.stack:
                _ = frame.line  # read while the file still has its name
                frame.filename = _short(frame.filename)
            errors += [current.__cause__, current.__context__]
    return cut("".join(told.format()), LONGEST)


@lru_cache(maxsize=1)
def _library_folders() -> tuple[str, ...]:
    """Return where Python and what is installed lie."""
    paths = sysconfig.get_paths()
    return tuple({paths[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@lru_cache(maxsize=1024)
def _short(file: str) -> str:
    """Return the name of a file from the folder on that everyone has: the project's, Python's, or the working folder."""
    if file.startswith("<"):
        return file
    project = str(Path(__file__).resolve().parents[2])
    folders = sorted({project + os.sep, os.getcwd() + os.sep, *_library_folders()}, key=len, reverse=True)
    return next((file.removeprefix(folder) for folder in folders if file.startswith(folder)), Path(file).name)
