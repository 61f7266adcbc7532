"""Tests, in the layout of the packages; the root is importable as `tests` for what they share."""
