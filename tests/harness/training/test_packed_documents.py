"""Documents joined and cut into rows: nothing lost, nothing twice, the held-out part apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.errors import UserError
from harness.training.gates.packed_documents import PIECE, PIECES, Chunks, Document, chunk_sources, from_folder, pack
from harness.training.gates.rows import TextNeeds, row_sources, text_id
from tests.harness.training.test_distill_job import metaspace

TEXT = "the moon the sun shone. "
NEEDS = TextNeeds(2000, [100])


def test_documents_are_joined_by_the_end_of_text() -> None:
    documents = [(False, "the moon"), (True, "the sun"), (False, ""), (False, "the sun the sun")]
    train, test = pack(documents, metaspace(), 10**6, 10**6)
    assert train.tolist() == [3, 4, 2, 3, 5, 3, 5, 2] and test.tolist() == [3, 5, 2]


def test_reading_stops_when_there_is_enough() -> None:
    read: list[int] = []

    def documents() -> Iterator[Document]:
        for number in range(1000):
            read.append(number)
            yield number % 20 == 19, TEXT * 20

    train, test = pack(documents(), metaspace(), 1000, 150)
    assert 1000 <= len(train) < 1200 and 150 <= len(test) < 300
    assert len(read) == 40


def test_of_a_long_document_no_more_is_tokenised_than_is_needed() -> None:
    asked: list[int] = []
    whole = metaspace()

    def tokenizer(texts: list[str], **given: Any) -> Any:
        asked.append(sum(map(len, texts)))
        return whole(texts, **given)

    tokenizer.eos_token_id = 2  # type: ignore[attr-defined]
    train, _ = pack([(False, TEXT * 200_000)], tokenizer, 1000, 0)
    assert len(train) >= 1000 and train[-1] != 2 and sum(asked) == PIECE * PIECES


def test_every_stretch_once_before_any_twice() -> None:
    tokenizer = SimpleNamespace(bos_token_id=None)
    chunks = Chunks(np.arange(1000, dtype=np.int32), tokenizer, seed=3)
    chunks.first = None
    rows = [chunks(90) for _ in range(11)]
    assert sorted(int(row[0]) for row in rows) == list(range(0, 990, 90))
    assert all(torch.equal(row, torch.arange(int(row[0]), int(row[0]) + 90)) for row in rows)
    assert [int(row[0]) for row in rows] != list(range(0, 990, 90))
    again = [int(chunks(90)[0]) for _ in range(11)]
    assert sorted(again) == list(range(0, 990, 90)) and again != [int(row[0]) for row in rows]


def test_held_out_text_is_other_text_and_rows_begin_with_bos() -> None:
    texts = [*((False, "the sun" + " the sun" * 49) for _ in range(19)), (True, "the moon" + " the moon" * 49)]
    train, test = chunk_sources(texts, metaspace(), (0, 1), 10**6, 10**6)
    assert len(train.tokens) + len(test.tokens) == 20 * 101
    seen = [train(100) for _ in range(len(train.tokens) // 100)]
    assert all(int(row[0]) == 1 and 4 not in row for row in seen)  # no moon
    assert 4 in test(100)
    with pytest.raises(UserError, match="too few for rows of 200"):
        test(200)


def test_sources_of_a_folder(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(TEXT * 40)
    loaded: Any = SimpleNamespace(tokenizer=metaspace(), name="other")
    train, test = row_sources(loaded, {"text_dir": str(tmp_path)}, 0, kind="documents", needs=NEEDS)
    assert train(64).shape == test(64).shape == (64,)
    orders = [list(from_folder(tmp_path, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    before = text_id(str(tmp_path))
    (tmp_path / "0.txt").write_text(TEXT)
    assert text_id(str(tmp_path)) != before
    with pytest.raises(UserError, match=r"job\.rows=documents needs text"):
        row_sources(loaded, {}, 0, kind="documents", needs=NEEDS)


def test_what_is_held_out_does_not_depend_on_how_much_is_trained(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * 500)
    parts: dict[bool, str] = {True: "", False: ""}
    for is_held_out, document in from_folder(tmp_path, 0):
        parts[is_held_out] += document if isinstance(document, str) else document.read_text()
    assert len(parts[True]) == 7000 // 20 and len(parts[True]) + len(parts[False]) == 7000
    loaded: Any = SimpleNamespace(tokenizer=metaspace(), name="other")
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text(TEXT * 300)
    rows = [
        row_sources(loaded, {"text_dir": str(tmp_path)}, 0, kind=kind, needs=TextNeeds(tokens, [64]))[1](64)
        for kind in ("documents", "books")
        for tokens in (0, 3000)
    ]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[2], rows[3])


def test_sources_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Rows(list[dict[str, str]]):
        def shuffle(self, seed: int, buffer_size: int) -> Rows:
            return self

    asked: list[str] = []

    def fake(name: str, **given: Any) -> Rows:
        asked.append(name)
        return Rows({"text" if name == "good" else "content": TEXT * 40} for _ in range(50))

    monkeypatch.setattr(datasets, "load_dataset", fake)
    loaded: Any = SimpleNamespace(tokenizer=metaspace(), name="other")
    train, _ = row_sources(loaded, {}, 0, kind="hub", needs=NEEDS, hub="good")
    assert train(64).shape == (64,) and asked == ["good"]
    with pytest.raises(UserError, match=r"job\.hub=bad: can't be read: .*a column named text"):
        row_sources(loaded, {}, 0, kind="hub", needs=NEEDS, hub="bad")
    with pytest.raises(UserError, match="needs a data set"):
        row_sources(loaded, {}, 0, kind="hub", needs=NEEDS)
