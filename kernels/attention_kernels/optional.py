"""Libraries that may be missing, or be there and fail: both are a reason why a kernel can't run, and no error of their own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

INSTALL = "pip install 'sparse-attention-harness[cuda]'"


class Unusable(Exception):
    """A library that can't be used; says which and why."""


def load(module: str, attribute: str) -> Any:
    """Return an attribute of a module that is imported now. Raises Unusable where the module is not installed, fails in any way
    while it is imported (half an installation raises whatever it likes), or has no such attribute."""
    problem, value = _load(module, attribute)
    if problem:
        raise Unusable(problem)
    return value


def problem_of(module: str, attribute: str) -> str | None:
    """Return why an attribute of a module can't be had, None where it can. To be asked once: a failed import costs as much the
    next time."""
    return _load(module, attribute)[0] or None


def _load(module: str, attribute: str) -> tuple[str, Any]:
    """Return why not, empty where nothing is wrong, and the attribute."""
    try:
        return "", getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return f"its package is not installed: {INSTALL}", None
        return broken(module, error), None
    except (Exception, SystemExit) as error:
        return broken(module, error), None


def broken(module: str, error: BaseException) -> str:
    """Return what is said of a library that is there and raised an error."""
    return f"its package {module.partition('.')[0]} is installed and fails: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return an error in one line, with its type."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")


def is_broken(problem: str | None) -> bool:
    """Return whether a library is there and fails, which its user should hear of; one that is not there is nobody's fault."""
    return problem is not None and "is installed and fails" in problem
