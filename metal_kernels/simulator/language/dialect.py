"""Metal text rewritten where C++ says it in another way: declarations and constructors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Set

from .names import SPACES, after_type
from .tokens import (
    Token,
    macro_end,
    matching,
    preprocessor_lines,
    split_at_commas,
    statement_starts,
    template_end,
)

Edit = tuple[int, int, str]

_SCALARS = ("bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong")
_FLOATS = ("half", "float", "bfloat")
SCALARS = {*_SCALARS, *_FLOATS}
VECTORS = {f"{scalar}{n}" for scalar in SCALARS for n in (2, 3, 4)}
BOOL_VECTORS = {f"bool{n}" for n in (2, 3, 4)}
PACKED = {f"packed_{vector}" for vector in VECTORS - BOOL_VECTORS}
PACKED3 = {name for name in PACKED if name.endswith("3")}
_MATRICES = {f"{t}{c}x{r}" for t in ("half", "float") for c in (2, 3, 4) for r in (2, 3, 4)}
# with the names of simd/simd.h
MATRICES = _MATRICES | {f"{prefix}_{m}" for prefix in ("simd", "matrix") for m in _MATRICES}
_SIMD_VECTORS = {f"{prefix}_{v}" for prefix in ("simd", "vector") for v in VECTORS}
# Classes of include/ whose elements are reached by an index.
INDEXED = PACKED3 | MATRICES | {"array"}
# What has constructors in Metal, and none for clang.
CONSTRUCTED = VECTORS | PACKED | MATRICES | _SIMD_VECTORS
_CONSTRUCTED_TEMPLATES = {"vec", "matrix"}

_HALF_TYPES = {"half", "float16_t", "bfloat", "bfloat16_t"}

COMPLEX = {"complex_t", "complex64_t"}

_COMPARISONS = {"==", "!=", "<=", ">=", "&&", "||"}


def static_variables(tokens: Sequence[Token], classes: Set[str] = COMPLEX) -> Iterator[Edit]:
    """``threadgroup T x[n];`` in a function: one variable for all threads of a threadgroup.

    Initialised with ``{}``, because clang calls no constructor in another address space; the
    runtime overwrites it for every threadgroup, so the optimiser must not rely on it: "used"
    keeps it from folding a variable that nobody writes. ``constant T x[n] = {...};`` in a
    function is static too: clang has no automatic variables in other address spaces. `classes`
    are those with constructors.
    """
    directives = preprocessor_lines(tokens)
    for i in statement_starts(tokens):
        specifiers, ends = _declaration(tokens, i, macro_end(tokens, i, directives))
        texts = [token.text for token in specifiers]
        if not ends:
            continue
        if "threadgroup" in texts and tokens[i + 1].text in classes:
            yield from _room(tokens, i)
        elif "threadgroup" in texts:
            yield tokens[i].start, tokens[i].start, "static __attribute__((used)) "
            for j, token in enumerate(specifiers):
                if token.text == "alignas":
                    # which clang takes nowhere but in front
                    closed = specifiers[matching(specifiers, j + 1)]
                    yield token.start, token.end, "__attribute__((aligned"
                    yield closed.end, closed.end, "))"
            for end in ends:
                yield end, end, " = {}"
        elif "constant" in texts and "static" not in texts:
            yield tokens[i].start, tokens[i].start, "static "


def _room(tokens: Sequence[Token], at: int) -> Iterator[Edit]:
    """``threadgroup C x[n];`` of a class with constructors: a reference to room for it."""
    name_at = after_type(tokens, at + 1)
    end = next(i for i in range(name_at, len(tokens)) if tokens[i].text == ";")
    type_text, *variables = (
        " ".join(token.text for token in part)
        for part in ([*tokens[at + 1 : name_at]], *split_at_commas(tokens[name_at:end]))
    )
    for variable in variables:
        name, _, size = variable.partition(" ")
        room = f"threadgroup uint {name}[(sizeof({type_text}{size}) + 3) / 4]"
        yield (
            tokens[at].start,
            tokens[end].start if variable == variables[-1] else tokens[at].start,
            f"threadgroup {type_text} (&{name}){size} = []() -> auto& {{ "
            f"static __attribute__((used, aligned(alignof({type_text})))) {room} = {{}}; "
            f"return (threadgroup {type_text}(&){size}){name}; }}()"
            + ("" if variable == variables[-1] else "; "),
        )


def _declaration(tokens: Sequence[Token], at: int, stop: int) -> tuple[Sequence[Token], list[int]]:
    """The tokens of a declaration before its variables, and the offsets behind those.

    `stop` is where the macro ends that it is in. Nothing if it declares no variable of
    the threadgroup or constant address space.
    """
    ends: list[int] = []
    if tokens[at].text in ("template", "using", "typedef", "extern", "return"):
        return [], []
    space, is_constant = False, False
    i = first = at
    while i < stop:
        text = tokens[i].text
        if text in ("threadgroup", "constant") and not ends:
            space = True
            is_constant |= text == "constant"
        if text in ("*", "&", "{", "}", "[["):
            return [], []
        if text == "alignas" and tokens[i + 1].text == "(":
            i = matching(tokens, i + 1) + 1
            continue
        if text == "(" or (text == "=" and not is_constant):
            return [], []
        if text == "=" and space:
            return tokens[at:first], [tokens[i].start]
        if text in (";", ","):
            ends.append(tokens[i - 1].end)
        if text == ";":
            return (tokens[at:first], ends) if space and not is_constant else ([], [])
        first = i if not ends else first
        if text == "[":
            i = matching(tokens, i)
        elif text == "<":
            i = template_end(tokens, i)
        i += 1
    # the body of a macro needs no semicolon
    in_macro = space and not is_constant and at and tokens[at - 1].text != ";"
    return (tokens[at:first], [*ends, tokens[stop - 1].end]) if in_macro else ([], [])


def constructors(tokens: Sequence[Token], aliases: frozenset[str]) -> Iterator[Edit]:
    """``float4(a, b)``: clang's vectors have no constructors, include/ has a function.

    So for ``float4 v(a, b);``.
    """
    directives = preprocessor_lines(tokens)
    for i, end in _constructed(tokens, aliases):
        if tokens[end + 1].text == "(":
            if _declares_pointer(tokens, i, end + 1):
                continue
            yield tokens[i].start, tokens[i].start, "metal::msl_make<"
            yield tokens[end].end, tokens[end].end, ">"
        elif (
            tokens[end + 1].kind == "name"
            and tokens[end + 2].text == "("
            and i not in directives
            and _initialises(tokens, end + 2)
        ):
            type_text = "".join(t.text for t in tokens[i : end + 1])
            opened = tokens[end + 2]
            yield opened.start, opened.end, f" = metal::msl_make<{type_text}>("


def _declares_pointer(tokens: Sequence[Token], at: int, opened: int) -> bool:
    """Whether a type and what stands in brackets declare ``float4 (*f)(...)`` or ``(*a)[3]``."""
    if tokens[opened + 1].text not in ("*", "&", *SPACES):
        return False
    begins = at == 0 or tokens[at - 1].text in (";", "{", "}", "(", ",")
    following = matching(tokens, opened) + 1
    after = tokens[following].text if following < len(tokens) else ""
    return after == "(" or (begins and after == "[") or tokens[opened + 1].text in SPACES


def _constructed(tokens: Sequence[Token], aliases: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Where a type stands that has constructors in Metal: its first and last token."""
    for i, token in enumerate(tokens[:-2]):
        if i and tokens[i - 1].text in ("::", "operator", ".", "->"):
            continue
        end = i
        if token.text == "metal" and tokens[i + 1].text == "::" and i + 3 < len(tokens):
            end = i + 2
        if tokens[end].text in _CONSTRUCTED_TEMPLATES and tokens[end + 1].text == "<":
            end = template_end(tokens, end + 1)
        elif tokens[end].text not in CONSTRUCTED and tokens[end].text not in aliases:
            continue
        if end + 2 < len(tokens):
            yield i, end


