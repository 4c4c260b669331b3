"""A tokenizer for Metal Shading Language, enough to find and rewrite constructs in place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LEXER = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<punctuation>::|\[\[|\]\]|->|\+\+|--|[-+*/%&|^!=<>]=|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)

_OPENING = {"(": ")", "[": "]", "{": "}", "[[": "]]"}


@dataclass(frozen=True)
class Token:
    """A piece of source text.

    Attributes:
        kind: What it is: "name", "number", "string" or "punctuation".
        text: How it stands in the source.
        start: The offset of its first character.
        line: The number of its line, counted from 1.
    """

    kind: str
    text: str
    start: int
    line: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokenize(text: str) -> list[Token]:
    """The tokens of a text, without white space and comments."""
    tokens, line = [], 1
    for match in _LEXER.finditer(text):
        kind = match.lastgroup or ""
        if kind not in ("space", "comment"):
            tokens.append(Token(kind, match[0], match.start(), line))
        line += match[0].count("\n")
    return tokens


def matching(tokens: Sequence[Token], at: int) -> int:
    """Index of the bracket that closes the one at `at`; the last index if none does."""
    depth = 0
    opening, closing = tokens[at].text, _OPENING[tokens[at].text]
    for i in range(at, len(tokens)):
        depth += (tokens[i].text == opening) - (tokens[i].text == closing)
        if depth == 0:
            return i
    return len(tokens) - 1


def template_end(tokens: Sequence[Token], at: int) -> int:
    """Index of the ``>`` that closes the ``<`` at `at`; the last index if none does."""
    depth = 0
    for i in range(at, len(tokens)):
        depth += (tokens[i].text == "<") - (tokens[i].text == ">")
        if depth == 0 or tokens[i].text in (";", "{"):
            return i
    return len(tokens) - 1


def split_at_commas(tokens: Sequence[Token]) -> list[list[Token]]:
    """Parts between commas that stand in no bracket."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += token.text in ("(", "[", "{", "<", "[[")
        depth -= token.text in (")", "]", "}", ">", "]]")
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]


def rewrite(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """The text with ``text[start:end]`` replaced for every (start, end, replacement)."""
    pieces, last = [], 0
    for start, end, replacement in sorted(edits):
        pieces += [text[last:start], replacement]
        last = end
    return "".join(pieces) + text[last:]
