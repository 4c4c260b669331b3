"""Structures of the text, which Metal copies from and to every address space.

clang's constructors and assignments know thread memory only. Here every structure gets a
function that copies its members; copies.py calls it where the text copies one. Nothing is known
of types but what the declarations say: which names are structures, and which functions take and
give them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .dialect import BOOL_VECTORS, COMPLEX, INDEXED, PACKED3, Edit, type_parameters
from .names import QUALIFIERS, SPACES, Variable, declarations
from .refusals import NotSimulated
from .tokens import (
    Token,
    matching,
    split_at_commas,
    template_end,
)

_NO_MEMBER = {"using", "typedef", "static", "template", "friend", "enum", "static_assert"}
_ACCESS = {"public", "private", "protected"}


@dataclass
class Structures:
    """What a text says of its structures.

    Attributes:
        types: Names whose values are copied: structures, packed vectors, matrices, and type
            parameters of templates.
        made: Those of them that are made from the value of another type.
        members: Members of structures that are of these types, whatever the structure.
        parameters: Parameters of the kernel that are.
        by_value: For each function, the types of those of its parameters, by position.
        methods: Names of member functions with an address space.
        classes: Those of the types that have constructors.
    """

    types: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    members: dict[str, Variable] = field(default_factory=dict)
    parameters: dict[str, Variable] = field(default_factory=dict)
    by_value: dict[str, dict[int, str]] = field(default_factory=dict)
    methods: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=lambda: set(COMPLEX))


def structures(tokens: Sequence[Token], signature: Sequence[Token] = ()) -> Structures:
    """Those of a whole text, and of the kernel's parameters in its signature."""
    words = {token.text for token in tokens}
    own = {name for _, name, _ in _declared(tokens)} - {""}
    found = Structures(types=own | words & (INDEXED | BOOL_VECTORS | COMPLEX))
    if not found.types:
        return found
    found.types |= _aliases(tokens, found.types)
    found.made = found.types & (PACKED3 | BOOL_VECTORS)
    if found.types - BOOL_VECTORS:
        found.types |= type_parameters(tokens)
    found.members = _typed_members(tokens, found.types)
    found.parameters = {
        signature[at].text: variable for at, variable in declarations(signature, found.types)
    }
    for name, parameters, _ in functions(tokens):
        places = found.by_value.setdefault(name.text, {})
        for k, parameter in enumerate(split_at_commas(parameters)):
            if taken := _by_value(parameter, found.types):
                places[k] = taken
    found.classes |= {
        name for _, name, opened in _declared(tokens) if _has_constructor(tokens, name, opened)
    }
    found.methods = {method.name for method in _qualified_methods(tokens)}
    return found


def _declared(tokens: Sequence[Token]) -> Iterator[tuple[str, str, int]]:
    """Keyword, name and opening brace of each structure; the name may be empty."""
    for i, token in enumerate(tokens[:-1]):
        if token.text not in ("struct", "class", "union"):
            continue
        if i and tokens[i - 1].text in ("enum", "<", ","):
            continue
        at = i + 1
        while at < len(tokens) and tokens[at].text in ("alignas", "[[", "__attribute__"):
            at += tokens[at].text != "[["
            at = matching(tokens, at) + 1
        name = ""
        if tokens[at].kind == "name":
            name = tokens[at].text
            at += 1
        if at < len(tokens) and tokens[at].text == "<":
            at = template_end(tokens, at) + 1
        while at < len(tokens) and tokens[at].text not in ("{", ";", "(", ")", "=", "*", "&"):
            at += 1
        if at < len(tokens) and tokens[at].text == "{":
            end = matching(tokens, at)
            if not name and i and tokens[i - 1].text == "typedef" and end + 1 < len(tokens):
                name = tokens[end + 1].text
            yield token.text, name, at


def _aliases(tokens: Sequence[Token], types: set[str]) -> set[str]:
    names = set()
    for i, token in enumerate(tokens[:-3]):
        if token.text == "using" and tokens[i + 2].text == "=" and tokens[i + 3].text in types:
            names.add(tokens[i + 1].text)
        elif token.text == "typedef" and tokens[i + 1].text in types:
            end = i + 2
            if tokens[end].text == "<":
                end = template_end(tokens, end) + 1
            names.add(tokens[end].text)
    return names


def _has_constructor(tokens: Sequence[Token], name: str, opened: int) -> bool:
    body = tokens[opened + 1 : matching(tokens, opened)]
    return any(
        token.text == name
        and after.text == "("
        and before.text in ("", ";", "{", "}", ":", ">", "constexpr", "explicit")
        for before, token, after in zip([Token("", "", 0, 0), *body], body, body[1:], strict=False)
    )


