"""Whether the hub of models and data sets can be reached, asked once and quickly.

Its libraries try again for a minute before they say that there is no network. Where there is none they are told so, and look
into their cache alone.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import lru_cache

from harness.core.errors import first_line

SECONDS = 5.0
"""How long the hub may take to answer."""
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
"""Variables that tell the hub's libraries that there is no network."""


def find_hub() -> str | None:
    """Return why the hub can't be reached, None where it can. Called before its libraries are asked for anything: where there
    is no network they look into their cache alone from then on."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    reason = _silence(constants.ENDPOINT)
    if reason is not None:
        _go_offline()
    return reason


def hub_error(error: BaseException, offline: str | None) -> str:
    """Return in a few words why something of the hub can't be had. offline: what `find_hub` returned."""
    return first_line(error) if offline is None else f"it is not in the cache, and the hub can't be reached ({offline})"


@lru_cache(maxsize=8)
def _silence(url: str) -> str | None:
    """Return why no server answers at an address, None where one does, whatever it says."""
    errors: list[str] = [f"no answer in {SECONDS:g} s"]
    thread = threading.Thread(target=_ask, args=(url, errors), daemon=True)  # looking up a name knows no time limit
    thread.start()
    thread.join(SECONDS)
    return errors[-1] if errors else None


def _ask(url: str, errors: list[str]) -> None:
    """Ask a server for its page, and note in `errors` why that failed; where it answers, nothing is left there."""
    from huggingface_hub import get_session

    try:
        get_session().head(url, timeout=SECONDS)
    except Exception as error:  # of whichever library the hub's own uses
        errors.append(first_line(error))
    else:
        errors.clear()


def _go_offline() -> None:
    """Tell the hub's libraries that there is no network: those that are imported, and those still to be."""
    from huggingface_hub import constants

    os.environ.update(dict.fromkeys(SWITCHES, "1"))
    constants.HF_HUB_OFFLINE = True
    if (config := sys.modules.get("datasets.config")) is not None:
        vars(config).update(HF_HUB_OFFLINE=True, HF_DATASETS_OFFLINE=True)
