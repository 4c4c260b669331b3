"""What the pointers of a function may point into, as far as its private variables go.

Without regard to the order of statements: a pointer variable may point into whatever is stored
there anywhere in the function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .ir import ADDRESS, ALLOCA, LOADED_POINTER, VALUE, values

_STORED = re.compile(rf"\s*store ptr (\S+), ptr ({VALUE}), align")
_ACCESS = re.compile(rf"\s*(?:{VALUE} = load|store) (?:volatile )?.*, ptr ({VALUE}), align")
# Neither says anything of what other threads or functions do with a variable.
_NO_ESCAPE = re.compile(r"\s*call void @llvm\.(?:lifetime|dbg|memset|memcpy|memmove)\.")

# Something that is no private variable of the function.
ELSEWHERE = ""


class Pointers:
    """The pointers of a function.

    Args:
        lines: the function's IR.
        is_declaration: whether a line only declares a variable without an initial value.

    Attributes:
        declared: The type of every private variable, by its name.
        variable: The variable of every pointer that is computed from one without detours.
        held: What the pointer variables may point into: those whose own address stays.
        escaped: Variables whose address goes where it cannot be followed.
    """

    def __init__(self, lines: Sequence[str], is_declaration: Sequence[bool]):
        self.declared = {m[1]: m[2] for line in lines if (m := ALLOCA.match(line))}
        self.variable = {name: name for name in self.declared}
        lines = [
            line
            for line, declares in zip(lines, is_declaration, strict=True)
            if "%" in line and not declares and not _NO_ESCAPE.match(line)
        ]
        pointers = {name for name, kind in self.declared.items() if kind == "ptr"}
        for line in lines:
            pointers -= set(_other_uses(line, pointers))
        self.held: dict[str, frozenset[str]] = dict.fromkeys(pointers, frozenset())
        self._based: dict[str, str] = {}
        self._loaded: dict[str, str] = {}
        stored: list[tuple[str, str]] = []
        for line in lines:
            if address := ADDRESS.match(line):
                self._based[address[1]] = address[3]
                if address[3] in self.variable:
                    self.variable[address[1]] = self.variable[address[3]]
            elif (load := LOADED_POINTER.match(line)) and load[2] in pointers:
                self._loaded[load[1]] = load[2]
            elif (store := _STORED.match(line)) and store[2] in pointers:
                stored.append((store[1], store[2]))
        self._follow(stored)
        known = {*self.variable, *self._based, *self._loaded}
        self.escaped = {
            variable
            for line in lines
            for name in _other_uses(line, known, pointers)
            for variable in self.pointees(name)
        }

    def pointees(self, pointer: str) -> frozenset[str]:
        """The variables that a pointer may point into."""
        while pointer in self._based:
            pointer = self._based[pointer]
        if pointer in self.declared:
            return frozenset({pointer})
        return self.held.get(self._loaded.get(pointer, ""), frozenset({ELSEWHERE}))

    def _follow(self, stored: Sequence[tuple[str, str]]) -> None:
        changed = True
        while changed:
            changed = False
            for value, variable in stored:
                wider = self.held[variable] | self.pointees(value)
                changed |= wider != self.held[variable]
                self.held[variable] = wider


def _other_uses(line: str, known: set[str], pointers: set[str] | None = None) -> Iterator[str]:
    """Pointers with which a line does anything but to load, to store and to compute addresses.

    Storing them in one of the pointer variables, if these are given, is nothing else either.
    """
    names = [name for name in values(line) if name in known]
    if not names or " = alloca " in line:
        return
    address = ADDRESS.match(line)
    access = _ACCESS.match(line)
    followed = {address[1], address[3]} if address else set()
    if access:
        followed.add(access[1])
    if pointers is not None:
        if (store := _STORED.match(line)) and store[2] in pointers:
            followed.add(store[1])
        elif (load := LOADED_POINTER.match(line)) and load[2] in pointers:
            followed.add(load[1])
    yield from (name for name in names if name not in followed)
