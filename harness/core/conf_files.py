"""The YAML files of conf/: where they lie, the groups and their choices, and the settings in a file with their comments.

A file is read line by line: OmegaConf drops the comments, which say what each setting does. So every setting of conf/ stands on
one line, `name: value  # comment`, and comments of several lines go on below it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.core.errors import UserError

FILE_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
"""Letters that the names of files may have everywhere."""
OmegaConf.register_new_resolver("file_name", lambda text: "-".join(FILE_NAME.findall(str(text))), replace=True)
"""`${file_name:TEXT}` in a file of conf/: a name that is anyone's choice, such as a hub's ID, as a part of a file's name."""
PACKAGE = Path(__file__).resolve().parents[1]
MAIN = "config"
"""The file of the settings that are in no group."""
ABOUT = "about"
"""The key of a conf/method file with facts of the method itself."""
NO_SETTINGS = ("defaults", "hydra", ABOUT)
"""Top-level keys of a file that hold no settings: Hydra's own, and ABOUT."""
SETTING = re.compile(r"(?P<indent> *)(?P<name>[^\s#:]+):(?P<value>.*?)(?P<comment> +#.*)?")


@dataclass(frozen=True)
class ConfLine:
    """A line of a file of conf/. `name` is that of the setting it holds, dotted and without its group; empty where the line is
    blank or only a comment. `value` is as written there, `comment` with its # and the spaces before it."""

    text: str
    name: str = ""
    value: str = ""
    comment: str = ""


def conf_dir() -> Path:
    """Return the folder of the Hydra groups: inside the installed package, or beside it in a checkout. Raises UserError where
    there is none."""
    for folder in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if (folder / f"{MAIN}.yaml").is_file():
            return folder
    raise UserError(f"no conf/{MAIN}.yaml in {PACKAGE} or {PACKAGE.parent}: this installation is incomplete, reinstall")


@lru_cache(maxsize=1)
def groups() -> dict[str, list[str]]:
    """Return the choices of every group but Hydra's own, the names of its files, both in alphabetical order: first those of the
    group's own folder, then those in a folder below it, as FOLDER/NAME."""
    folders = sorted(path for path in conf_dir().iterdir() if path.is_dir() and path.name not in NO_SETTINGS)
    choices = {
        folder.name: [
            *sorted(path.stem for path in folder.glob("*.yaml")),
            *sorted(f"{path.parent.name}/{path.stem}" for path in folder.glob("*/*.yaml")),
        ]
        for folder in folders
    }
    return {group: names for group, names in choices.items() if names}


def conf_file(group: str, choice: str) -> Path:
    """Return the path of a choice's file; the group of the settings that are in none is ""."""
    return conf_dir() / group / f"{choice}.yaml"


@lru_cache(maxsize=128)
def conf_lines(path: Path) -> tuple[ConfLine, ...]:
    """Return the lines of a file, without the keys that hold no settings and what is below them."""
    lines: list[ConfLine] = []
    parents: list[tuple[int, str]] = []  # of the line: how far each is indented, and its name
    skipping = False
    for text in path.read_text(encoding="utf-8").splitlines():
        match = SETTING.fullmatch(text)
        if match is None:
            skipping = skipping and text.startswith((" ", "-"))  # what is below a key is indented, or a list
            if not skipping:
                lines.append(ConfLine(text))
            continue
        indent = len(match["indent"])
        parents = [(depth, name) for depth, name in parents if depth < indent] + [(indent, match["name"])]
        skipping = parents[0][1] in NO_SETTINGS
        if not skipping:
            name = ".".join(name for _, name in parents)
            lines.append(ConfLine(text, name, match["value"].strip(), match["comment"] or ""))
    return tuple(lines)


@lru_cache(maxsize=128)
def defaults(group: str, choice: str) -> dict[str, Any]:
    """Return the values in a choice's file by their names, as they are written there. Not to be changed."""
    content: Any = OmegaConf.to_container(OmegaConf.load(conf_file(group, choice)), resolve=False)
    return content or {}


def setting_names(group: str, choice: str) -> list[str]:
    """Return the names of the settings in a choice's file, dotted and without their group."""
    return [line.name for line in conf_lines(conf_file(group, choice)) if line.name]


@lru_cache(maxsize=128)
def about_of(group: str, choice: str) -> Any:
    """Return the facts of a choice that its file holds (`ABOUT`), {} where it holds none. Not to be changed. Raises UserError
    where they have no names."""
    content: Any = OmegaConf.to_container(OmegaConf.load(conf_file(group, choice)))
    about = (content or {}).get(ABOUT) or {}
    if not isinstance(about, dict):
        raise UserError(f"{conf_file(group, choice)}: {ABOUT}={about}: it holds facts by their names, such as bound: true")
    return about
