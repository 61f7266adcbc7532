"""Hold the documents to what they promise: short sentences, paths that exist, whole lists, numbers that were measured."""

from __future__ import annotations

import csv
import re
import subprocess
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "gates" / "README.md",
    ROOT / "harness" / "bundled" / "MODEL_CARD.md",
]
STUDIES = sorted((ROOT / "results").rglob("*.md"))
LINE = 120
"""Characters of a line of Markdown, outside tables, code and URLs."""
SENTENCE = 30
"""Words of the longest sentence."""
FINDING = 15
"""Words of a finding of the README."""
FIRST_COMMAND = 25
"""Line of the README that its first command may stand in at the latest."""
MATCHED = 0.02
"""How far a row's measured density may lie from the request, relative to it, where the README quotes the row."""
TOP = {"harness", "methods", "kernels", "conf", "results", "docs", "tests", "gates", ".ci"}
"""Folders of the repository: a name in backticks that begins with one of them is a path."""
EXAMPLES = ("key_norm", "results/mine")
"""What nobody has before following a document: the method of docs/writing_a_method.md, the study of a first run."""
PLACEHOLDER = re.compile(r"[A-Z]{2,}$|[A-Z]{2,}\.\w+$|.*[*{…<]")
"""A part of a path that the reader fills in, such as NAME.py or STUDY."""

CHOICES = re.compile(r"(?<![\w.])(method|decode|job|model|experiment)=([\w\-]+(?:,(?![\w.]+=)[\w\-]+)*)")
"""A group of the command line and the choices that are made of it, but no key of a Python call or of lm-eval's list."""


def each_of(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths])


def prose(text: str) -> list[tuple[int, str]]:
    """Return the lines outside fenced code, tables and link definitions, each with its number from 1."""
    lines, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("|", "    ")) and not re.match(r"\[[^]]+\]: ", line):
            lines.append((number, line))
    return lines


def fences(text: str) -> list[str]:
    """Return the content of each fenced block of code."""
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def without_markup(text: str) -> str:
    """Return text as it is read: links by their words, code as one word, pictures left out."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"`` .*? ``|`[^`]*`", "code", text)
    text = re.sub(r"\[([^]]+)\](?:\([^)]*\)|\[[^]]*\])", r"\1", text)
    return text.replace("*", "")


def sentences(text: str) -> list[tuple[int, str]]:
    """Return the sentences of the prose, each with the number of the line its paragraph begins in.

    A paragraph ends at an empty line, a heading, a list item or a change of what is not prose; a sentence at a full stop, a
    question mark or an exclamation mark before a space.
    """
    paragraphs: list[tuple[int, list[str]]] = []
    last = -1
    for number, line in prose(text):
        begins = not line.strip() or number != last + 1 or re.match(r"\s*(?:[-*] |\d+\. |#|!\[)", line) is not None
        if begins:
            paragraphs.append((number, []))
        paragraphs[-1][1].append(re.sub(r"^\s*(?:[-*] |\d+\. |#+ )", "", line).strip())
        last = number if not line.startswith("#") else -1
    return [
        (number, sentence)
        for number, lines in paragraphs
        for sentence in re.split(r"(?<=[.!?])[\")]?\s+", without_markup(" ".join(lines)).strip())
        if sentence
    ]


def words(sentence: str) -> list[str]:
    """Return the words of a sentence; a sign by itself is none."""
    return [word for word in sentence.split() if re.search(r"\w", word)]


@each_of(DOCUMENTS)
def test_lines_are_short(path: Path) -> None:
    lines = [(number, re.sub(r"\S*://\S*", "", line)) for number, line in prose(path.read_text())]
    assert [f"{number}: {len(line)} characters" for number, line in lines if len(line) >= LINE] == []


@each_of(DOCUMENTS)
def test_sentences_are_short(path: Path) -> None:
    long = [(number, len(words(s)), s) for number, s in sentences(path.read_text()) if len(words(s)) > SENTENCE]
    assert [f"{number}: {count} words: {s}" for number, count, s in long] == []


@each_of([*DOCUMENTS, *STUDIES])
def test_links_and_paths_exist(path: Path) -> None:
    assert missing(path) == []


def missing(path: Path) -> list[str]:
    """Return the links, and the paths and modules in backticks, that lead nowhere."""
    text = path.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)$", text, re.MULTILINE)
    defined = re.findall(r"^\[([^]]+)\]: ", text, re.MULTILINE)
    uncoded = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    gone = [name for name in re.findall(r"\]\[([^]]+)\]", uncoded) if name not in defined]
    gone += [link for link in links if "://" not in link and not resolves(path, link)]
    coded = [token for code in re.findall(r"`([^`\n]+)`", text) for token in re.split(r"[\s,;]+", code)]
    gone += [token for token in coded if is_path(token) and not exists(token)]
    gone += [token for token in coded if is_module(token) and not module_exists(token)]
    return [name for name in gone if not any(example in name for example in EXAMPLES)]


def resolves(path: Path, link: str) -> bool:
    """Return whether a link of a document leads to a file of the repository and, after "#", to one of its headings."""
    name, _, anchor = link.partition("#")
    target = (path.parent / name).resolve() if name else path
    if not target.exists():
        return False
    if not anchor or target.suffix != ".md":
        return True
    return anchor in {slug(line) for line in re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)}


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def is_path(token: str) -> bool:
    return "/" in token and token.split("/")[0] in TOP and re.fullmatch(r"[\w.\-+/]+", token) is not None


def exists(token: str) -> bool:
    """Return whether a path of the repository exists, up to the first part that the reader fills in."""
    target = ROOT
    for part in token.rstrip("/").split("/"):
        if PLACEHOLDER.match(part):
            return True
        target = target / part
        if not target.exists():
            return generated(target)
    return True


def generated(target: Path) -> bool:
    """Return whether git leaves the path out: results of the reader's own runs are no files of the repository."""
    return subprocess.run(["git", "check-ignore", "-q", str(target)], cwd=ROOT).returncode == 0


