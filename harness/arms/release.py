"""Settings under `as_released=true`: the knobs of each method's release in place of the defaults of conf/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import methods
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.settings import Settings
from methods import decode
from methods.parts.release import Releasable

AS_RELEASED = "as_released"
"""The name among an arm's knobs that says that a method ran as released."""
SHARED = ("block_size", "sparsity")
"""Settings of conf/config.yaml that are knobs of a method of prefill."""


def with_release(settings: Settings) -> Settings:
    """Return the settings with the knobs of each method's release where the user gave none, as they are without as_released.

    It acts on the method of prefill and on that of decoding, each where it has a release. A sparsity that was not given is
    null then: the release's own knobs decide. All knobs count as given afterwards. Raises UserError where neither method has a
    release, or for a name that is not known.
    """
    if not settings.as_released:
        return settings
    try:
        prefills, decodes = methods.get(settings.method), decode.get(settings.decode)
    except ValueError as error:
        raise as_user_error(error) from error
    if prefills.release is None and decodes.release is None:
        able = [f"{group}={name}" for group, of in (("method", methods), ("decode", decode)) for name in of.registry.released()]
        raise UserError(
            f"as_released=true: method {settings.method} has no release to follow, nor has decode={settings.decode}: leave it "
            f"out, or choose one of: {', '.join(able)}"
        )
    if prefills.release is not None:
        shared = {"block_size": settings.block_size, "sparsity": settings.sparsity}
        chosen = {name: value for name, value in shared.items() if name in settings.given}
        knobs = _released(prefills, chosen | _given("method", settings.method_knobs, settings), settings.method_knobs)
        settings = replace(
            settings,
            sparsity=knobs.pop("sparsity", None),
            block_size=knobs.pop("block_size", settings.block_size),
            method_knobs={name: knobs[name] for name in settings.method_knobs},
        )
    if decodes.release is not None:
        chosen = _given("decode", settings.decode_knobs, settings)
        settings = replace(settings, decode_knobs=_released(decodes, chosen, settings.decode_knobs))
    names = {f"{group}.{name}" for group in ("method", "decode") for name in getattr(settings, f"{group}_knobs")}
    return replace(settings, given=settings.given | names | set(SHARED))


def released_knobs(method: Releasable) -> dict[str, bool]:
    """Return what an arm's knobs say of a method that runs as released. Of any other they say nothing, as in older rows."""
    return {AS_RELEASED: True} if method.as_released else {}


def _given(group: str, knobs: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the knobs of a group that the user gave."""
    return {name: value for name, value in knobs.items() if f"{group}.{name}" in settings.given}


def _released(cls: type[Releasable], given: Mapping[str, Any], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs of a class: the given ones, else its release's, else those of its file."""
    return {**knobs, **cls.release_knobs(given)}