def truths(tokens: Sequence[Token], aliases: frozenset[str]) -> Iterator[Edit]:
    """``float4(a == b)``: clang's comparisons of vectors give -1 for true, Metal's true."""
    for _, end in _constructed(tokens, aliases):
        if tokens[end + 1].text != "(":
            continue
        closed = matching(tokens, end + 1)
        if _compares(tokens[end + 2 : closed]):
            yield tokens[end + 1].end, tokens[end + 1].end, "metal::msl_truth("
            yield tokens[closed].start, tokens[closed].start, ")"


def _initialises(tokens: Sequence[Token], at: int) -> bool:
    """Whether the brackets behind a name hold values, and are no list of parameters."""
    end = matching(tokens, at)
    inside = tokens[at + 1 : end]
    if not inside or end + 1 >= len(tokens) or tokens[end + 1].text not in (";", ","):
        return False
    words = {token.text for token in inside if token.kind == "name"}
    if words & {"device", "constant", "thread", "threadgroup", "const"}:
        return False
    pairs = itertools.pairwise(inside)
    return not any(a.kind == b.kind == "name" for a, b in pairs)


def _compares(expression: Sequence[Token]) -> bool:
    """Whether a single expression is a comparison or a logical operation."""
    depth, compares = 0, False
    for before, token, after in zip(expression, expression[1:], expression[2:], strict=False):
        depth += before.text in ("(", "[", "{")
        depth -= token.text in (")", "]", "}")
        if depth == 0 and token.text in (",", "?", "|", "&", "^"):
            return False
        # `a < b`, not the brackets of a template
        spaced = before.end < token.start and token.end < after.start
        is_order = token.text in ("<", ">") and spaced
        compares |= depth == 0 and (token.text in _COMPARISONS or is_order)
    return compares or (len(expression) > 1 and expression[0].text == "!")


