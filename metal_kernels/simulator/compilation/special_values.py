"""Numbers that are none: halves that overflow, NaN that is made of numbers or compared.

They are told by their bits. In math mode "fast" the optimiser assumes that there is no NaN and no
infinity, and what it makes of such a kernel may have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .ir import VALUE, split

_FLAGS = r"(?:(?:fast|nnan|ninf|nsz|arcp|contract|afn|reassoc) )*"
_TYPE = r"(<\d+ x (?:half|bfloat|float)>|half|bfloat|float)"
_BINARY = re.compile(rf"\s*({VALUE}) = (fadd|fsub|fmul|fdiv|frem) {_FLAGS}{_TYPE} (.*)$")
_TO_HALF = re.compile(rf"\s*({VALUE}) = fptrunc {_FLAGS}{_TYPE} (.*) to (half|<\d+ x half>)")
_CALL = re.compile(rf"\s*({VALUE}) = (?:tail )?call {_FLAGS}(?:noundef )?{_TYPE} @[\w.]+\((.*)\)")
_ARGUMENT = re.compile(rf"\s*{_TYPE} (?:noundef )?(.*)$")
_COMPARED = re.compile(rf"\s*({VALUE}) = fcmp {_FLAGS}[ou](?:gt|ge|lt|le) {_TYPE} (.*)$")


class _Bits(NamedTuple):
    """How many bits a number has, those of its exponent, and all but the sign."""

    width: int
    exponent: int
    magnitude: int


_BITS = {
    "half": _Bits(16, 0x7C00, 0x7FFF),
    "bfloat": _Bits(16, 0x7F80, 0x7FFF),
    "float": _Bits(32, 0x7F800000, 0x7FFFFFFF),
}

Operand = tuple[str, str]
"""Its type and its value."""


def check_half(line: str, site: int) -> list[str]:
    """What follows a line that computes halves: a report of an infinity made of finite numbers."""
    found = _operation(line)
    if not found or not found[0][0].endswith(("half", "half>")):
        return []
    result, operands = found
    checks = _Checks("half", result)
    made = checks.infinite(*result)
    for operand in operands:
        made = checks.both(made, checks.finite(*operand))
    if " = fdiv " in line:
        made = checks.both(made, checks.nonzero(*operands[1]))
    return checks.told("__msl_half_overflow", made, site)


def check_nan(line: str, site: int) -> list[str]:
    """What follows a line that computes a NaN of numbers, or compares one: a report of it."""
    if compared := _COMPARED.match(line):
        name, type_text, rest = compared.groups()
        checks = _Checks("nan", (type_text, name))
        a, b = ((type_text, value.strip()) for value in split(rest)[:2])
        met = checks.either(checks.nan(*a), checks.nan(*b))
        return checks.told("__msl_nan_compared", met, site)
    found = _operation(line) or _call(line)
    if not found:
        return []
    result, operands = found
    checks = _Checks("nan", result)
    made = checks.nan(*result)
    for operand in operands:
        made = checks.both(made, checks.negated(checks.nan(*operand)))
    return checks.told("__msl_nan_made", made, site)


def _operation(line: str) -> tuple[Operand, list[Operand]] | None:
    """Result and operands of an operation, or of a conversion to half."""
    if binary := _BINARY.match(line):
        name, _, type_text, rest = binary.groups()
        return (type_text, name), [(type_text, value.strip()) for value in split(rest)[:2]]
    if converted := _TO_HALF.match(line):
        name, source, value, target = converted.groups()
        return (target, name), [(source, value)]
    return None


def _call(line: str) -> tuple[Operand, list[Operand]] | None:
    """The same of a function of numbers that all have as many components as its result."""
    call = _CALL.match(line)
    if not call:
        return None
    name, type_text, arguments = call.groups()
    found = [_ARGUMENT.match(argument) for argument in split(arguments)]
    operands = [(m[1], m[2]) for m in found if m]
    if not operands or any(_lanes(kind) != _lanes(type_text) for kind, _ in operands):
        return None
    return (type_text, name), operands


class _Checks:
    """Instructions that test numbers component by component."""

    def __init__(self, kind: str, result: Operand):
        self._stem = kind + "." + result[1].strip('%"')
        self._lanes = _lanes(result[0])
        self._lines: list[str] = []
        self._count = 0

    def nan(self, type_text: str, value: str) -> str:
        bits = _bits(type_text)
        return self._test("ugt", type_text, value, bits.magnitude, bits.exponent)

    def infinite(self, type_text: str, value: str) -> str:
        bits = _bits(type_text)
        return self._test("eq", type_text, value, bits.magnitude, bits.exponent)

    def finite(self, type_text: str, value: str) -> str:
        bits = _bits(type_text)
        return self._test("ne", type_text, value, bits.exponent, bits.exponent)

    def nonzero(self, type_text: str, value: str) -> str:
        return self._test("ne", type_text, value, _bits(type_text).magnitude, 0)

    def both(self, a: str, b: str) -> str:
        return self._value(f"and {self._flags} {a}, {b}")

    def either(self, a: str, b: str) -> str:
        return self._value(f"or {self._flags} {a}, {b}")

    def negated(self, a: str) -> str:
        return self._value(f"xor {self._flags} {a}, {self._constant('i1', 1)}")

    def told(self, function: str, flags: str, site: int) -> list[str]:
        """All instructions, and the call that reports if a component has its flag set."""
        if self._lanes:
            bits = self._value(f"bitcast {self._flags} {flags} to i{self._lanes}")
            flags = self._value(f"icmp ne i{self._lanes} {bits}, 0")
        call = f"  call void @msl.{function.removeprefix('__msl_')}(i1 {flags}, i32 {site})"
        return [*self._lines, call]

    @property
    def _flags(self) -> str:
        return self._of_each("i1")

    def _of_each(self, scalar: str) -> str:
        """The type of as many scalars as there are components."""
        return f"<{self._lanes} x {scalar}>" if self._lanes else scalar

    def _test(self, how: str, type_text: str, value: str, mask: int, bound: int) -> str:
        """Compare the bits that `mask` has with `bound`."""
        scalar = f"i{_bits(type_text).width}"
        integer = self._of_each(scalar)
        bits = self._value(f"bitcast {type_text} {value} to {integer}")
        bits = self._value(f"and {integer} {bits}, {self._constant(scalar, mask)}")
        return self._value(f"icmp {how} {integer} {bits}, {self._constant(scalar, bound)}")

    def _constant(self, scalar: str, value: int) -> str:
        text = "true" if scalar == "i1" else str(value)
        return f"<{', '.join([f'{scalar} {text}'] * self._lanes)}>" if self._lanes else text

    def _value(self, instruction: str) -> str:
        self._count += 1
        name = f"%msl.{self._stem}.{self._count}"
        self._lines.append(f"  {name} = {instruction}")
        return name


def _bits(type_text: str) -> _Bits:
    """Those of a number, or of a component of a vector."""
    return _BITS[type_text.strip("<>").split()[-1]]


def _lanes(type_text: str) -> int:
    """How many components a vector has; 0 for a scalar."""
    return int(type_text[1:].split()[0]) if type_text.startswith("<") else 0


def check_functions() -> Iterator[str]:
    """The functions that these checks call."""
    for name in ("half_overflow", "nan_made", "nan_compared"):
        yield from _report_if(name)


def _report_if(name: str) -> Sequence[str]:
    return (
        f"define internal void @msl.{name}(i1 %said, i32 %site) alwaysinline {{",
        "  br i1 %said, label %yes, label %done",
        "yes:",
        f"  call void @__msl_{name}(i32 %site)",
        "  br label %done",
        "done:",
        "  ret void",
        "}",
        f"declare void @__msl_{name}(i32) cold",
    )