def _typed_members(tokens: Sequence[Token], types: set[str]) -> dict[str, Variable]:
    """Members of these types, whose names are those of no other members."""
    found: dict[str, Variable | None] = {}
    for _, _, opened in _declared(tokens):
        body = tokens[opened + 1 : matching(tokens, opened)]
        typed = {body[at].text: variable for at, variable in declarations(body, types)}
        for name in _members(body) or ():
            variable = typed.get(name)
            found[name] = variable if found.get(name, variable) == variable else None
    return {name: variable for name, variable in found.items() if variable}


def functions(
    tokens: Sequence[Token],
) -> Iterator[tuple[Token, Sequence[Token], tuple[int, int]]]:
    """Name, parameters and the range of the body of every function that a text defines."""
    for i in range(1, len(tokens) - 1):
        token = tokens[i]
        if token.kind != "name" or tokens[i + 1].text != "(":
            continue
        if token.text in ("if", "for", "while", "switch", "catch", "constexpr"):
            continue
        closed = matching(tokens, i + 1)
        at = closed + 1
        while at < len(tokens) and tokens[at].text in SPACES | {"const", "noexcept"}:
            at += 1
        if at < len(tokens) and tokens[at].text == "{" and tokens[i - 1].text != ".":
            yield token, tokens[i + 2 : closed], (at, matching(tokens, at))


def _by_value(parameter: Sequence[Token], types: set[str]) -> str:
    """The type of a parameter that is one of the types; empty if it is another."""
    words = [token.text for token in parameter if token.text not in QUALIFIERS]
    if not words or words[0] not in types or {"*", "&", "[", "("} & set(words):
        return ""
    return words[0]


def members(tokens: Sequence[Token]) -> Iterator[Edit]:
    """A function in every structure, which copies its members."""
    for keyword, name, opened in _declared(tokens):
        closed = matching(tokens, opened)
        body = [t for t in tokens[opened + 1 : closed] if t.text != "\\"]
        names = None if keyword == "union" else _members(body)
        if not name and not _is_named_later(tokens, closed):
            continue  # its members are those of the structure around it
        if names == []:
            continue
        copies = [f"{base}::msl_members()(to, from);" for base in _bases(tokens, opened)]
        if names is None:
            copies = ["metal::msl_copy_bytes(to, from);"]
        else:
            copies += [f"metal::msl_copy(to.{name}, from.{name});" for name in names]
        access = "" if keyword != "class" else " public:"
        end = tokens[closed].start
        yield (
            end,
            end,
            f"{access} static auto msl_members() "
            f"{{ return [](auto& to, auto& from) {{ {' '.join(copies)} }}; }} ",
        )


def _is_named_later(tokens: Sequence[Token], closed: int) -> bool:
    return closed + 1 < len(tokens) and tokens[closed + 1].kind == "name"


def _bases(tokens: Sequence[Token], opened: int) -> list[str]:
    """Names behind the colon of ``struct B : A {``, with their template arguments."""
    at = opened
    while at and tokens[at].text not in ("struct", "class", "union", ":", ";", "}"):
        at -= 1
    if tokens[at].text != ":":
        return []
    bases = []
    for part in split_at_commas(tokens[at + 1 : opened]):
        words = [t.text for t in part if t.text not in (*_ACCESS, "virtual")]
        bases.append("".join(words))
    return bases


def _members(body: Sequence[Token]) -> list[str] | None:
    """Names of the members that a structure's body declares; None if they are not known."""
    if any(token.text == "#" for token in body):
        return None  # some are there under a condition only
    names: list[str] = []
    at = 0
    while at < len(body):
        if body[at].text in _ACCESS and at + 1 < len(body) and body[at + 1].text == ":":
            at += 2
            continue
        end, is_function = _member_end(body, at)
        member = body[at:end]
        at = end + 1
        words = [token.text for token in member]
        if not words or is_function or words[0] in _NO_MEMBER or "static" in words:
            continue
        if words[0] in ("struct", "class", "union") and "{" in words:
            inner = matching(member, words.index("{")) + 1
            if inner == len(member):
                # without a name of its own: its members belong to the structure around it
                if words[1] == "{":
                    return None
                continue
            member = member[inner:]
        declared = _declarators(member)
        if declared is None:
            return None
        names += declared
    return names


