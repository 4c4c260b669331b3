"""A tokenizer for Metal Shading Language, enough to find and rewrite constructs in place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

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


class Token(NamedTuple):
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


@lru_cache(maxsize=64)
def tokenize(text: str) -> tuple[Token, ...]:
    """The tokens of a text, without white space and comments."""
    tokens: list[Token] = []
    line, opened = 1, []
    for match in _LEXER.finditer(text):
        kind = match.lastgroup or ""
        if kind not in ("space", "comment"):
            found = Token(kind, match[0], match.start(), line)
            if found.text in ("[", "[["):
                opened.append(found.text)
            if found.text == "]]" and opened[-1:] != ["[["]:
                # the end of a[b[i]], not of an attribute
                tokens += [Token(kind, "]", found.start + i, line) for i in (0, 1)]
                opened = opened[:-2]
            else:
                tokens.append(found)
                if found.text in ("]", "]]"):
                    opened = opened[:-1]
        if kind in ("space", "comment", "string"):
            line += match[0].count("\n")
    return tuple(tokens)


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


def preprocessor_lines(tokens: Sequence[Token]) -> set[int]:
    """Indices of the tokens on lines that begin with ``#``, and on those they go on in."""
    inside, found = False, set()
    for i, token in enumerate(tokens):
        begins = i == 0 or token.line != tokens[i - 1].line
        if begins:
            continues = i > 0 and inside and tokens[i - 1].text == "\\"
            inside = continues or token.text == "#"
        if inside:
            found.add(i)
    return found


def macro_end(tokens: Sequence[Token], at: int, directives: set[int]) -> int:
    """Where the macro ends that `at` is in, or the text where it is in none.

    Args:
        tokens: the text.
        at: an index.
        directives: what `preprocessor_lines` gives for the text.
    """
    if at not in directives:
        return len(tokens)
    end = at + 1
    while end in directives and tokens[end].text != "#":
        end += 1
    return end


def statement_starts(tokens: Sequence[Token]) -> list[int]:
    """Indices of the tokens that may begin a statement or a declaration."""
    directives = preprocessor_lines(tokens)
    starts = []
    for i, token in enumerate(tokens):
        if token.text in ("\\", "#"):
            continue
        before = tokens[i - 1].text if i else ";"
        after_directive = i - 1 in directives and i not in directives
        if before in (";", "{", "}", "else", "do") or after_directive:
            starts.append(i)
        elif before == ")" and i not in directives and token.text not in ("{", ";"):
            opened = opening(tokens, i - 1)
            if opened and tokens[opened - 1].text in ("if", "for", "while"):
                starts.append(i)
        elif i in directives and _begins_macro(tokens, i):
            starts.append(i)
    return starts


def _begins_macro(tokens: Sequence[Token], at: int) -> bool:
    """Whether the body of ``#define NAME`` or ``#define NAME(...)`` begins at `at`."""
    first = at
    while first and tokens[first - 1].line == tokens[at].line:
        first -= 1
    head = [token.text for token in tokens[first : first + 2]]
    if head != ["#", "define"] or at < first + 3:
        # on the lines that a macro goes on in, a statement begins each
        return tokens[at - 1].text == "\\"
    has_parameters = (
        tokens[first + 3].text == "(" and tokens[first + 3].start == tokens[first + 2].end
    )
    return at == (matching(tokens, first + 3) + 1 if has_parameters else first + 3)


def opening(tokens: Sequence[Token], at: int) -> int:
    """Index of the bracket that the one at `at` closes; 0 if none does."""
    closing = tokens[at].text
    (opened,) = (o for o, c in _OPENING.items() if c == closing)
    depth = 0
    for i in range(at, -1, -1):
        depth += (tokens[i].text == closing) - (tokens[i].text == opened)
        if depth == 0:
            return i
    return 0


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
    """The text with ``text[start:end]`` replaced for every (start, end, replacement).

    Of two that are put in at one place, the first one given comes first.
    """
    pieces, last = [], 0
    for start, end, replacement in sorted(edits, key=lambda edit: edit[:2]):
        pieces += [text[last:start], replacement]
        last = end
    return "".join(pieces) + text[last:]
