"""The documents of the repository as what tests ask of them: commands, links, tables, sections."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = (
    "*.md",
    "docs/**/*.md",
    "examples/**/*.md",
    "evidence/*.md",
    "fm_mlx/pretrained/*.md",
    "metal_kernels/simulator/*.md",
)

_FENCE = re.compile(r"^(`{3,}).*?\n(.*?)^\1`*\s*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*(?:\n|\Z)|\n(?= {4}|\n))+")
_INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_MADE_BY = re.compile(r"<!-- made by: (.+?) -->")
_TABLE = re.compile(r"^\|.*\n\|[-:| ]+\|\n(?:\|.*(?:\n|\Z))*", re.MULTILINE)
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_PROGRAM = re.compile(r"(?:\S*/)?(fm-mlx|python3?|pytest)$")

Rows = list[list[str]]


@dataclass(frozen=True)
class Document:
    """A Markdown file.

    Attributes:
        name: Its path in the repository.
        text: What is in it.
    """

    name: str
    text: str

    @cached_property
    def blocks(self) -> list[str]:
        """The blocks of code, fenced and indented."""
        fenced = [match[2] for match in _FENCE.finditer(self.text)]
        rest = _FENCE.sub("\n", self.text)
        return fenced + [
            re.sub(r"^ {4}", "", match[0], flags=re.MULTILINE) for match in _INDENTED.finditer(rest)
        ]

    @cached_property
    def prose(self) -> str:
        """The text without blocks of code."""
        return _INDENTED.sub("\n", _FENCE.sub("\n", self.text))

    @cached_property
    def spans(self) -> list[str]:
        """Code in the running text, and the commands in comments."""
        return inline_code(self.prose) + _MADE_BY.findall(self.prose)

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of every command of ours that is named, from the program on."""
        for span in self.spans:
            yield from commands_in(span)
        for block in self.blocks:
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                # after a wide gap stands what the command does
                yield from commands_in(re.split(r"(?<=\S) {3,}", line.removeprefix("$ "))[0])

    @property
    def links(self) -> Iterator[tuple[bool, str]]:
        """Whether it is an image, and the target, of every link but those to other sites."""
        for image, target in _LINK.findall(_INLINE.sub("", self.prose)):
            if not re.match(r"[a-z]+:", target):
                yield bool(image), target

    @cached_property
    def anchors(self) -> set[str]:
        """What links may point to: headings, by the rule of GitHub."""
        titles = [title.replace("`", "") for _, title in _HEADING.findall(self.prose)]
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    @property
    def sections(self) -> Iterator[tuple[str, str]]:
        """Each heading, and the text from there to the next."""
        parts = re.split(r"^#+ (.+)$", self.outside_fences, flags=re.MULTILINE)
        yield from zip(parts[1::2], parts[2::2], strict=True)

    @property
    def outside_fences(self) -> str:
        """The text with the # of comments in code taken for no heading."""
        return _FENCE.sub(lambda match: re.sub(r"^#", " #", match[0], flags=re.M), self.text)

    @property
    def made_tables(self) -> Iterator[tuple[str, Rows]]:
        """The command that prints a table, and the table as it stands, wherever one is named."""
        for match in _MADE_BY.finditer(self.text):
            after = self.text[match.end() :].lstrip()
            if table := _TABLE.match(after):
                yield match[1], cells(table[0])

    @property
    def loose_comments(self) -> list[str]:
        """The commands of comments that stand before neither a table nor an image."""
        return [
            match[1]
            for match in _MADE_BY.finditer(self.text)
            if not re.match(r"\s*(\||!\[)", self.text[match.end() :])
        ]

    @property
    def figures(self) -> Iterator[tuple[str, str]]:
        """The target of each image, with the paragraphs before, around and after it."""
        whole_blocks = _FENCE.sub(lambda match: re.sub(r"\n\s*\n", "\n", match[0]), self.text)
        paragraphs = re.split(r"\n\s*\n", whole_blocks)
        for i, paragraph in enumerate(paragraphs):
            for image, target in _LINK.findall(paragraph):
                if image:
                    yield target, "\n\n".join(paragraphs[max(0, i - 1) : i + 2])


def documents() -> list[Document]:
    """All of them."""
    paths = sorted({path for place in PLACES for path in ROOT.glob(place)})
    return [Document(str(path.relative_to(ROOT)), path.read_text("utf-8")) for path in paths]


def inline_code(text: str) -> list[str]:
    """What stands between backticks in running text, each in one line."""
    return [" ".join(match[2].split()) for match in _INLINE.finditer(text)]


def tables(text: str) -> list[Rows]:
    """The tables of a text, each as the cells of its head and its rows."""
    return [cells(match[0]) for match in _TABLE.finditer(text)]


def cells(table: str) -> Rows:
    """The cells of a table, without the line below its head."""
    lines = [line.strip().strip("|").split("|") for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line] for line in lines[:1] + lines[2:]]


def commands_in(line: str) -> Iterator[list[str]]:
    """The words of each command of ours in a line of a shell."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # no line of a shell: an apostrophe in what a command prints
        return
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", "||", ";", ">"):
            parts.append([])
        else:
            parts[-1].append(word)
    for part in parts:
        while part and ("=" in part[0] or part[0] == "env"):
            part = part[1:]  # variables of the environment
        if part and (program := _PROGRAM.match(part[0])):
            yield [program[1], *part[1:]]
