"""LLVM's textual IR: types and their sizes, places in the user's text, operands.

The IR of clang 18 to 22 differs in attributes only, so lines are read by their shape.
"""

from __future__ import annotations

import re

# LLVM's numbers of the address spaces, as include/ declares them.
DEVICE, CONSTANT, THREADGROUP = 1, 2, 3

# Files of the user, by their #line names; places elsewhere are traced to the call there.
USER_FILES = ("source", "header")

# The name of a value, and all of them in a line.
VALUE = r"%(?:[-\w.$]+|\"[^\"]*\")"
values = re.compile(VALUE).findall

# A private variable: its name and type.
ALLOCA = re.compile(rf"\s*({VALUE}) = alloca (.*?), align (\d+)")
# An address computed from a pointer: its name, the type, the pointer, and the indices.
ADDRESS = re.compile(
    rf"\s*({VALUE}) = getelementptr (?:inbounds |nuw |nusw )*(.+), "
    rf"ptr ({VALUE})((?:, i\d+ [^\s,]+)*)"
)
# A pointer that is loaded from a private variable: its name, and where it was.
LOADED_POINTER = re.compile(rf"\s*({VALUE}) = load ptr, ptr ({VALUE}), align")

_DEBUG = re.compile(r"!dbg !(\d+)")

_SIZES = {"half": 2, "bfloat": 2, "float": 4, "double": 8, "x86_fp80": 16, "fp128": 16}


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

    def smallest(self, text: str) -> int:
        """Bytes of the smallest scalar in a type."""
        text = text.strip()
        if text in self._named:
            return self.smallest(self._named[text])
        if many := re.fullmatch(r"[<\[]\s*\d+ x (.+)[>\]]", text):
            return self.smallest(many[1])
        if struct := re.fullmatch(r"<?\{(.*)\}>?", text):
            return min((self.smallest(part) for part in split(struct[1])), default=1)
        return self.size(text)

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
            for part in split(struct[2]):
                item, alignment = self._layout(part.strip())
                alignment = 1 if struct[1] else alignment
                size = -(-size // alignment) * alignment + item
                widest = max(widest, alignment)
            return -(-size // widest) * widest, widest
        raise ValueError(f"LLVM type {text!r} is not known")


class Places:
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
        self._file_of_scope: dict[str, str | None] = {}
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
        debug = _DEBUG.search(line)
        if debug and debug[1] in self._locations:
            number, column, scope, inlined_at = self._locations[debug[1]]
            file = self._file(scope)
            while file not in USER_FILES and inlined_at in self._locations:
                number, column, scope, inlined_at = self._locations[inlined_at]
                file = self._file(scope)
            place = (file, number, column)
        return place

    def own_file(self, line: str) -> str:
        """The file whose text an instruction comes from, be it inlined or not."""
        debug = _DEBUG.search(line)
        location = self._locations.get(debug[1]) if debug else None
        return self._file(location[2]) if location else ""

    def _file(self, scope: str) -> str:
        return self._files.get(self._file_of_scope.get(scope) or "", "")


def split(text: str) -> list[str]:
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


def leading_type(text: str) -> tuple[str, str]:
    """'TYPE rest' in two; blanks inside brackets belong to the type."""
    depth = 0
    for i, character in enumerate(text):
        depth += character in "<[{("
        depth -= character in ">]})"
        if character == " " and depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def variable_name(symbol: str) -> str:
    """The variable's own name in a mangled symbol: ``..E4sums`` or ``..E4sums_0``.

    In the mangled name of a function's variable it comes last, after its length.
    """
    text = symbol.strip('@"')
    for start in range(len(text) - 1, 0, -1):
        if not text[start - 1].isdigit() or text[start].isdigit():
            continue
        first = start
        while first and text[first - 1].isdigit():
            first -= 1
            length = int(text[first:start])
            rest = text[start + length :]
            if 0 < length <= len(text) - start and (not rest or rest.lstrip("_").isdigit()):
                return text[start : start + length]
    return text


def escaped(content: bytes) -> str:
    plain = set(range(32, 127)) - {ord('"'), ord("\\")}
    return "".join(chr(byte) if byte in plain else f"\\{byte:02X}" for byte in content)
