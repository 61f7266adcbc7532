"""What a record says of the code that it comes from."""

from __future__ import annotations

import pytest

from harness.study import provenance


@pytest.mark.parametrize(
    ("given", "recorded"), [("5e56630", "g5e56630"), ("571234567890", "g571234567890"), ("5e566301a4d9", "5e566301a4d9")]
)
def test_a_commit_is_no_number(given: str, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas reads 5e56630 as infinity, and a column of such commits as numbers."""
    monkeypatch.setenv("HARNESS_COMMIT", given)
    assert provenance.commit.__wrapped__() == recorded