def vector_aliases(tokens: Sequence[Token]) -> frozenset[str]:
    """Names that ``using V = vec<...>`` or ``typedef vec<...> V`` gives to vectors."""
    names = set()
    constructed = CONSTRUCTED | _CONSTRUCTED_TEMPLATES
    for i in range(len(tokens) - 4):
        if tokens[i].text == "using" and tokens[i + 2].text == "=":
            at = i + (5 if tokens[i + 3].text == "metal" else 3)
            if tokens[at].text in constructed:
                names.add(tokens[i + 1].text)
        elif tokens[i].text == "typedef":
            at = i + (3 if tokens[i + 1].text == "metal" else 1)
            if tokens[at].text in _CONSTRUCTED_TEMPLATES and tokens[at + 1].text == "<":
                names.add(tokens[template_end(tokens, at + 1) + 1].text)
            elif tokens[at].text in CONSTRUCTED and tokens[at + 2].text == ";":
                names.add(tokens[at + 1].text)
    return frozenset(names)


def bfloat_literals(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``1.5bf``: clang has no such suffix."""
    for token in tokens:
        if token.kind == "number" and token.text.endswith("bf") and token.text[:2] != "0x":
            yield token.start, token.end, f"bfloat({float(token.text[:-2])}f)"


def half_casts(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``static_cast<bfloat>(x)`` and ``bfloat(x)``, where x may be a half, or the reverse."""
    parameters = type_parameters(tokens)
    for i, token in enumerate(tokens[:-2]):
        if token.text == "static_cast" and tokens[i + 1].text == "<":
            end = template_end(tokens, i + 1)
            if end == i + 3 < len(tokens) and tokens[i + 2].text in _HALF_TYPES | parameters:
                yield token.start, token.end, "metal::msl_cast"
        elif token.text in _HALF_TYPES and tokens[i + 1].text == "(" and i:
            before = tokens[i - 1]
            inside = tokens[i + 2].text
            if before.kind == "punctuation" and before.text != "::" and inside not in (")", "*"):
                yield token.start, token.end, f"metal::msl_cast<{token.text}>"


def type_parameters(tokens: Sequence[Token]) -> set[str]:
    """Names that ``template <typename T, ...>`` gives to types."""
    names = set()
    for i, token in enumerate(tokens[:-1]):
        if token.text == "template" and tokens[i + 1].text == "<":
            for part in split_at_commas(tokens[i + 2 : template_end(tokens, i + 1)]):
                if len(part) > 1 and part[0].text in ("typename", "class"):
                    names.add(part[1].text)
    return names


def array_parameters(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``constant const int64_t strides[2]`` as a parameter: clang wants the pointer."""
    for i in range(1, len(tokens) - 3):
        name, opened, size, closed = tokens[i : i + 4]
        if name.kind == "name" and (opened.text, closed.text) == ("[", "]"):
            first = i
            while first and tokens[first - 1].text not in ("(", ",", ";", "{", "}"):
                first -= 1
            parameter = first and tokens[first - 1].text in ("(", ",")
            if parameter and tokens[first].text == "constant" and size.kind in ("number", "name"):
                yield name.start, closed.end, f"* {name.text}"


def loggers(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``constant os_log log("a", "b");``: clang calls no constructor in constant memory."""
    for i in range(len(tokens) - 2):
        if tokens[i].text == "os_log" and tokens[i + 2].text == "(":
            end = matching(tokens, i + 2)
            if tokens[end + 1].text == ";":
                yield tokens[i + 2].start, tokens[end].end, " = {}"


def complex_constants(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``static constexpr constant complex64_t z = ...``: clang makes none in constant memory."""
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.text == "constant" and before.text == "constexpr" and after.text in COMPLEX:
            yield token.start, token.end, ""


def threadgroup_attributes(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``[[threadgroup(0)]]`` of a parameter: the headers define the word away."""
    for i in range(len(tokens) - 1):
        if tokens[i].text == "[[" and tokens[i + 1].text == "threadgroup":
            yield tokens[i].start, tokens[matching(tokens, i)].end, ""


def function_constants(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``constant bool b [[function_constant(200)]];`` has no value: it is defined as 0."""
    for i in range(len(tokens) - 1):
        if tokens[i].text == "[[" and tokens[i + 1].text == "function_constant":
            end = matching(tokens, i)
            yield tokens[i].start, tokens[end].end, " = {}"
