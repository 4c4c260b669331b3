"""What Apple's Metal compiler rejects although clang accepts it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from ..kinds import FAST_MATH_NAN, NOT_METAL
from ..report import Finding
from .tokens import (
    Token,
    matching,
    split_at_commas,
    template_end,
    tokenize,
)

_ABSENT = {
    "goto": "goto",
    "virtual": "virtual functions",
    "asm": "inline assembly",
    "__asm__": "inline assembly",
    "try": "exceptions",
    "throw": "exceptions",
    "new": "new",
    "delete": "delete",
    "dynamic_cast": "dynamic_cast",
    "typeid": "typeid",
    "thread_local": "thread_local",
    "double": "double",
    "printf": "printf",
    "alloca": "alloca",
}

# What the math mode "fast" takes away.
_TESTS_OF_VALUES = {"isnan", "isinf", "isfinite", "isnormal", "isordered", "isunordered"}
_SPECIAL_VALUES = {"INFINITY", "NAN", "HUGE_VALF", "HUGE_VALH", "infinity", "quiet_NaN"}

_SPACES = {"device", "constant", "thread", "threadgroup"}
_QUALIFIERS = {"const", "volatile"}
_INTEGERS = {"char", "short", "int", "long"}
_TYPES = {
    *("float", "half", "bfloat", "bool", "size_t", "auto"),
    *("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"),
    *("unsigned", "signed", "void"),
    *(f"{u}int{n}_t" for u in ("", "u") for n in (8, 16, 32, 64)),
    *("bfloat16_t", "float16_t"),
}
_VECTORS = {f"{t}{n}" for t in _TYPES for n in (2, 3, 4)}
_CONTROL = {"if", "for", "while", "switch", "return", "sizeof", "catch"}
# What brackets may follow that are neither a call nor parameters.
_NOT_A_FUNCTION = _CONTROL | {"constexpr", "__attribute__"}


@cache
def lint(source: str, header: str = "") -> tuple[Finding, ...]:
    """Findings of kind "not-metal" in a kernel's source and header."""
    found = []
    # the header declares what the source uses
    structs = _structs(tokenize(f"{header}\n{source}"))
    for file, text in (("header", header), ("source", source)):
        tokens = tokenize(text)
        types = _TYPES | _VECTORS | _template_types(tokens) | structs
        found += _at(file, _absent(tokens))
        found += _at(file, _lambdas(tokens))
        found += _at(file, _pointers_without_space(tokens, types))
        if file == "header":
            found += _at(file, _threadgroup_in_function(tokens))
            found += _at(file, _recursion(tokens))
        found += _at(file, _function_pointers(tokens))
    return tuple(found)


@cache
def fast_math_lint(source: str, header: str = "") -> tuple[Finding, ...]:
    """Findings where a text relies on values that the math mode "fast" assumes away."""
    return tuple(
        finding
        for file, text in (("header", header), ("source", source))
        for finding in _at(file, _special_values(tokenize(text)), FAST_MATH_NAN)
    )


def _at(file: str, found: Iterator[tuple[Token, str]], kind: str = NOT_METAL) -> list[Finding]:
    return [Finding(kind, message, file, token.line) for token, message in found]


