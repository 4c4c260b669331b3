"""Private variables of a thread: which of their bytes were written, and where they end.

A variable without an initial value gets a second one of as many bytes, its record, which
remembers the bytes that were written; where the optimiser sees that all are written before they
are read, nothing of it is left. A variable whose address goes elsewhere has none, because others
may write it. An array whose address goes elsewhere gets a redzone on both sides, which the
runtime knows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from .ir import ADDRESS, ALLOCA, LOADED_POINTER, USER_FILES, VALUE, Places, Types, values
from .pointers import Pointers

_STORED_POINTER = re.compile(rf"\s*store ptr ({VALUE}), ptr ({VALUE}), align")
_FILLED = re.compile(rf"\s*call void @llvm\.mem(?:set|cpy|move)\.[^(]*\(ptr[^%,]* ({VALUE}),")
_COPY = re.compile(
    rf"\s*call void @llvm\.mem(?:cpy|move)\.[^(]*\(ptr[^%,]* ({VALUE}), ptr[^%,]* ({VALUE}),"
)
_LOADED_VALUE = re.compile(rf"\s*({VALUE}) = load .*, ptr ({VALUE}), align")
_STORED_VALUE = re.compile(rf"\s*store .* ({VALUE}), ptr ({VALUE}), align")
# Lines that may change where a pointer points to, or what is written, and that are no stores of
# numbers.
_MATTERS = re.compile(r"(?:store|load) ptr\b|getelementptr |@llvm\.mem")
_REDZONE_BYTES = 32

# The sizes of the pieces in which a record is read, the largest first.
_PIECES = (16, 8, 4, 2, 1)


class PrivateVariables:
    """The private variables of one function of a module.

    Args:
        lines: the function.
        uninitialised: the metadata that clang puts where a variable without an initial value is
            declared; empty if there is none in the module.
    """

    def __init__(self, lines: Sequence[str], uninitialised: str, types: Types, places: Places):
        self._types = types
        self._uninitialised = uninitialised
        self._parts = 0
        declares = list(map(self.declares, lines))
        self._pointers = Pointers(lines, declares)
        self._declared = self._pointers.declared
        without_value = {
            self._named_first(line)
            for line, is_declaration in zip(lines, declares, strict=True)
            if is_declaration and places.own_file(line) in USER_FILES
        }
        self._recorded = without_value & set(self._declared) - self._pointers.escaped
        self._copied = _copied_values(lines)
        self._record_copies(lines)
        held = self._pointers.held.values()
        # a pointer has a record if all have one that it may point into
        while mixed := {v for some in held if not some <= self._recorded for v in some} & (
            self._recorded
        ):
            self._recorded -= mixed
        taken = self._pointers.escaped.union(*held)
        self._guarded = {v for v in taken if self._declared.get(v, "").startswith("[")}

    def _record_copies(self, lines: Sequence[str]) -> None:
        """Variables into which one with a record is copied have a record as well."""
        copies = [(m[1], m[2]) for line in lines if (m := _COPY.match(line))]
        for line in lines:
            if (store := _STORED_VALUE.match(line)) and store[1] in self._copied:
                copies.append((store[2], self._copied[store[1]]))
        changed = True
        while changed:
            reached = {
                v
                for target, source in copies
                if self._pointers.pointees(source) & self._recorded
                for v in self._pointers.pointees(target)
            }
            reached &= set(self._declared) - self._pointers.escaped - self._recorded
            self._recorded |= reached
            changed = bool(reached)

    def is_copied(self, line: str) -> bool:
        """Whether a line loads a value only to store it elsewhere: nobody reads it."""
        load = _LOADED_VALUE.match(line)
        return bool(load) and load[1] in self._copied

    def knows(self, pointer: str) -> bool:
        """Whether a pointer is computed from a variable of this function without detours."""
        return pointer in self._pointers.variable

    def variable(self, pointer: str) -> tuple[str, str] | None:
        """The variable that a pointer is computed from without detours, and its type."""
        name = self._pointers.variable.get(pointer)
        return (name, self._declared[name]) if name else None

    def declaration(self, line: str) -> list[str] | None:
        """What stands for the declaration of a variable with a record or with redzones."""
        variable = ALLOCA.match(line) if " = alloca " in line else None
        if not variable:
            return None
        name, size = variable[1], self._types.size(variable[2])
        lines = [line]
        if name in self._guarded and size:
            zone, outer = f"[{_REDZONE_BYTES} x i8]", f"%msl.guarded.{_stem(name)}"
            lines = [
                f"  {outer} = alloca <{{ {zone}, {variable[2]}, {zone} }}>, align 32",
                f"  {name} = getelementptr i8, ptr {outer}, i64 {_REDZONE_BYTES}",
                f"  call void @__msl_guard(ptr {name}, i32 {size})",
            ]
        if name in self._recorded and size:
            lines += [f"  {_record(name)} = alloca [{size} x i8]", _fill(name, size, 1)]
        if self._holds_recorded(name):
            lines += [
                f"  {_record_held(name)} = alloca ptr",
                f"  store ptr @__msl_written, ptr {_record_held(name)}",
            ]
        return lines if lines != [line] else None

    def before_return(self) -> list[str]:
        """What stands before the function returns: another one may take the place of its arrays."""
        count = sum(1 for v in self._guarded if self._types.size(self._declared[v]))
        return [f"  call void @__msl_unguard(i32 {count})"] if count else []

    def check_load(self, pointer: str, parts: Sequence[tuple[int, int]], site: int) -> list[str]:
        """Calls before a load of parts of a variable, each of an offset and a size in bytes."""
        if not self._has_record(pointer):
            return []
        lines = []
        for offset, size in parts:
            for piece in _PIECES:
                while size >= piece:
                    place, address = self._part(pointer, offset)
                    lines += address
                    lines.append(f"  call void @msl.check.{piece}(ptr {place}, i32 {site})")
                    offset, size = offset + piece, size - piece
        return lines

    def after(self, line: str, stored: tuple[str, int] | None) -> list[str]:
        """What follows a line: it keeps the records.

        Args:
            line: the line.
            stored: the pointer and the bytes if the line is a store.
        """
        if stored and self.declares(line):
            return self._undone(line)
        if not stored and not _MATTERS.search(line):
            return []
        lines = []
        if stored and self._has_record(stored[0]):
            lines.append(self._stored_record(line, *stored))
        if (store := _STORED_POINTER.match(line)) and self._holds_recorded(store[2]):
            lines.append(f"  store ptr {_record(store[1])}, ptr {_record_held(store[2])}")
        if (load := LOADED_POINTER.match(line)) and self._holds_recorded(load[2]):
            lines.append(f"  {_record(load[1])} = load ptr, ptr {_record_held(load[2])}")
        if lines:
            return lines
        if (address := ADDRESS.match(line)) and self._has_record(address[3]):
            return [
                f"  {_record(address[1])} = getelementptr {address[2]}, "
                f"ptr {_record(address[3])}{address[4]}"
            ]
        if filled := _FILLED.match(line):
            if self.declares(line):
                return self._undone(line)
            size = re.search(r", i64 (\d+), i1", line)
            if size and self._has_record(filled[1]):
                copy = _COPY.match(line)
                if copy and self._has_record(copy[2]):
                    return [_copy(filled[1], copy[2], int(size[1]))]
                return [_fill(filled[1], int(size[1]), 1)]
        return []

    def _stored_record(self, line: str, pointer: str, size: int) -> str:
        store = _STORED_VALUE.match(line)
        source = self._copied.get(store[1], "") if store else ""
        if source and self._has_record(source):
            return _copy(pointer, source, size)
        return _fill(pointer, size, 1)

    def _undone(self, line: str) -> list[str]:
        """A variable is declared (again): none of its bytes are written."""
        name = self._named_first(line)
        if name not in self._recorded:
            return []
        return [_fill(name, self._types.size(self._declared[name]), 0)]

    def declares(self, line: str) -> bool:
        """Whether a line only declares a variable without an initial value."""
        return bool(self._uninitialised) and line.endswith(self._uninitialised)

    def _named_first(self, line: str) -> str:
        return next((n for n in values(line) if n in self._declared), "")

    def _has_record(self, pointer: str) -> bool:
        pointees = self._pointers.pointees(pointer)
        return bool(pointees) and pointees <= self._recorded

    def _holds_recorded(self, variable: str) -> bool:
        """Whether a pointer variable points only into variables that have a record."""
        held = self._pointers.held.get(variable)
        return bool(held) and held <= self._recorded

    def _part(self, pointer: str, offset: int) -> tuple[str, list[str]]:
        """The record `offset` bytes behind that of a pointer, and the line that finds it."""
        if not offset:
            return _record(pointer), []
        self._parts += 1
        name = f"%msl.part.{_stem(pointer)}.{self._parts}"
        return name, [f"  {name} = getelementptr i8, ptr {_record(pointer)}, i64 {offset}"]


def _copied_values(lines: Sequence[str]) -> dict[str, str]:
    """Values that are loaded only to be stored in the next line, with where they come from."""
    copied = {}
    for line, following in itertools.pairwise(lines):
        load, store = _LOADED_VALUE.match(line), _STORED_VALUE.match(following)
        # what is passed by value in registers; a scalar that is copied was meant to be read
        if load and store and load[1] == store[1] and "<" in line:
            copied[load[1]] = load[2]
    return copied


def check_functions() -> list[str]:
    """The functions that `PrivateVariables.check_load` calls."""
    lines = []
    for piece in _PIECES:
        written = int.from_bytes(b"\1" * piece, "little")
        lines += [
            f"define internal void @msl.check.{piece}(ptr %record, i32 %site) alwaysinline {{",
            f"  %written = load i{8 * piece}, ptr %record, align 1",
            f"  %all = icmp eq i{8 * piece} %written, {written}",
            "  br i1 %all, label %done, label %some",
            "some:",
            "  call void @__msl_uninitialised_local(i32 %site)",
            "  br label %done",
            "done:",
            "  ret void",
            "}",
        ]
    return [
        *lines,
        "@__msl_written = external global i8",
        "declare void @__msl_uninitialised_local(i32) cold",
        "declare void @__msl_guard(ptr, i32)",
        "declare void @__msl_unguard(i32)",
    ]


def _stem(name: str) -> str:
    return name.strip('%"')


def _record(pointer: str) -> str:
    return f"%msl.record.{_stem(pointer)}"


def _copy(target: str, source: str, size: int) -> str:
    return (
        f"  call void @llvm.memmove.p0.p0.i64(ptr {_record(target)}, ptr {_record(source)}, "
        f"i64 {size}, i1 false)"
    )


def _record_held(variable: str) -> str:
    return f"%msl.held.{_stem(variable)}"


def _fill(pointer: str, size: int, value: int) -> str:
    return (
        f"  call void @llvm.memset.p0.i64(ptr {_record(pointer)}, i8 {value}, i64 {size}, i1 false)"
    )
