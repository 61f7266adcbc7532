"""The flags of the command: -m, --help and those of Hydra's that make sense here, anywhere among the settings."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.errors import UserError, did_you_mean
from harness.core.input_files import input_folder

ALONE = ("-m", "--multirun", "-h", "--help", "-r", "--run", "--resolve", "--version", "--hydra-help")
"""Flags without a value."""
SHOWN = {
    "-c": ("job", "hydra", "all"),
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
"""Flags that show a part of the configuration, and the parts there are. --info alone shows all."""
WITH_VALUE = ("-p", "--package", "--config-dir")
"""Flags whose value is not one of a few."""
KNOWN = (*ALONE, *SHOWN, *WITH_VALUE)


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with all flags before the settings: Hydra reads none that comes between two of them.

    Raises UserError for a flag that is not known, for one without its value, or with a wrong one.
    """
    flags: list[str] = []
    settings: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            settings.append(argument)
            continue
        if name not in KNOWN or (equals and name in ALONE):
            raise UserError(
                f"unknown flag '{argument}'{did_you_mean(name, KNOWN)}; there are --help, -m (sweep over commas) and Hydra's "
                "--cfg job, --info, --resolve, --package, --config-dir, --version and --hydra-help; settings are name=value"
            )
        flags.append(argument)
        if name in ALONE or (equals and value):
            _check_value(name, value)
        elif name in SHOWN and rest and rest[0] in SHOWN[name]:
            flags.append(rest.pop(0))
        elif name in WITH_VALUE and rest and not rest[0].startswith("-") and "=" not in rest[0]:
            _check_value(name, rest[0])
            flags.append(rest.pop(0))
        elif name == "--info" and not equals:
            flags[-1] = "--info=all"  # else it would take the first setting for its value
        else:
            raise UserError(f"{name} needs a value: {', '.join(SHOWN.get(name, ('a name', 'or a path')))}")
    return [*flags, *settings]


def _check_value(name: str, value: str) -> None:
    """Raise UserError for a wrong value of a flag."""
    if name in SHOWN and value not in SHOWN[name]:
        raise UserError(f"{name} {value}: must be one of {', '.join(SHOWN[name])}")
    if name == "--config-dir":
        input_folder("--config-dir", value, "it adds files to those of conf/")
