"""Calls to the runtime around every load and store, put into LLVM's textual IR.

The IR is that of the source, before any optimisation: an access is watched where the source makes
it, and the optimiser, which runs afterwards, moves none across a call. LLVM's own sanitizers skip
address spaces other than 0, where all of Metal's memory is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import arithmetic, private_variables, special_values
from .components import components_loaded, store_components
from .ir import (
    CONSTANT,
    DEVICE,
    THREADGROUP,
    USER_FILES,
    Places,
    Types,
    escaped,
    leading_type,
    split,
)
from .private_variables import PrivateVariables
from .program_scope import Variable, watched_variable
from .tracing import Tracing

_WATCHED = (DEVICE, CONSTANT, THREADGROUP)

_ACCESS = re.compile(r"(?:%\S+ = )?(load|store) (?:volatile |atomic )*(.*)$")
_POINTER = re.compile(
    r", ptr(?: addrspace\((\d+)\))? ((?:%|@)[^\s,]+|[a-z]+ .*?\))"
    r"(?:, align (\d+)|(?=, !|$| syncscope))"
)
_MEMORY_CALL = re.compile(r".*call void @llvm\.mem(cpy|move|set)\.")
_MEMORY_POINTER = re.compile(
    r"\s*ptr(?: addrspace\((\d+)\))?(?: \w+(?:\([\w, ]*\))?| align \d+)* ((?:%|@)\S+)"
)
_SPACE_CAST = re.compile(
    r"= addrspacecast ptr(?: addrspace\((\d+)\))? \S+ to ptr(?: addrspace\((\d+)\))?"
)
_SPACES = {0: "thread", DEVICE: "device", CONSTANT: "constant", THREADGROUP: "threadgroup"}
_WAITS = re.compile(
    r"call void @__msl_(?:collective|threadgroup_barrier|simdgroup_barrier|atomic)\("
)
# Calls of include/ for which the user's line counts.
_TELLS_ITS_PLACE = re.compile(r"call void @__msl_collective\(|@__msl_log\(")
_OF_METAL = re.compile(r"/include/msl_\w+\.h$")
_PLACE = re.compile(r",? !dbg !\d+|^ *(?:#dbg_|call void @llvm\.dbg\.).*\n", re.MULTILINE)
_UNINITIALISED = re.compile(r'^!(\d+) = !\{!"auto-init"\}', re.MULTILINE)
# The functions of C++ for its heap.
_HEAP = re.compile(r"@_Z(?:n[wa][jm]|d[la]Pv)\w*\(")
# The optimiser inlines as it likes: clang forbids it when it does not optimise itself.
_NEVER_INLINED = re.compile(r"^(attributes #\d+ = \{.*?)\bnoinline ", re.MULTILINE)


@dataclass
class Instrumented:
    """The new IR, and what it tells of the kernel.

    Attributes:
        text: The IR.
        threadgroup: The threadgroup variables, which come first in the table ``msl_variables``.
        constants: The variables in the constant address space, which come after them there.
        rejected: What Apple's compiler does not take: file, line and message of each place.
        waits: Whether a thread may have to wait for others.
        is_ordered: Whether its threadgroups have to run one after another: it has atomic
            operations, or logs.
    """

    text: str
    threadgroup: list[Variable] = field(default_factory=list)
    constants: list[Variable] = field(default_factory=list)
    rejected: list[tuple[str, int, str]] = field(default_factory=list)
    waits: bool = False
    is_ordered: bool = False


# How much is watched: everything, everything and NaN, everything and the steps of a thread, or
# nothing. For a debugger nothing is watched, and nothing is optimised.
Mode = Literal["checked", "nan", "traced", "unchecked", "debugged"]
CHECKED: tuple[Mode, ...] = ("checked", "nan", "traced")


def instrument(ir: str, mode: Mode = "checked") -> Instrumented:
    """Put calls to the runtime (include/msl_runtime.h) into a module.

    Args:
        ir: LLVM IR as clang makes it of the source, with line tables.
        mode: how much is watched; to trace, the IR has to have all debug information.
    """
    ir = _HEAP.sub("@__msl_no_heap(", _NEVER_INLINED.sub(r"\1", ir))
    module = _Module(ir, mode)
    lines = ir.split("\n")
    at = 0
    while at < len(lines):
        end = at + 1
        if lines[at].startswith("define "):
            end = lines.index("}", at) + 1
            module.function(lines[at:end])
        else:
            module.declaration(lines[at])
        at = end
    return module.finished()


class _Module:
    """A module on its way to `Instrumented`."""

    def __init__(self, ir: str, mode: Mode):
        self._is_checked = mode in CHECKED
        self._watches_nan = mode == "nan"
        self._keeps_places = mode == "debugged"
        self._tracing = Tracing(ir) if mode == "traced" else None
        self._types = Types(ir)
        self._places = Places(ir)
        mark = _UNINITIALISED.search(ir)
        self._uninitialised = f"!annotation !{mark[1]}" if mark else ""
        self._result = Instrumented("")
        self._lines: list[str] = []
        self._values = 0

    def declaration(self, line: str) -> None:
        """A line outside functions."""
        found = self._result
        line = watched_variable(line, self._types, found.threadgroup, found.constants)
        self._lines.append(line)

    def function(self, lines: Sequence[str]) -> None:
        """The lines of a function."""
        if not self._is_checked:
            self._unchecked(lines)
            return
        lines = store_components(lines)
        private = PrivateVariables(lines, self._uninitialised, self._types, self._places)
        products = arithmetic.index_products(lines)
        if self._tracing:
            self._tracing.begin(lines)
        for at, line in enumerate(lines):
            text = line.strip()
            if declared := private.declaration(line):
                self._lines += declared
                continue
            if at in products and self._places.own_file(line) in USER_FILES:
                self._lines.append(arithmetic.check_product(line, self._places.site(line)))
            after: list[str] = []
            if access := _ACCESS.match(text):
                after = self._access(lines, at, access, private)
            elif memory := _MEMORY_CALL.match(text):
                after = self._memory_call(line, memory[1], private)
            elif _TELLS_ITS_PLACE.search(text):
                self._user_place(line)
            elif cast := _SPACE_CAST.search(text):
                self._space_cast(line, int(cast[1] or 0), int(cast[2] or 0))
            elif text.startswith("ret "):
                self._lines += private.before_return()
            elif "!llvm.loop" in text:
                self._lines.append(
                    f"  store volatile i32 {self._places.site(line)}, ptr @__msl_loop_site"
                )
            self._lines += arithmetic.safe_division(line) or [line]
            self._lines += after or private.after(line, None)
            if " = " in text:
                self._special_values(line)

    def _special_values(self, line: str) -> None:
        """Checks of a value that the user's text computes, or a function of Metal for it."""
        has_half = "half" in line
        if not has_half and not self._watches_nan:
            return
        file = self._places.own_file(line)
        if file not in USER_FILES and not _OF_METAL.search(file):
            return
        if has_half:
            self._lines += special_values.check_half(line, self._places.site(line))
        if self._watches_nan:
            self._lines += special_values.check_nan(line, self._places.site(line))

    def _unchecked(self, lines: Sequence[str]) -> None:
        """A function that only has to get to its end, and to say where it waits."""
        for line in lines:
            if _TELLS_ITS_PLACE.search(line):
                self._user_place(line)
            self._lines += arithmetic.safe_division(line) or [line]

    def finished(self) -> Instrumented:
        """The module with its tables and the functions that its calls need."""
        self._lines += [
            *_tables(self._result, self._places.sites),
            *private_variables.check_functions(),
            *arithmetic.check_functions(),
            *special_values.check_functions(),
            *(self._tracing.tables() if self._tracing else ()),
        ]
        text = "\n".join(self._lines)
        for name, operands in (("memset.p0", "ptr, i8"), ("memmove.p0.p0", "ptr, ptr")):
            if f"declare void @llvm.{name}.i64(" not in text:
                text += f"\ndeclare void @llvm.{name}.i64({operands}, i64, i1)\n"
        # the places are in the table now: without them the optimiser has less to do
        self._result.text = text if self._keeps_places else _PLACE.sub("", text)
        self._result.waits = bool(_WAITS.search(text))
        ordered = ("call void @__msl_atomic(", "@__msl_log(ptr")
        self._result.is_ordered = any(call in text for call in ordered)
        return self._result

    def _access(
        self, lines: Sequence[str], at: int, access: re.Match, private: PrivateVariables
    ) -> list[str]:
        """Calls before a load or store; what follows it."""
        line = lines[at]
        pointer = _POINTER.search(line)
        if not pointer:
            return []
        space = int(pointer[1] or 0)
        type_text = leading_type(access[2])[0].rstrip(",")
        size = self._types.size(type_text)
        is_store = access[1] == "store"
        parts = (None if is_store else components_loaded(lines, at)) or ((0, size),)
        if space in _WATCHED:
            name = "__msl_store" if is_store else "__msl_load"
            for offset, count in parts:
                kind = space | _alignment(int(pointer[3] or 1), offset) << 8
                self._call(name, line, pointer[2], space, str(count), kind, offset)
            after = self._stored(line, pointer[2], space, str(size)) if is_store else []
            return after + self._moved(line, pointer[2], space, type_text, is_store)
        if pointer[2].startswith("@") or self._places.own_file(line) not in USER_FILES:
            return private.after(line, (pointer[2], size)) if is_store else []
        if not private.knows(pointer[2]):
            site = self._places.site(line)
            self._lines.append(
                f"  call void @__msl_private(ptr {pointer[2]}, i32 {size}, i32 {site})"
            )
        if is_store:
            stored = private.after(line, (pointer[2], size))
            return stored + self._traced(line, pointer[2], type_text, private)
        lanes = re.match(r"<3 x (\w+)>", access[2])
        # a vector of 3 has room for 4
        parts = ((0, size // 4 * 3),) if lanes and parts == ((0, size),) else parts
        if not private.is_copied(line):
            self._lines += private.check_load(pointer[2], parts, self._places.site(line))
        return []

    def _memory_call(self, line: str, kind: str, private: PrivateVariables) -> list[str]:
        """The same for a copy or a fill of memory."""
        call = line[line.index("@llvm.mem") :]
        target, source, count = split(call[call.index("(") + 1 : call.rindex(")")])[:3]
        size = self._as_i32(count.strip())
        if kind != "set" and (read := _watched_pointer(source)):
            self._call("__msl_load", line, *read, size, read[1])
        if written := _watched_pointer(target):
            self._call("__msl_store", line, *written, size, written[1])
            return self._stored(line, *written, size)
        return private.after(line, None)

    def _space_cast(self, line: str, source: int, target: int) -> None:
        # a cast to a pointer without an address space is what linter.py knows
        if target not in (0, source) and self._places.own_file(line) in USER_FILES:
            file, number, _ = self._places.of(line)
            message = f"a cast from {_SPACES[source]} to {_SPACES[target]} memory"
            self._result.rejected.append((file, number, message))

    def _user_place(self, line: str) -> None:
        """Tell the runtime where the user's text calls the function of `line`."""
        if self._places.of(line)[0] in USER_FILES:
            self._lines.append(f"  call void @__msl_place(i32 {self._places.site(line)})")

    def _call(
        self, name: str, line: str, pointer: str, space: int, size: str, kind: int, offset: int = 0
    ) -> None:
        """Call the runtime for an access that `line` makes to `size` bytes, an i32."""
        generic = self._generic(pointer, space, offset)
        site = self._places.site(line)
        self._lines.append(
            f"  call void @{name}(ptr {generic}, i32 {size}, i32 {site}, i32 {kind})"
        )

    def _generic(self, pointer: str, space: int, offset: int) -> str:
        """A pointer in an address space, `offset` bytes further, as a pointer of the runtime."""
        cast = self._value()
        self._lines.append(f"  {cast} = addrspacecast ptr addrspace({space}) {pointer} to ptr")
        if not offset:
            return cast
        moved = self._value()
        self._lines.append(f"  {moved} = getelementptr i8, ptr {cast}, i64 {offset}")
        return moved

    def _stored(self, line: str, pointer: str, space: int, size: str) -> list[str]:
        cast, site = self._value(), self._places.site(line)
        return [
            f"  {cast} = addrspacecast ptr addrspace({space}) {pointer} to ptr",
            f"  call void @__msl_stored(ptr {cast}, i32 {size}, i32 {site}, i32 {space})",
        ]

    def _moved(
        self, line: str, pointer: str, space: int, type_text: str, is_store: bool
    ) -> list[str]:
        if not self._tracing or self._places.of(line)[0] not in USER_FILES:
            return []
        cast, site = self._value(), self._places.site(line)
        moved = self._tracing.moved(cast, type_text, site, is_store)
        return [f"  {cast} = addrspacecast ptr addrspace({space}) {pointer} to ptr", *moved]

    def _traced(
        self, line: str, pointer: str, type_text: str, private: PrivateVariables
    ) -> list[str]:
        variable = private.variable(pointer)
        # a variable that is only declared holds nothing worth telling
        if not self._tracing or not variable or private.declares(line):
            return []
        name, declared = variable
        size, site = self._types.size(declared), self._places.site(line)
        return self._tracing.stored(pointer, name, size, type_text, site)

    def _as_i32(self, operand: str) -> str:
        """The value of an integer operand, such as ``i64 %n``, as an i32."""
        type_text, value = operand.split()
        if type_text == "i32" or not value.startswith("%"):
            return value
        result = self._value()
        self._lines.append(f"  {result} = trunc {type_text} {value} to i32")
        return result

    def _value(self) -> str:
        self._values += 1
        return f"%msl.{self._values}"


def _alignment(of_whole: int, offset: int) -> int:
    """What can be expected `offset` bytes into something aligned."""
    return min(of_whole, offset & -offset) if offset else of_whole


def _watched_pointer(argument: str) -> tuple[str, int] | None:
    pointer = _MEMORY_POINTER.match(argument)
    space = int(pointer[1] or 0) if pointer else 0
    return (pointer[2], space) if pointer and space in _WATCHED else None


def _tables(result: Instrumented, sites: Iterable[tuple[str, int, int]]) -> list[str]:
    """Declarations, the table of sites and the table of variables."""
    lines, files, rows = [], {}, []
    for file, line, column in list(sites) or [("", 0, 0)]:
        if file not in files:
            files[file] = f"@msl.file.{len(files)}"
            content = file.encode() + b"\0"
            lines.append(
                f'{files[file]} = private constant [{len(content)} x i8] c"{escaped(content)}"'
            )
        rows.append(f"{{ i32, i32, ptr }} {{ i32 {line}, i32 {column}, ptr {files[file]} }}")
    variables = [(v.symbol, THREADGROUP) for v in result.threadgroup]
    variables += [(v.symbol, CONSTANT) for v in result.constants]
    addresses = [
        f"ptr addrspacecast (ptr addrspace({space}) {symbol} to ptr)" for symbol, space in variables
    ]
    addresses.append("ptr null")
    return [
        *lines,
        f"@msl_sites = global [{len(rows)} x {{ i32, i32, ptr }}] [{', '.join(rows)}]",
        f"@msl_variables = global [{len(addresses)} x ptr] [{', '.join(addresses)}]",
        *(
            f"declare void @{name}(ptr, i32, i32, i32)"
            for name in ("__msl_load", "__msl_store", "__msl_stored")
        ),
        "declare void @__msl_place(i32)",
        "declare void @__msl_private(ptr, i32, i32)",
        "@__msl_loop_site = external global i32",
        "",
    ]