def _member_end(body: Sequence[Token], at: int) -> tuple[int, bool]:
    """Where the member that begins at `at` ends, and whether it is a function."""
    i, has_parameters = at, False
    while i < len(body):
        text = body[i].text
        if text == ";":
            return i, has_parameters
        if text == "(":
            has_parameters |= i == at or body[i - 1].text not in ("alignas", "__attribute__")
            i = matching(body, i)
        elif text == "<" and i and body[i - 1].text != "operator":
            i = template_end(body, i)
        elif text in ("[", "[["):
            i = matching(body, i)
        elif text == "{":
            i = matching(body, i)
            if has_parameters and (i + 1 == len(body) or body[i + 1].text not in (",", "{", ";")):
                return i, True
        i += 1
    return i, has_parameters


def _declarators(member: Sequence[Token]) -> list[str] | None:
    """``a`` and ``b`` of ``float a, b[2]``; None if there are bit fields."""
    names = []
    for part in split_at_commas(member):
        name, i = "", 0
        while i < len(part):
            text = part[i].text
            if text in ("=", "[", "{"):
                break
            if text == ":":
                return None
            if text == "[[":
                i = matching(part, i)
            elif text == "<":
                i = template_end(part, i)
            elif text in ("alignas", "__attribute__"):
                i = matching(part, i + 1)
            elif part[i].kind == "name":
                name = text
            i += 1
        names.append(name)
    return names


@dataclass(frozen=True)
class _Method:
    """A member function with an address space.

    Attributes:
        name: Its name.
        key: What it has in common with the same function for another address space.
        spaces: The tokens of the address spaces.
        start: The index of its first token.
        end: The index behind its last one.
    """

    name: str
    key: tuple[object, ...]
    spaces: Sequence[Token]
    start: int
    end: int


def qualified_methods(tokens: Sequence[Token]) -> Iterator[Edit]:
    """``void f() const device``: once, for thread memory; the calls copy the object there."""
    seen = set()
    for method in _qualified_methods(tokens):
        if method.key in seen:
            text = tokens[method.start : method.end]
            yield text[0].start, text[-1].end, "\n" * (text[-1].line - text[0].line)
            continue
        seen.add(method.key)
        for space in method.spaces:
            yield space.start, space.end, ""


def check_methods(tokens: Sequence[Token]) -> None:
    """Raise NotSimulated for a member function that changes objects outside thread memory."""
    for _ in _qualified_methods(tokens):
        pass


def _qualified_methods(tokens: Sequence[Token]) -> Iterator[_Method]:
    """Those of all structures.

    Raises:
        NotSimulated: for one that changes an object outside thread memory.
    """
    for _, _, opened in _declared(tokens):
        closed = matching(tokens, opened)
        inside = tokens[:closed]
        at = opened + 1
        while at < closed:
            end, is_function = _member_end(inside, at)
            if is_function and (method := _qualified_method(tokens, opened, at, end)):
                yield method
            at = end + 1
            while at < closed and tokens[at].text in _ACCESS:
                at += 2


def _qualified_method(tokens: Sequence[Token], structure: int, at: int, end: int) -> _Method | None:
    """The member function from `at` to `end`; None if it has no address space."""
    opened = at
    if tokens[opened].text == "template":
        opened = template_end(tokens, opened + 1) + 1
    while opened < end and tokens[opened].text != "(":
        opened += 1
    if opened >= end:
        return None
    closed = matching(tokens, opened)
    if tokens[closed + 1].text == "(":  # operator()()
        closed = matching(tokens, closed + 1)
    after = closed + 1
    while tokens[after].text in SPACES | {"const"}:
        after += 1
    spaces = [token for token in tokens[closed + 1 : after] if token.text in SPACES]
    if not spaces:
        return None
    is_const = bool({"const", "constant"} & {t.text for t in tokens[closed + 1 : after]})
    is_constructor = tokens[after].text == ":" or _is_constructor(tokens, at, opened)
    outside = [space for space in spaces if space.text in ("device", "threadgroup")]
    if outside and not is_const and not is_constructor:
        raise NotSimulated(
            tokens[opened].line, f"member functions that change objects in {outside[0].text} memory"
        )
    declaration = tuple(token.text for token in tokens[at : closed + 1])
    return _Method(
        tokens[opened - 1].text,
        (structure, is_const, *declaration),
        spaces,
        at,
        end + (tokens[end].text in ("}", ";")),
    )


def _is_constructor(tokens: Sequence[Token], at: int, opened: int) -> bool:
    """Whether a member function has no type in front of its name."""
    before = [t for t in tokens[at : opened - 1] if t.text not in ("constexpr", "explicit")]
    if before and before[0].text == "template":
        before = before[template_end(before, 1) + 1 :]
    return not before