def _special_values(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    for i, token in enumerate(tokens):
        if i and tokens[i - 1].text in (".", "->"):
            continue
        if token.text in _TESTS_OF_VALUES and i + 1 < len(tokens) and tokens[i + 1].text == "(":
            yield token, f'{token.text}() is meaningless in math mode "fast", which has no NaN'
        elif token.text in _SPECIAL_VALUES:
            yield (
                token,
                f'{token.text} is undefined in math mode "fast", which has only finite values',
            )


def _function_pointers(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    """Declarations ``T (*name)(...)`` and ``T (&name)(...)``."""
    for i in range(1, len(tokens) - 4):
        opened, star, name, closed, parameters = tokens[i : i + 5]
        before = tokens[i - 1]
        if (opened.text, closed.text, parameters.text) != ("(", ")", "("):
            continue
        declares = (before.kind == "name" and before.text not in _CONTROL) or before.text == ">"
        if star.text in ("*", "&") and name.kind == "name" and declares:
            yield name, f"{name.text!r} is a pointer to a function, which Metal does not have"


def _absent(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    for i, token in enumerate(tokens):
        if token.text in _ABSENT and not (i and tokens[i - 1].text in (".", "->", "::")):
            yield token, f"Metal has no {_ABSENT[token.text]}"


def _lambdas(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    for i, token in enumerate(tokens):
        if token.text != "[" or not i or tokens[i - 1].text not in ("=", "(", ",", "return"):
            continue
        end = matching(tokens, i)
        if end + 1 < len(tokens) and tokens[end + 1].text == "(":
            after = matching(tokens, end + 1)
            if after + 1 < len(tokens) and tokens[after + 1].text in ("{", "->"):
                yield token, "lambdas came with Metal 3.2 (macOS 15)"


def _pointers_without_space(
    tokens: Sequence[Token], types: set[str]
) -> Iterator[tuple[Token, str]]:
    """Declarations, casts and aliases with ``T*`` or ``T&`` that do not say where it points."""
    for i, token in enumerate(tokens):
        if i and tokens[i - 1].text not in (";", "{", "}", "(", ",", "=", "typedef"):
            continue
        at, spaces = i, set()
        while at < len(tokens) and tokens[at].text in _SPACES | _QUALIFIERS:
            spaces.add(tokens[at].text)
            at += 1
        if at >= len(tokens) or tokens[at].text not in types | {"vec"}:
            continue
        deduced = tokens[at].text == "auto"
        if tokens[at].text == "vec" and at + 1 < len(tokens) and tokens[at + 1].text == "<":
            at = template_end(tokens, at + 1)
        at += 1
        while at < len(tokens) and tokens[at].text in _SPACES | _QUALIFIERS | _INTEGERS:
            spaces.add(tokens[at].text)
            at += 1
        star = at
        while at < len(tokens) and tokens[at].text in ("*", "&", "const"):
            at += 1
        if at == star or at + 1 >= len(tokens):
            continue
        if tokens[at].kind == "name":
            what, follows = repr(tokens[at].text), tokens[at + 1].text
            declares = follows in ("=", ";", ",", ")", "[", "(")
        else:
            what = f"to {token.text!r}"
            declares = tokens[at].text in (")", ";", ",")
        # auto* and auto& take the space of what they are initialised with
        if declares and not spaces & _SPACES and not deduced:
            yield token, f"pointer or reference {what} has no address space"


def _threadgroup_in_function(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    depth = kernel_end = 0
    for i, token in enumerate(tokens):
        depth += (token.text == "{") - (token.text == "}")
        if token.text == "kernel":
            body = next((j for j in range(i, len(tokens)) if tokens[j].text == "{"), i)
            kernel_end = matching(tokens, body) if body > i else kernel_end
        begins = i > 0 and tokens[i - 1].text in (";", "{", "}")
        if token.text != "threadgroup" or depth == 0 or not begins or i < kernel_end:
            continue
        statement = []
        for following in tokens[i:]:
            if following.text in (";", "="):
                break
            statement.append(following.text)
        if not {"*", "&", "("} & set(statement):
            yield token, "a threadgroup variable outside the kernel function"


def _recursion(tokens: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    """Functions that call themselves, directly or by way of others."""
    functions = _functions(tokens)
    overloads = Counter(token.text for token, _ in functions)
    # an overload may call another one
    bodies = {token.text: body for token, body in functions if overloads[token.text] == 1}
    calls = {name: _calls(body, bodies) for name, body in bodies.items()}
    for token, _ in functions:
        if token.text in calls and (by := _way_back(token.text, calls)) is not None:
            through = f" through {' and '.join(map(repr, by))}" if by else ""
            yield token, f"{token.text!r} calls itself{through}"


def _calls(body: Sequence[Token], names: Iterable[str]) -> list[str]:
    """The functions of a text that a body calls."""
    return [
        token.text
        for before, token, after in zip(body, body[1:], body[2:], strict=False)
        if token.text in names and after.text == "(" and before.text not in (".", "::", "->")
    ]


def _way_back(name: str, calls: dict[str, list[str]]) -> list[str] | None:
    """The functions between a function and its call of itself; None if there is no such call."""
    ways = [(called, []) for called in calls[name]]
    seen = set()
    while ways:
        at, by = ways.pop(0)
        if at == name:
            return by
        if at not in seen:
            seen.add(at)
            ways += [(called, [*by, at]) for called in calls[at]]
    return None


def _template_types(tokens: Sequence[Token]) -> set[str]:
    """Names that ``template <typename T, ...>`` introduces."""
    names = set()
    for i in range(len(tokens) - 1):
        if tokens[i].text == "template" and tokens[i + 1].text == "<":
            inside = tokens[i + 2 : template_end(tokens, i + 1)]
            for part in split_at_commas(inside):
                if len(part) > 1 and part[0].text in ("typename", "class"):
                    names.add(part[1].text)
    return names


def _structs(tokens: Sequence[Token]) -> set[str]:
    """Names of the structs and classes that a text declares."""
    return {
        name.text
        for keyword, name in itertools.pairwise(tokens)
        if keyword.text in ("struct", "class") and name.kind == "name"
    }


def _functions(tokens: Sequence[Token]) -> list[tuple[Token, Sequence[Token]]]:
    """The name and the body of every function that a text defines."""
    functions = []
    for i in range(1, len(tokens) - 1):
        token = tokens[i]
        if token.kind != "name" or token.text in _NOT_A_FUNCTION or tokens[i + 1].text != "(":
            continue
        after = matching(tokens, i + 1) + 1
        if after < len(tokens) and tokens[after].text == "const":
            after += 1
        if after < len(tokens) and tokens[after].text == "{" and tokens[i - 1].text != ".":
            functions.append((token, tokens[after : matching(tokens, after)]))
    return functions
