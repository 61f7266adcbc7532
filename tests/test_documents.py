"""Hold the documents to what they promise: short sentences, links and paths that exist, whole lists, an example that runs."""

from __future__ import annotations

import csv
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.documents import DOCUMENTS, ROOT, STUDIES, missing, prose, sentences, words, wrong_choices

LINE = 120
"""Characters of a line of Markdown, outside tables, code and URLs."""
SENTENCE = 30
"""Words of the longest sentence."""


def each_of(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths])


@each_of([*DOCUMENTS, *STUDIES])
def test_lines_are_short(path: Path) -> None:
    lines = [(number, re.sub(r"\S*://\S*", "", line)) for number, line in prose(path.read_text())]
    assert [f"{number}: {len(line)} characters" for number, line in lines if len(line) >= LINE] == []


@each_of([*DOCUMENTS, *STUDIES])
def test_sentences_are_short(path: Path) -> None:
    long = [(number, len(words(s)), s) for number, s in sentences(path.read_text()) if len(words(s)) > SENTENCE]
    assert [f"{number}: {count} words: {s}" for number, count, s in long] == []


@each_of([*DOCUMENTS, *STUDIES])
def test_links_and_paths_exist(path: Path) -> None:
    assert missing(path) == []


@each_of([*DOCUMENTS, *STUDIES])
def test_commands_choose_what_there_is(path: Path) -> None:
    """Every choice of a method, job, model or experiment in a command exists; words in capitals are the reader's."""
    assert wrong_choices(path) == []


def first_column(document: str, heading: str) -> set[str]:
    """Return the names in the first column of the tables below a heading of a document in docs/, up to the next heading."""
    text = (ROOT / "docs" / document).read_text()
    (below,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    return {name for cell in re.findall(r"^\| (`.*?) \|", below, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)}


def described(document: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / "docs" / document).read_text(), re.MULTILINE)


def test_every_method_has_its_config_its_row_and_its_description() -> None:
    names = set(import_module("methods").names())
    assert names == {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert first_column("methods.md", "All methods of prefill") == names
    assert sorted(described("methods.md", r"^### `(\w+)`$")) == sorted(names)


def test_every_method_of_decoding_has_its_config_its_row_and_its_description() -> None:
    names = set(import_module("methods.decode").names())
    assert names == {path.stem for path in (ROOT / "conf" / "decode").glob("*.yaml")}
    assert first_column("decoding.md", "All methods of decoding") == names
    assert sorted(described("decoding.md", r"^### `decode=(\w+)`$")) == sorted(names)


def test_every_kernel_has_its_row() -> None:
    names = set(import_module("attention_kernels.block_sparse").KERNELS)
    assert first_column("kernels.md", "All block-sparse kernels") == names


def test_every_job_has_its_row() -> None:
    names = {path.stem for path in (ROOT / "conf" / "job").glob("*.yaml")}
    assert first_column("measuring.md", "All jobs") == names


@pytest.mark.parametrize("study", ["bundled", "kernel_speed"])
def test_every_column_of_a_leaderboard_is_described(study: str) -> None:
    with (ROOT / "results" / study / "leaderboard.csv").open() as file:
        columns = next(csv.reader(file))
    text = (ROOT / "docs" / "records.md").read_text()
    assert [column for column in columns if f"`{column}`" not in text] == []


def test_method_of_the_documents_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is run as it is printed, and reaches the sparsity that is asked of it."""
    text = (ROOT / "docs" / "writing_a_method.md").read_text()
    (code,) = re.findall(r"```python\n# methods/(?:\w+)\.py\n(.*?)```", text, re.DOTALL)
    methods = import_module("methods")
    base = import_module("methods.parts.base")
    code = re.sub(r'@register\("(\w+)"\)', r'@register("\1_of_the_documents")', code)  # who follows it has the other
    (tmp_path / "documents_example.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(methods.names())
    classes = next(name for name, value in vars(methods.registry).items() if isinstance(value, dict))
    monkeypatch.setattr(methods.registry, classes, dict(getattr(methods.registry, classes)))  # the example leaves with the test
    import_module("documents_example")
    (name,) = set(methods.names()) - before
    q, k = torch.randn(1, 4, 1024, 16), torch.randn(1, 2, 1024, 16)
    inputs = base.LayerInputs(q=q, k=k, layer=0, scale=0.25, rope=None)
    index = methods.build(name, sparsity=0.75, block_size=16).select(inputs)
    index.validate()
    assert index.density().mean().item() == pytest.approx(0.25, abs=0.01)
    assert methods.build(name, sparsity=0.0, block_size=16).select(inputs).density().min().item() == 1.0
