"""The YAML files of conf/: where they lie, and which of their keys are no settings."""

from __future__ import annotations

from pathlib import Path

from harness.core.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
ABOUT = "about"
"""The key of a conf/method file under which it states facts of the method itself (`harness.core.method_facts`)."""


def conf_dir() -> Path:
    """Return the folder of the Hydra groups: inside the installed package, or beside it in a checkout. Raises UserError where
    there is none."""
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"no conf/config.yaml in {PACKAGE} or {PACKAGE.parent}: this installation is incomplete, reinstall")