def is_module(token: str) -> bool:
    return re.fullmatch(r"(?:harness|methods|attention_kernels)(?:\.\w+)+(?:\(\))?", token) is not None


def module_exists(token: str) -> bool:
    """Return whether a dotted name leads to a module, or to a name that the module's file mentions."""
    top, *parts = token.removesuffix("()").split(".")
    target = ROOT / "kernels" / top if top == "attention_kernels" else ROOT / top
    for part in parts:
        if PLACEHOLDER.match(part):
            return True
        if (target / part).is_dir() or (target / f"{part}.py").is_file():
            target = target / part
            continue
        file = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
        return re.search(rf"\b{part}\b", file.read_text()) is not None
    return True


@each_of([*DOCUMENTS, *STUDIES])
def test_commands_choose_what_there_is(path: Path) -> None:
    """Every choice of a method, job, model or experiment in a command exists; words in capitals are the reader's."""
    assert wrong_choices(path) == []


def wrong_choices(path: Path) -> list[str]:
    """Return the choices of groups in the commands of a document that are no file of conf/."""
    text = path.read_text()
    choices = [
        f"{group}={name}"
        for code in [*fences(text), *re.findall(r"`([^`\n]+)`", text)]
        for group, names in CHOICES.findall(code)
        for name in names.split(",")
        if not PLACEHOLDER.match(name)
    ]
    there = {f"{file.parent.name}={file.stem}" for file in (ROOT / "conf").glob("*/*.yaml")}
    return sorted({*choices} - there - {f"method={EXAMPLES[0]}", "model=sparse"})  # sparse: lm-eval's --model


# -- the README ----------------------------------------------------------------------------------------------------------


def test_the_first_command_stands_near_the_top() -> None:
    lines = README.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("```sh"))
    assert first + 1 <= FIRST_COMMAND


def section(title: str) -> str:
    """Return the text of a section of the README."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README.read_text(), re.DOTALL | re.MULTILINE)
    return text


def findings() -> list[str]:
    items = re.findall(r"^- (.*(?:\n  .*)*)", section("Which method?"), re.MULTILINE)
    return [without_markup(" ".join(item.split())) for item in items]


def test_findings_are_short() -> None:
    assert len(findings()) == 3
    assert [finding for finding in findings() if len(words(finding)) > FINDING] == []


class Quoted(NamedTuple):
    """A row that a finding of the README quotes: the study, what selects the row, and what the knob holds."""

    study: str
    method: str
    length: int
    sparsity: float
    knob: str = ""


QWEN = "pareto_Qwen2.5-Coder-0.5B-Instruct-Q4_K_M-unverified"
QUOTED = [
    [Quoted(QWEN, "flash_prefill", 8192, 0.8)],
    [Quoted("last_rows", "seer", 32768, 0.9, "last=2")],
    [Quoted("bundled", method, 32768, 0.9) for method in ("seer", "block_topk", "random")],
]
"""The rows behind each finding, in the README's order."""


