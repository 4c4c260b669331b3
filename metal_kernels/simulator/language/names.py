"""Which names of a text are of which type, as far as its declarations say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .tokens import Token, matching, opening, template_end

SPACES = {"device", "constant", "thread", "threadgroup"}
QUALIFIERS = {*SPACES, "const", "constexpr", "volatile", "static", "metal", "::"}


@dataclass(frozen=True)
class Variable:
    """A variable, parameter or member: its type, and whether it points to several."""

    type: str
    points: bool


class Scopes:
    """The variables of a text, each from its declaration to the end of its block.

    Args:
        tokens: the text.
        types: the types whose variables are wanted.
        outside: variables from elsewhere that the text uses.
        members: members of structures, which stand behind ``.`` and ``->``.
    """

    def __init__(
        self,
        tokens: Sequence[Token],
        types: set[str],
        outside: Mapping[str, Variable],
        members: Mapping[str, Variable],
    ):
        self._tokens = tokens
        self._outside = outside
        self._members = members
        self._declared: dict[str, list[tuple[int, int, Variable]]] = {}
        self._places = set()
        for name_at, variable in declarations(tokens, types):
            name = tokens[name_at].text
            visible = (name_at, _scope_end(tokens, name_at), variable)
            self._declared.setdefault(name, []).append(visible)
            self._places.add(name_at)

    def declares(self, at: int) -> bool:
        """Whether the name at an index is being declared."""
        return at in self._places

    def variable(self, at: int) -> Variable | None:
        """What the name at an index is; None if it is of no wanted type."""
        name = self._tokens[at].text
        if at and self._tokens[at - 1].text in (".", "->"):
            return self._members.get(name)
        for start, end, variable in reversed(self._declared.get(name, ())):
            if start <= at <= end:
                return variable
        return self._outside.get(name)


def declarations(tokens: Sequence[Token], types: set[str]) -> Iterator[tuple[int, Variable]]:
    """Where names are declared with one of the types, by ``auto x = (device S*)...`` too."""
    for i, token in enumerate(tokens):
        if token.text not in types:
            continue
        at = after_type(tokens, i)
        points = False
        while at < len(tokens) and tokens[at].text in QUALIFIERS | {"*", "&"}:
            points |= tokens[at].text == "*"
            at += 1
        if at + 1 >= len(tokens):
            continue
        if tokens[at].text == ")" and points:
            cast = opening(tokens, at)
            if cast > 1 and tokens[cast - 1].text == "=" and tokens[cast - 2].kind == "name":
                yield cast - 2, Variable(token.text, points)
            continue
        while at + 1 < len(tokens) and _is_declared(tokens, at):
            yield at, Variable(token.text, points or tokens[at + 1].text == "[")
            at = _next_declarator(tokens, at)
            points = False


def _is_declared(tokens: Sequence[Token], at: int) -> bool:
    follows = tokens[at + 1].text
    return tokens[at].kind == "name" and follows in ("=", ";", ",", ")", "[", "[[")


def _next_declarator(tokens: Sequence[Token], at: int) -> int:
    """The name after the comma of ``S a, b;``; the end of the text if there is none."""
    while at < len(tokens) and tokens[at].text not in (",", ";", ")", "}", "{"):
        if tokens[at].text in ("(", "[", "[["):
            at = matching(tokens, at)
        at += 1
    # behind the comma of a list of parameters there is a type, and a name follows it
    return at + 1 if at < len(tokens) and tokens[at].text == "," else len(tokens)


def after_type(tokens: Sequence[Token], at: int) -> int:
    """The index behind a type's name and its template arguments."""
    if at + 1 < len(tokens) and tokens[at + 1].text == "<":
        return template_end(tokens, at + 1) + 1
    return at + 1


def _scope_end(tokens: Sequence[Token], at: int) -> int:
    """Where the block ends in which a name is declared; of a parameter, the function's body."""
    closing = {")": "(", "}": "{"}
    depth = {"(": 0, "{": 0}
    i = at
    while i < len(tokens):
        text = tokens[i].text
        if text in depth:
            depth[text] += 1
        elif text in closing:
            depth[closing[text]] -= 1
            if text == ")" and depth["("] < 0:
                return _body_end(tokens, i)
            if text == "}" and depth["{"] < 0:
                return i
        i += 1
    return len(tokens)


def _body_end(tokens: Sequence[Token], closed: int) -> int:
    """Where the body or the statement behind a list of parameters, or behind ``for (..)`` ends."""
    i = closed + 1
    while i < len(tokens) and tokens[i].text not in ("{", ";"):
        i += 1
    if i < len(tokens) and tokens[i].text == "{":
        return matching(tokens, i)
    return i
