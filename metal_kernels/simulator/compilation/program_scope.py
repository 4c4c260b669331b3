"""Variables at program scope: threadgroup variables, constants, and those that Metal has not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .ir import CONSTANT, THREADGROUP, Types, leading_type

# Room behind every threadgroup variable, so that an access past its end hits nothing else.
_REDZONE_BYTES = 64

_GLOBAL = re.compile(r"(@\S+) = (.*?)addrspace\(([23])\) (global|constant) (.*)$")
_GENERIC_GLOBAL = re.compile(
    r"^@([\w.]+) = (?!external)(?!.*addrspace\()(?:[\w()]+ )*?(?:global|constant) ", re.MULTILINE
)
# What the compiler itself puts at program scope: strings, function names, switch tables.
_OWN_GLOBAL = re.compile(r"\.|\d|__const|switch\.|llvm\.|anon|__func|_ZZ.*__func|_ZT")


@dataclass(frozen=True)
class Variable:
    """A threadgroup variable or constant: its symbol, bytes, and bytes of an element."""

    symbol: str
    size: int
    item_size: int


def program_scope_variables(ir: str) -> list[str]:
    """Variables outside Metal's address spaces, which Metal does not have."""
    return [name for name in _GENERIC_GLOBAL.findall(ir) if not _OWN_GLOBAL.match(name)]


def watched_variable(
    line: str, types: Types, threadgroup: list[Variable], constants: list[Variable]
) -> str:
    """A line outside functions; a variable that it declares is added to one of the lists.

    A threadgroup variable gets a redzone behind it.
    """
    declared = _GLOBAL.match(line)
    if not declared or declared[2].startswith("external"):
        return line
    symbol, space, content = declared[1], int(declared[3]), declared[5]
    type_text, rest = leading_type(content)
    if space == CONSTANT:
        constants.append(Variable(symbol, types.size(type_text), 1))
        return line
    # threads may share an element, each with a part of its own
    threadgroup.append(Variable(symbol, types.size(type_text), types.smallest(type_text)))
    align = re.search(r", align (\d+)", rest)
    return (
        f"{symbol} = internal addrspace({THREADGROUP}) global "
        f"<{{ {type_text}, [{_REDZONE_BYTES} x i8] }}> zeroinitializer, "
        f"align {max(16, int(align[1]) if align else 16)}"
    )
