"""What a method's authors released, where that is not what their paper, or this code by default, does: `as_released=true`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Release:
    """The published code of a method, as its authors' evaluations run it.

    repository: owner/name on GitHub. settings: knobs as the release's own scripts set them, block_size among them. density:
    the native knobs among those that say how much is kept; with a sparsity they are calibrated instead. quirks: what the
    method does beside settings where `as_released` is set, each with the repository's file. source: the file of the settings.
    rule: the setting, if there is one, that says which native knob counts; with another value than the release's `density`
    doesn't hold.
    """

    repository: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    density: Mapping[str, Any] = field(default_factory=dict)
    quirks: Mapping[str, str] = field(default_factory=dict)
    rule: str | None = None


class Releasable:
    """A method that may have a release, which `Registry.build` follows where it is asked to."""

    release: ClassVar[Release | None] = None
    """The release to follow where `as_released` is asked for; None: there is none."""
    as_released: bool = False
    """Whether the method does what its release does, quirks and all. Set before the constructor runs."""

    @classmethod
    def release_knobs(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the knobs of the release, under those `given`: a knob that is None stands for one not given.

        The release must be there.
        """
        assert cls.release is not None
        settings, rule = cls.release.settings, cls.release.rule
        chosen = {name: value for name, value in given.items() if value is not None}
        other_rule = rule is not None and chosen.get(rule, settings.get(rule)) != settings.get(rule)
        density = {} if "sparsity" in chosen or other_rule else cls.release.density
        return {**given, **settings, **density, **chosen}
