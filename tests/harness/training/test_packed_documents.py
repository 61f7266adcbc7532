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
from harness.training.gates.packed_documents import Chunks, chunk_sources, from_folder, pack
from harness.training.gates.rows import row_sources, text_id
from tests.harness.training.test_distill_job import metaspace

TEXT = "the moon the sun shone. "


def test_documents_are_joined_by_the_end_of_text() -> None:
    tokenizer = metaspace()
    ids = pack(["the moon", "", "the sun the sun"], tokenizer, 10**6)
    assert ids.tolist() == [3, 4, 2, 3, 5, 3, 5, 2]


def test_reading_stops_when_there_is_enough() -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield TEXT * 20

    assert 1000 <= len(pack(texts(), metaspace(), 1000)) * 19 / 20 < 1200
    assert len(read) < 20


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
    texts = [*("the sun" + " the sun" * 49 for _ in range(19)), "the moon" + " the moon" * 49]
    train, test = chunk_sources(texts, metaspace(), (0, 1), 10**6)
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
    train, test = row_sources(loaded, {"text_dir": str(tmp_path)}, 0, kind="documents", train_tokens=10**6)
    assert train(64).shape == test(64).shape == (64,)
    orders = [[len(text) for text in from_folder(tmp_path, seed)] for seed in (0, 0)]
    assert orders[0] == orders[1]
    before = text_id(str(tmp_path))
    (tmp_path / "0.txt").write_text(TEXT)
    assert text_id(str(tmp_path)) != before
    with pytest.raises(UserError, match=r"job\.rows=documents needs text"):
        row_sources(loaded, {}, 0, kind="documents")


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
    train, _ = row_sources(loaded, {}, 0, kind="hub", train_tokens=2000, hub="good")
    assert train(64).shape == (64,) and asked == ["good"]
    with pytest.raises(UserError, match=r"job\.hub=bad: can't be read from the hub .*a column named text"):
        row_sources(loaded, {}, 0, kind="hub", train_tokens=2000, hub="bad")
    with pytest.raises(UserError, match="needs a data set"):
        row_sources(loaded, {}, 0, kind="hub")
