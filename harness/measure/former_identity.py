"""Arms whose weights older records know by the bytes of a file: they keep the identity that their study has for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.arms.build import RunnableArm
from harness.study.identity import ArmIdentity
from harness.study.store import Store


def as_recorded(store: Store, arm: RunnableArm) -> RunnableArm:
    """Return the arm under its former identity where the store has records of it, whatever their knobs: a study is resumed, not
    measured anew, as long as the file is the same. Any other arm is returned as it is."""
    if arm.former is None:
        return arm
    kinds = ((store.cells, arm.former), (store.latency, arm.former), (store.mass, arm.former), (store.checks, arm.former))
    for file, identity in (*kinds, (store.calibrations, arm.former.prefill())):
        expected = _without_knobs(identity)
        if any(_says(record["identity"], expected) for record in file.read()):
            return replace(arm, identity=arm.former)
    return arm


def _without_knobs(identity: ArmIdentity) -> dict[str, Any]:
    """Return an identity as records hold it, without the knobs of the method at prefill: some of them are calibrated."""
    content: dict[str, Any] = json.loads(json.dumps(identity.as_dict()))
    del content["knobs"]
    return content


def _says(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Return whether a record's identity has all that is expected. Decoding with full attention has no entry."""
    return recorded.get("decode") == expected.get("decode") and all(recorded.get(k) == v for k, v in expected.items())
