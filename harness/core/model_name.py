"""What rows call a model that was given by its path: a name, never the place where it lies on one machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from omegaconf import OmegaConf

RESOLVER = "name_of_path"
"""How conf/ calls `name_of_path`: name: ${name_of_path:${model.path}}."""
BY_SHAPE = "shape/"
"""The beginning of the names of models by shape, whose weights are drawn at random."""
SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/[^/]+/?$")
"""The end of a folder in the hub's cache, its first group OWNER--NAME."""


def name_of_path(path: object) -> str:
    """Return the name of a folder, of one in the hub's cache its id, and a hub id or another word as it is.

    Two folders of one name are still two models: the hash of config and weights tells them apart in every record. What is no
    text, such as null, is its own name here: the check of model.path says what is wrong.
    """
    path = str(path)
    if snapshot := SNAPSHOT.search(path):
        return snapshot[1].replace("--", "/", 1)
    folder = Path(path).expanduser()
    here = path.startswith(("/", ".", "~")) or os.path.isdir(folder)  # False for a name that is none
    return folder.resolve().name or path if here and path != "bundled" else path


OmegaConf.register_new_resolver(RESOLVER, name_of_path, replace=True)