def leaderboard(study: str) -> list[dict[str, str]]:
    with (ROOT / "results" / study / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def quoted_row(quoted: Quoted) -> dict[str, str]:
    """Return the one average row that is meant."""
    (row,) = [
        row
        for row in leaderboard(quoted.study)
        if row["task"] == "avg"
        and row["method"] == quoted.method
        and row["length"] == str(quoted.length)
        and row["sparsity"] == str(quoted.sparsity)
        and quoted.knob in row["knob"]
    ]
    return row


def percent(fraction: str) -> str:
    return f"{100 * float(fraction):.0f}"


@pytest.mark.parametrize("number", range(3))
def test_findings_are_rows_at_their_density(number: int) -> None:
    """Each number of a finding stands in its row, and the row's density is within 2 % of the request."""
    finding = findings()[number]
    times = re.findall(r"prefill (\S+)× as fast", finding)
    for quoted in QUOTED[number]:
        row = quoted_row(quoted)
        request = 1 - quoted.sparsity
        assert row["status"] == "ok"
        assert abs(float(row["density"]) - request) <= MATCHED * request
        assert f"density {float(row['density']):.3f}," in finding
        assert f"{quoted.length // 1024}k" in finding
        assert f" {percent(row['accuracy'])}," in finding and f"dense {percent(row['dense_accuracy'])}" in finding
        if "prefill" in finding:
            faster = float(row["dense_ttft_ms"]) / float(row["ttft_ms"])
            assert times == [f"{faster:.1f}"] if times else "prefill no faster" in finding and faster <= 1.01


def averages() -> list[dict[str, str]]:
    """Return the average rows of all studies that compare a method with dense attention."""
    names = sorted(path.parent.name for path in (ROOT / "results").glob("*/leaderboard.csv"))
    return [row for name in names for row in leaderboard(name) if row["task"] == "avg" and row.get("difference_low")]


def test_tables_of_findings_are_rows_of_leaderboards() -> None:
    """Density, accuracy, difference and interval of a line stand in one row, and "matched" is true of it."""
    rows = {}
    for row in averages():
        difference, low, high = (f"{100 * float(row[f'difference{end}']):+.1f}" for end in ("", "_low", "_high"))
        numbers = (f"{float(row['density']):.3f}", percent(row["accuracy"]), percent(row["dense_accuracy"]), difference)
        off = abs(float(row["density"]) / (1 - float(row["sparsity"])) - 1) if row["sparsity"] else 1.0
        rows[*numbers, f"{low} to {high}"] = "yes" if off <= MATCHED else "no"
    lines = re.findall(
        r"\| (0\.\d{3}) \| (yes|no) \| (\d+) \| (\d+) \| (\S+) \| (\S+ to \S+) \|",
        (ROOT / "docs" / "findings.md").read_text().replace("−", "-"),
    )
    assert len(lines) >= 50
    assert [line for line in lines if rows.get((line[0], *line[2:])) != line[1]] == []


def test_at_8k_no_row_saves_more_of_the_prefill_than_the_readme_says() -> None:
    (bound,) = re.findall(r"saves more than (\d+) % of the prefill", " ".join(section("Which method?").split()))
    savings = [
        1 - float(row["ttft_ms"]) / float(row["dense_ttft_ms"])
        for path in (ROOT / "results").glob("*/leaderboard.csv")
        for row in leaderboard(path.parent.name)
        if row.get("length") == "8192" and "0.5B" in row["model"] and row.get("ttft_ms") and row.get("dense_ttft_ms")
    ]
    assert 0 < max(savings) <= float(bound) / 100


def test_the_map_of_the_tree_names_every_room() -> None:
    named = set(re.findall(r"^\s*([\w/]+)/  ", section("Find your way"), re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "harness").glob("*/__init__.py")} | {"bundled"}
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name in TOP and path.name != ".ci"}
    assert named == rooms | (tops - {"kernels"}) | {"kernels/attention_kernels"}


def test_every_document_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.]+)\)", README.read_text()))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


# -- docs/ ---------------------------------------------------------------------------------------------------------------


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
