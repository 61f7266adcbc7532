"""Plain text for training: a folder of .txt files, read, collapsed to single spaces and tokenised once."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from harness.core.errors import UserError
from harness.core.input_files import read_text, text_files

WORD = re.compile(r"\b[a-z]{3,10}\b")


@dataclass(frozen=True)
class Corpus:
    """Tokenised prose.

    tokens: uint16 [N]. starts: int64 [S], the positions where a sentence starts (a token with a leading space). words: frequent
    lower-case words of the text. files: the names of the texts. sha256: of names and texts.
    """

    tokens: np.ndarray
    starts: np.ndarray
    words: list[str]
    files: list[str]
    sha256: str


def read_texts(folder: str | Path) -> dict[str, str]:
    """Return every .txt below `folder` by name, sorted, its white space collapsed. Raises UserError where there is none, or
    no text in any."""
    paths = text_files("data.text_dir", str(folder), "name a folder of plain-text books")
    texts = {path.name: re.sub(r"\s+", " ", read_text(path)).strip() for path in paths}
    if not any(texts.values()):
        raise UserError(f"data.text_dir={folder}: no .txt file there has any text; name a folder of plain-text books")
    return texts


def build_corpus(texts: dict[str, str], tokenizer: PreTrainedTokenizerBase, max_words: int = 20000) -> Corpus:
    """Return `texts` tokenised into one array, each text led by a space so that its pieces join with any other."""
    chunks = [" " + text[i : i + 100_000].strip() for text in texts.values() for i in range(0, len(text), 100_000)]
    encoded = tokenizer(chunks, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    tokens = np.fromiter((t for ids in encoded for t in ids), dtype=np.uint16)
    vocab = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    ends = np.array([t.endswith((".", "!", "?", '."', '!"', '?"')) for t in vocab])
    leads = np.array([t.startswith("Ġ") for t in vocab])
    starts = np.flatnonzero(ends[tokens[:-1]] & leads[tokens[1:]]) + 1
    counts: Counter[str] = Counter()
    for text in texts.values():
        counts.update(WORD.findall(text))
    digest = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in texts.items()).encode()).hexdigest()
    return Corpus(tokens, starts, [w for w, _ in counts.most_common(max_words)], list(texts), digest)


def read_stdlib(limit: int = 8_000_000) -> dict[str, str]:
    """Return Python source of the interpreter's standard library, about `limit` characters: technical text beside the books.

    `pydoc_data`, from which the harness makes its default haystack, and tests are left out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if re.match(r"(site-packages|pydoc_data|test|idlelib|lib2to3|encodings)/|.*/tests?/", name):
            continue
        texts[f"stdlib/{name}"] = re.sub(r"\s+", " ", path.read_text(encoding="utf-8", errors="replace")).strip()
        if sum(map(len, texts.values())) > limit:
            break
    return texts
