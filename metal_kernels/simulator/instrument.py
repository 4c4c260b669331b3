"""Calls to the runtime before every load and store, put into LLVM's textual IR.

LLVM's own sanitizers skip address spaces other than 0, where all of Metal's memory is. The
IR of clang 18 to 22 differs in attributes only, so lines are read by their shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# LLVM's numbers of the address spaces, as include/ declares them.
DEVICE, CONSTANT, THREADGROUP = 1, 2, 3
_WATCHED = (DEVICE, CONSTANT, THREADGROUP)

# Room behind every threadgroup variable, so that an access past its end hits nothing else.
_REDZONE_BYTES = 64

# Files of the user, by their #line names; places elsewhere are traced to the call there.
USER_FILES = ("source", "header")

_ACCESS = re.compile(r"(?:%\S+ = )?(load|store) (?:volatile |atomic )*(.*)$")
_POINTER = re.compile(
    r", ptr(?: addrspace\((\d+)\))? ((?:%|@)[^\s,]+|[a-z]+ .*?\))(?=, align|, !|$| syncscope)"
)
_MEMORY_CALL = re.compile(r".*call void @llvm\.mem(cpy|move|set)\.")
_MEMORY_POINTER = re.compile(
    r"\s*ptr(?: addrspace\((\d+)\))?(?: \w+(?:\([\w, ]*\))?| align \d+)* ((?:%|@)\S+)"
)
_GLOBAL = re.compile(r"(@\S+) = (.*?)addrspace\(([23])\) (global|constant) (.*)$")
_GENERIC_GLOBAL = re.compile(
    r"^@([\w.]+) = (?!external)(?!.*addrspace\()(?:[\w()]+ )*?(?:global|constant) ", re.MULTILINE
)
# What the compiler itself puts at program scope: strings, function names, switch tables.
_OWN_GLOBAL = re.compile(r"\.|\d|__const|switch\.|llvm\.|anon|__func|_ZZ.*__func")

_SIZES = {"half": 2, "bfloat": 2, "float": 4, "double": 8}


@dataclass(frozen=True)
class Variable:
    """A threadgroup variable or constant: its symbol, bytes, and bytes of an element."""

    symbol: str
    size: int
    item_size: int


@dataclass
class Instrumented:
    """The new IR, and the variables in the order of the table ``msl_variables`` in it."""

    text: str
    threadgroup: list[Variable] = field(default_factory=list)
    constants: list[Variable] = field(default_factory=list)


def program_scope_variables(ir: str) -> list[str]:
    """Variables outside Metal's address spaces, which Metal does not have."""
    return [name for name in _GENERIC_GLOBAL.findall(ir) if not _OWN_GLOBAL.match(name)]


def instrument(ir: str) -> Instrumented:
    """Put ``__msl_load``, ``__msl_store`` and ``__msl_stored`` into a module.

    Args:
        ir: LLVM IR with line tables.
    """
    result = Instrumented("")
    types = Types(ir)
    writer = _Writer(_Places(ir))
    for line in ir.split("\n"):
        variable = _GLOBAL.match(line)
        if variable and not variable[2].startswith("external"):
            line = _global(variable, line, types, result)
        after = _before(line, types, writer)
        writer.lines.append(line)
        if after:
            writer.call("__msl_stored", line, *after)
    result.text = "\n".join([*writer.lines, *_tables(result, writer.places.sites)])
    return result


