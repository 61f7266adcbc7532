"""Read the project's documents: their prose, their sentences, and the links, paths and choices that lead nowhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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
TOP = {"harness", "methods", "kernels", "conf", "results", "docs", "tests", "gates", "findings", "hydra_plugins", ".ci"}
"""Folders of the repository: a name in backticks that begins with one of them is a path."""
EXAMPLES = ("key_norm", "results/mine")
"""What nobody has before following a document: the method of docs/writing_a_method.md, the study of a first run."""
PLACEHOLDER = re.compile(r"[A-Z]{2,}$|[A-Z]{2,}\.\w+$|.*[*{…<]")
"""A part of a path that the reader fills in, such as NAME.py or STUDY."""

CHOICES = re.compile(r"(?<![\w.])(method|decode|job|model|experiment)=([\w\-/]+(?:,(?![\w.]+=)[\w\-/]+)*)")
"""A group of the command line and the choices that are made of it, but no key of a Python call or of lm-eval's list."""


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
    files = [file.relative_to(ROOT / "conf").with_suffix("") for file in (ROOT / "conf").glob("*/**/*.yaml")]
    there = {f"{file.parts[0]}={'/'.join(file.parts[1:])}" for file in files}
    return sorted({*choices} - there - {f"method={EXAMPLES[0]}", "model=sparse"})  # sparse: lm-eval's --model
