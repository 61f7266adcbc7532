"""What tells one tokenizer, or one chat template, from another in the names of caches and the identities of cells."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

_hashes: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
"""The hash of each tokenizer, and how many tokens it had then."""


def tokenizer_hash(tokenizer: Any) -> str:
    """Return sha256 (12 digits) of the tokenizer's whole definition, but for how its last call cut and padded: a call sets that
    anew.

    It is taken once for each tokenizer, and anew where tokens were added: writing out a large vocabulary takes half a second,
    and every task of every arm asks.
    """
    tokens, digest = _hashes.get(tokenizer, (-1, ""))
    if tokens != len(tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        definition = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else _definition(backend)
        digest = hashlib.sha256(definition.encode()).hexdigest()[:12]
        _hashes[tokenizer] = len(tokenizer), digest
    return digest


def _definition(backend: Any) -> str:
    """Return the JSON of a tokenizer that neither cuts nor pads, and leave it as it was."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        return str(backend.to_str())
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def template_hash(tokenizer: Any) -> str:
    """Return sha256 (12 digits) of the chat template's text: two models may share a tokenizer and not its template."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:12]
