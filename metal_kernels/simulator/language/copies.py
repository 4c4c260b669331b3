"""Where a text copies structures: there the calls of include/msl_memory.h are written.

Nothing is known of types but what the declarations say (structures.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from .dialect import INDEXED, Edit
from .names import QUALIFIERS, Scopes, after_type
from .structures import Structures, functions
from .tokens import (
    Token,
    macro_end,
    matching,
    opening,
    preprocessor_lines,
    statement_starts,
    template_end,
)


def values(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    """Values of structures, where they initialise a variable or are returned or passed."""
    yield from _initialisers(tokens, known)
    yield from _returns(tokens, known)
    yield from _arguments(tokens, known)


def _wrapped(part: Sequence[Token], what: str = "metal::msl_value") -> Iterator[Edit]:
    if part and part[0].text not in ("{", "["):
        yield part[0].start, part[0].start, f"{what}("
        yield part[-1].end, part[-1].end, ")"


def _copying(name: str, known: Structures) -> str:
    """The function that gives a value of a type."""
    return f"metal::msl_make<{name}>" if name in known.made else "metal::msl_value"


def _initialisers(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    """``S t = s[1];`` and ``auto t = s[1];``"""
    directives = preprocessor_lines(tokens)
    for start in _with_for(tokens):
        i = start
        while i < len(tokens) and tokens[i].text in QUALIFIERS:
            i += 1
        if i >= len(tokens) or tokens[i].text not in known.types | {"auto"}:
            continue
        if any(token.text == "constant" for token in tokens[start:i]):
            continue  # made in place
        function = _copying(tokens[i].text, known)
        i = after_type(tokens, i)
        while i < len(tokens) and tokens[i].text in QUALIFIERS:
            i += 1
        while i + 1 < len(tokens) and tokens[i].kind == "name" and tokens[i + 1].text == "=":
            end = _expression_end(tokens, i + 2)
            end = min(end, macro_end(tokens, start, directives))
            yield from _wrapped(tokens[i + 2 : end], function)
            i = end + 1
            if end >= len(tokens) or tokens[end].text != ",":
                break


def _with_for(tokens: Sequence[Token]) -> list[int]:
    """Starts of statements, and of the declarations in ``for (...)``."""
    inside = [
        i + 2
        for i, token in enumerate(tokens[:-2])
        if token.text == "for" and tokens[i + 1].text == "("
    ]
    return sorted({*statement_starts(tokens), *inside})


def _expression_end(tokens: Sequence[Token], at: int) -> int:
    """Index of the ``,`` or ``;`` that ends an expression."""
    while at < len(tokens) and tokens[at].text not in (",", ";", ")", "}"):
        if tokens[at].text in ("(", "[", "{"):
            at = matching(tokens, at)
        elif tokens[at].text == "<" and _opens_template(tokens, at):
            at = template_end(tokens, at)
        at += 1
    return at


def _opens_template(tokens: Sequence[Token], at: int) -> bool:
    """Whether ``<`` follows its name at once and is closed before a ``(``, as in f<a, b>(c)."""
    end = template_end(tokens, at)
    closed = end + 1 < len(tokens) and tokens[end].text == ">"
    return (
        at > 0
        and tokens[at - 1].end == tokens[at].start
        and closed
        and tokens[end + 1].text in ("(", "::", "{")
    )


def _returns(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    for name, _, (opened, closed) in functions(tokens):
        at = next(i for i in range(opened, -1, -1) if tokens[i] is name) - 1
        if at >= 0 and tokens[at].text == ">":
            while at and tokens[at].text not in known.types | {";", "{", "}"}:
                at -= 1
        if at < 0 or tokens[at].text not in known.types:
            continue
        function = _copying(tokens[at].text, known)
        for i in range(opened, closed):
            if tokens[i].text == "return":
                yield from _wrapped(tokens[i + 1 : _expression_end(tokens, i + 1)], function)


def _arguments(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    definitions = {id(name) for name, *_ in functions(tokens)}
    for i, token in enumerate(tokens[:-1]):
        places = known.by_value.get(token.text)
        if not places or id(token) in definitions:
            continue
        opened = i + 1
        if tokens[opened].text == "<" and _opens_template(tokens, opened):
            opened = template_end(tokens, opened) + 1
        if tokens[opened].text != "(":
            continue
        for k, part in enumerate(_arguments_of(tokens, opened)):
            if k in places and not _declares(part):
                yield from _wrapped(part, _copying(places[k], known))


def _declares(part: Sequence[Token]) -> bool:
    """Whether the part of a list is a parameter, with its type, and no argument."""
    return any(a.kind == b.kind == "name" for a, b in itertools.pairwise(part))


def _arguments_of(tokens: Sequence[Token], opened: int) -> list[Sequence[Token]]:
    parts, at, closed = [], opened + 1, matching(tokens, opened)
    while at < closed:
        end = min(_expression_end(tokens, at), closed)
        parts.append(tokens[at:end])
        at = end + 1
    return parts


def assignments(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    """``s[1] = t;``"""
    scopes = Scopes(tokens, known.types, known.parameters, known.members)
    for start in statement_starts(tokens):
        name_at, subscripts, end = _chain(tokens, start)
        if end >= len(tokens) or tokens[end].text != "=":
            continue
        variable = scopes.variable(name_at)
        if not variable or subscripts > variable.points:
            continue  # not of a structure, or a component
        stop = _expression_end(tokens, end + 1)
        if stop >= len(tokens) or tokens[stop].text != ";":
            continue
        yield tokens[start].start, tokens[start].start, "metal::msl_assign("
        yield tokens[end - 1].end, tokens[end].end, ","
        if tokens[end + 1].text == "{":
            target = " ".join(token.text for token in tokens[start:end])
            made = f"metal::msl_value_t<decltype({target})>"
            yield tokens[end + 1].start, tokens[end + 1].start, made
        else:
            yield from _wrapped(tokens[end + 1 : stop], _copying(variable.type, known))
        yield tokens[stop].start, tokens[stop].start, ")"


def _chain(tokens: Sequence[Token], at: int) -> tuple[int, int, int]:
    """Of ``*a.b[1]->c``: where the last name stands, the subscripts behind it, and the end."""
    while at < len(tokens) and tokens[at].text in ("*", "("):
        at += 1
    if at >= len(tokens) or tokens[at].kind != "name":
        return at, 0, len(tokens)
    name_at, subscripts = at, 0
    at += 1
    while at < len(tokens):
        text = tokens[at].text
        if text in (".", "->") and at + 1 < len(tokens) and tokens[at + 1].kind == "name":
            name_at, subscripts = at + 1, 0
            at += 2
        elif text == "[" or (text == "(" and tokens[at - 1].kind == "name"):
            subscripts += text == "["
            at = matching(tokens, at) + 1
        elif text == ")":
            at += 1
        else:
            break
    return name_at, subscripts, at


def method_calls(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    """``s[1].f()`` of a member function with an address space: on a copy of the object."""
    if not known.methods:
        return
    for i in range(1, len(tokens) - 1):
        if tokens[i].text not in known.methods or tokens[i + 1].text != "(":
            continue
        if tokens[i - 1].text not in (".", "->"):
            continue
        start = _chain_start(tokens, i - 1)
        dereferenced = "*" if tokens[i - 1].text == "->" else ""
        yield tokens[start].start, tokens[start].start, f"metal::msl_value({dereferenced}"
        yield tokens[i - 1].start, tokens[i - 1].end, ")."


def _chain_start(tokens: Sequence[Token], end: int) -> int:
    """Where ``a.b[1]`` before the index `end` begins."""
    at = end - 1
    while at >= 0:
        if tokens[at].text in ("]", ")", "}"):
            at = opening(tokens, at) - 1
            if at >= 0 and tokens[at].kind != "name" and tokens[at].text not in ("]", ")"):
                return at + 1
            continue
        if at and tokens[at - 1].text in (".", "->", "::"):
            at -= 2
            continue
        return at
    return 0


def elements(tokens: Sequence[Token], known: Structures) -> Iterator[Edit]:
    """Packed vectors, matrices and arrays in memory: their values, and ``p[i][j]``."""
    scopes = Scopes(tokens, known.types, known.parameters, known.members)
    for i, token in enumerate(tokens[:-1]):
        is_use = token.kind == "name" and not scopes.declares(i)
        variable = scopes.variable(i) if is_use else None
        if not variable or variable.type not in INDEXED:
            continue
        start = _chain_start(tokens, i + 1)
        end = i + 1
        if variable.points:
            if tokens[end].text != "[":
                continue
            end = matching(tokens, end) + 1
        elif start == i and tokens[end].text != "[":
            continue  # a variable, which is in thread memory
        before = tokens[start - 1].text if start else ";"
        if end < len(tokens) and tokens[end].text == "[":
            closed = matching(tokens, end)
            yield tokens[start].start, tokens[start].start, "metal::msl_at("
            yield tokens[end].start, tokens[end].end, ", "
            yield tokens[closed].start, tokens[closed].end, ")"
        elif end < len(tokens) and _is_value(before, tokens[end].text):
            yield tokens[start].start, tokens[start].start, "metal::msl_value("
            yield tokens[end - 1].end, tokens[end - 1].end, ")"


_VALUE_BEFORE = re.compile(r"[-(,=+*/<>?:!]|return|&&|\|\||[-+*/]=|[<>=!]=")
_VALUE_AFTER = re.compile(r"[-),;+*/<>?:\]}]|&&|\|\||[<>=!]=")


def _is_value(before: str, after: str) -> bool:
    return bool(_VALUE_BEFORE.fullmatch(before) and _VALUE_AFTER.fullmatch(after))