class Types:
    """Sizes of LLVM types, those that a module names included."""

    def __init__(self, ir: str = ""):
        self._named = dict(re.findall(r"^(%\S+) = type (.*)$", ir, re.MULTILINE))

    def size(self, text: str) -> int:
        """Bytes of a type.

        Raises:
            ValueError: for a type that is not known here.
        """
        return self._layout(text.strip())[0]

    def _layout(self, text: str) -> tuple[int, int]:
        """Size and alignment."""
        if text in self._named:
            return self._layout(self._named[text])
        if text in _SIZES or text.startswith("ptr"):
            size = _SIZES.get(text, 8)
            return size, size
        if integer := re.fullmatch(r"i(\d+)", text):
            size = (int(integer[1]) + 7) // 8
            return size, size
        if many := re.fullmatch(r"([<\[])\s*(\d+) x (.+)[>\]]", text):
            item, alignment = self._layout(many[3])
            size = int(many[2]) * item
            if many[1] == "[":
                return size, alignment
            # a vector of 3 takes the room of 4
            size = 1 << (size - 1).bit_length()
            return size, size
        if struct := re.fullmatch(r"(<?)\{(.*)\}>?", text):
            size, widest = 0, 1
            for part in _split(struct[2]):
                item, alignment = self._layout(part.strip())
                alignment = 1 if struct[1] else alignment
                size = -(-size // alignment) * alignment + item
                widest = max(widest, alignment)
            return -(-size // widest) * widest, widest
        raise ValueError(f"LLVM type {text!r} is not known")


def _global(match: re.Match, line: str, types: Types, result: Instrumented) -> str:
    symbol, space, content = match[1], int(match[3]), match[5]
    type_text, rest = _leading_type(content)
    if space == CONSTANT:
        result.constants.append(Variable(symbol, types.size(type_text), 1))
        return line
    item = type_text
    while array := re.fullmatch(r"\[\d+ x (.+)\]", item.strip()):
        item = array[1]
    result.threadgroup.append(Variable(symbol, types.size(type_text), types.size(item)))
    align = re.search(r", align (\d+)", rest)
    return (
        f"{symbol} = internal addrspace({THREADGROUP}) global "
        f"<{{ {type_text}, [{_REDZONE_BYTES} x i8] }}> zeroinitializer, "
        f"align {max(16, int(align[1]) if align else 16)}"
    )


def _before(line: str, types: Types, writer: _Writer) -> tuple[str, int, str] | None:
    """Calls for what a line is about to access; pointer, space and bytes if it stores."""
    text = line.strip()
    if access := _ACCESS.match(text):
        pointer = _POINTER.search(text)
        space = int(pointer[1] or 0) if pointer else 0
        if pointer and space in _WATCHED:
            size = str(types.size(_leading_type(access[2])[0].rstrip(",")))
            name = "__msl_load" if access[1] == "load" else "__msl_store"
            writer.call(name, line, pointer[2], space, size)
            return (pointer[2], space, size) if access[1] == "store" else None
    elif memory := _MEMORY_CALL.match(text):
        return _before_memory_call(line, text, memory[1], writer)
    elif "call void @__msl_collective(" in text:
        writer.place(line)
    return None


def _before_memory_call(
    line: str, text: str, kind: str, writer: _Writer
) -> tuple[str, int, str] | None:
    """The same for a copy or a fill of memory."""
    call = text[text.index("@llvm.mem") :]
    target, source, count = _split(call[call.index("(") + 1 : call.rindex(")")])[:3]
    size = writer.as_i32(count.strip())
    if kind != "set" and (read := _watched_pointer(source)):
        writer.call("__msl_load", line, *read, size)
    if written := _watched_pointer(target):
        writer.call("__msl_store", line, *written, size)
        return *written, size
    return None


def _watched_pointer(argument: str) -> tuple[str, int] | None:
    pointer = _MEMORY_POINTER.match(argument)
    space = int(pointer[1] or 0) if pointer else 0
    return (pointer[2], space) if pointer and space in _WATCHED else None


class _Places:
    """Where instructions come from, by the module's debug information."""

    def __init__(self, ir: str):
        self.sites: dict[tuple[str, int, int], int] = {}
        self._locations = {
            m[1]: (int(m[2]), int(m[3] or 0), m[4], m[5])
            for m in re.finditer(
                r"^!(\d+) = (?:distinct )?!DILocation\(line: (\d+)(?:, column: (\d+))?, "
                r"scope: !(\d+)(?:, inlinedAt: (?:distinct )?!(\d+))?",
                ir,
                re.MULTILINE,
            )
        }
        self._file_of_scope = {}
        for m in re.finditer(
            r"^!(\d+) = (?:distinct )?!DI(?:Subprogram|LexicalBlock|LexicalBlockFile)\((.*)\)",
            ir,
            re.MULTILINE,
        ):
            file = re.search(r"file: !(\d+)", m[2])
            self._file_of_scope[m[1]] = file[1] if file else None
        self._files = dict(re.findall(r'^!(\d+) = !DIFile\(filename: "([^"]*)"', ir, re.MULTILINE))

    def site(self, line: str) -> int:
        """The number of the place of an instruction."""
        return self.sites.setdefault(self.of(line), len(self.sites))

    def of(self, line: str) -> tuple[str, int, int]:
        """File, line and column of an instruction: the user's line that led to it."""
        place = ("", 0, 0)
        debug = re.search(r"!dbg !(\d+)", line)
        if debug and debug[1] in self._locations:
            number, column, scope, inlined_at = self._locations[debug[1]]
            file = self._file(scope)
            while file not in USER_FILES and inlined_at in self._locations:
                number, column, scope, inlined_at = self._locations[inlined_at]
                file = self._file(scope)
            place = (file, number, column)
        return place

    def _file(self, scope: str) -> str:
        return self._files.get(self._file_of_scope.get(scope), "")


class _Writer:
    """The lines of the new module."""

    def __init__(self, places: _Places):
        self.lines: list[str] = []
        self.places = places
        self._values = 0

    def call(self, name: str, line: str, pointer: str, space: int, size: str) -> None:
        """Call the runtime for an access that `line` makes to `size` bytes, an i32."""
        cast = self._value()
        site = self.places.site(line)
        self.lines += [
            f"  {cast} = addrspacecast ptr addrspace({space}) {pointer} to ptr",
            f"  call void @{name}(ptr {cast}, i32 {size}, i32 {site}, i32 {space})",
        ]

    def place(self, line: str) -> None:
        """Tell the runtime where the user's text calls the SIMD function of `line`."""
        if self.places.of(line)[0] in USER_FILES:
            self.lines.append(f"  call void @__msl_place(i32 {self.places.site(line)})")

    def as_i32(self, operand: str) -> str:
        """The value of an integer operand, such as ``i64 %n``, as an i32."""
        type_text, value = operand.split()
        if type_text == "i32" or not value.startswith("%"):
            return value
        result = self._value()
        self.lines.append(f"  {result} = trunc {type_text} {value} to i32")
        return result

    def _value(self) -> str:
        self._values += 1
        return f"%msl.{self._values}"


def _tables(result: Instrumented, sites: Iterable[tuple[str, int, int]]) -> list[str]:
    """Declarations, the table of sites and the table of variables."""
    lines, files, rows = [], {}, []
    for file, line, column in list(sites) or [("", 0, 0)]:
        if file not in files:
            files[file] = f"@msl.file.{len(files)}"
            content = file.encode() + b"\0"
            lines.append(
                f'{files[file]} = private constant [{len(content)} x i8] c"{_escaped(content)}"'
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
        "",
    ]


def _escaped(content: bytes) -> str:
    plain = set(range(32, 127)) - {ord('"'), ord("\\")}
    return "".join(chr(byte) if byte in plain else f"\\{byte:02X}" for byte in content)


def _split(text: str) -> list[str]:
    """Parts between commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += character in "<[{("
        depth -= character in ">]})"
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _leading_type(text: str) -> tuple[str, str]:
    """'TYPE rest' in two; blanks inside brackets belong to the type."""
    depth = 0
    for i, character in enumerate(text):
        depth += character in "<[{("
        depth -= character in ">]})"
        if character == " " and depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""
