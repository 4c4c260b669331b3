"""Calls that tell what a thread stores in its variables and moves to and from memory, by lines.

The names are those of the source, which the compiler's debug information has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .ir import VALUE, escaped

_DECLARED = re.compile(
    rf"(?:#dbg_declare\(|@llvm\.dbg\.declare\(metadata )ptr ({VALUE}), (?:metadata )?!(\d+)"
)
_VARIABLE = re.compile(r'^!(\d+) = !DILocalVariable\(name: "([^"]*)".*?type: !(\d+)', re.MULTILINE)
_TYPE = re.compile(
    r"^!(\d+) = (?:distinct )?!DI(Basic|Derived|Composite)Type\((.*)\)", re.MULTILINE
)

# LLVM's scalars as runtime/log.cpp prints them; the second letter is that of the unsigned type.
_LETTERS = {
    **{"i1": "bb", "i8": "cC", "i16": "sS", "i32": "iI", "i64": "lL"},
    **{"half": "hh", "bfloat": "BB", "float": "ff"},
}


class Tracing:
    """The names and types of the variables of a module that is to be traced."""

    def __init__(self, ir: str):
        self.names: dict[str, str] = {}  # a name, and the symbol that holds it
        self._variables = {m[1]: (m[2], m[3]) for m in _VARIABLE.finditer(ir)}
        self._types = {m[1]: m[3] for m in _TYPE.finditer(ir)}
        self._declared: dict[str, str] = {}

    def begin(self, lines: Sequence[str]) -> None:
        """Go on with another function, of which these are the lines."""
        self._declared = {m[1]: m[2] for line in lines if (m := _DECLARED.search(line))}

    def stored(
        self, pointer: str, variable: str, size: int, type_text: str, site: int
    ) -> list[str]:
        """The call after a store to a private variable; nothing if the source has no name for it.

        Args:
            pointer: where in the variable.
            variable: the value that is its address.
            size: its bytes.
            type_text: what is stored.
            site: the number of the place.
        """
        number = self._declared.get(variable)
        if number not in self._variables:
            return []
        name, kind = self._variables[number]
        code = _code(type_text, self._encoding(kind))
        if not code:
            return []
        symbol = self.names.setdefault(name, f"@msl.name.{len(self.names)}")
        return [
            f"  call void @__msl_traced(ptr {pointer}, ptr {variable}, i32 {size}, i32 {code}, "
            f"i32 {site}, ptr {symbol})"
        ]

    def moved(self, generic: str, type_text: str, site: int, is_store: bool) -> list[str]:
        """The call after a load from memory, or a store there, by a pointer of the runtime."""
        code = _code(type_text)
        if not code:
            return []
        return [
            f"  call void @__msl_traced_memory(ptr {generic}, i32 {code}, i32 {site}, "
            f"i32 {int(is_store)})"
        ]

    def tables(self) -> list[str]:
        """The names, and declarations of what is called."""
        lines = []
        for name, symbol in self.names.items():
            content = name.encode() + b"\0"
            lines.append(f'{symbol} = private constant [{len(content)} x i8] c"{escaped(content)}"')
        return [
            *lines,
            "declare void @__msl_traced(ptr, ptr, i32, i32, i32, ptr)",
            "declare void @__msl_traced_memory(ptr, i32, i32, i32)",
        ]

    def _encoding(self, number: str) -> str:
        """How the debug information says that a type holds its numbers."""
        while number in self._types:
            fields = self._types[number]
            if encoding := re.search(r"encoding: DW_ATE_(\w+)", fields):
                return encoding[1]
            base = re.search(r"baseType: !(\d+)", fields)
            number = base[1] if base else ""
        return ""


def _code(type_text: str, encoding: str = "") -> int:
    """How the runtime prints a type: the letter of its scalar, and how many there are; 0: not."""
    lanes = 1
    if vector := re.fullmatch(r"<(\d+) x (\w+)>", type_text):
        lanes, type_text = int(vector[1]), vector[2]
    letters = _LETTERS.get(type_text)
    if not letters:
        return 0
    letter = "b" if encoding == "boolean" else letters[encoding.startswith("unsigned")]
    return ord(letter) | lanes << 8
