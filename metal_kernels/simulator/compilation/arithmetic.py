"""Arithmetic of integers: products of 32 bits that become indices, divisions by zero.

An unsigned product that does not fit wraps around, which hashes rely on and indices never mean.
So products are checked from which an index is computed by sums, products and divisions alone.

Hardware goes on after a division by zero, and so does the simulator, once it is reported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .ir import VALUE, values

_DEFINED = re.compile(rf"\s*({VALUE}) = (\w+) (.*)$")
_STORED = re.compile(rf"\s*store (?:volatile )?i\d+ ({VALUE}), ptr ({VALUE}), align")
_LOADED = re.compile(rf"(?:volatile )?i\d+, ptr ({VALUE}), align")
_INDEX = re.compile(r"getelementptr .*, ptr addrspace\([123]\) [^\s,]+((?:, i\d+ [^\s,]+)+)")
_CONVERSIONS = {"zext", "sext", "trunc"}
_SUMS = {"add", "sub", "mul"}
_DIVISION = re.compile(
    rf"\s*({VALUE}) = ([us])(div|rem) (?:exact )?(i(\d+)|<(\d+) x i(\d+)>) (\S+), (\S+?)(?=,|$)"
)


def index_products(lines: Sequence[str]) -> set[int]:
    """The lines of a function with unsigned products of 32 bits that become part of an index."""
    defined: dict[str, tuple[str, str, int]] = {}
    stored: dict[str, list[str]] = {}
    waiting: list[str] = []
    for at, line in enumerate(lines):
        if store := _STORED.match(line):
            stored.setdefault(store[2], []).append(store[1])
        elif definition := _DEFINED.match(line):
            defined[definition[1]] = definition[2], definition[3], at
            if index := _INDEX.search(line):
                waiting += values(index[1])
    products, seen = set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in defined:
            continue
        seen.add(name)
        operation, operands, at = defined[name]
        if operation == "mul" and operands.startswith("i32 "):
            products.add(at)
        if operation == "udiv":
            waiting += values(operands)[:1]
        elif operation in _CONVERSIONS | _SUMS:
            waiting += values(operands)
        elif operation == "load" and (loaded := _LOADED.match(operands)):
            waiting += stored.get(loaded[1], [])
    return products


def check_product(line: str, site: int) -> str:
    """The call before a line that `index_products` names."""
    factors = re.search(r"= mul i32 (\S+), (\S+?)(?=,|$)", line)
    assert factors
    return f"  call void @msl.check.product(i32 {factors[1]}, i32 {factors[2]}, i32 {site})"


def safe_division(line: str) -> list[str] | None:
    """A division as one that cannot fault: by 1 where it would. None for any other line."""
    division = _DIVISION.match(line) if "div " in line or "rem " in line else None
    if not division:
        return None
    name, sign, kind, type_text, bits, lanes, lane_bits, value, by = division.groups()
    stem = name.strip('%"')
    zero, ones, least = (_constant(n, bits or lane_bits, lanes) for n in (0, 1, "least"))
    flag = f"<{lanes} x i1>" if lanes else "i1"
    result = [f"  %msl.zero.{stem} = icmp eq {type_text} {by}, {zero}"]
    faults = f"%msl.zero.{stem}"
    if sign == "s":
        minus = _constant(-1, bits or lane_bits, lanes)
        result += [
            f"  %msl.minus.{stem} = icmp eq {type_text} {by}, {minus}",
            f"  %msl.least.{stem} = icmp eq {type_text} {value}, {least}",
            f"  %msl.wraps.{stem} = and {flag} %msl.minus.{stem}, %msl.least.{stem}",
            f"  %msl.faults.{stem} = or {flag} %msl.wraps.{stem}, {faults}",
        ]
        faults = f"%msl.faults.{stem}"
    divisor = f"%msl.divisor.{stem}"
    rest = line[division.end() :]
    return [
        *result,
        f"  {divisor} = select {flag} {faults}, {type_text} {ones}, {type_text} {by}",
        f"  {name} = {sign}{kind} {type_text} {value}, {divisor}{rest}",
    ]


def _constant(value: int | str, bits: str, lanes: str | None) -> str:
    number = -(1 << (int(bits) - 1)) if value == "least" else value
    if not lanes:
        return str(number)
    return f"<{', '.join([f'i{bits} {number}'] * int(lanes))}>"


def check_functions() -> list[str]:
    """The functions that these checks call."""
    return [
        "define internal void @msl.check.product(i32 %a, i32 %b, i32 %site) alwaysinline {",
        "  %both = call {i32, i1} @llvm.umul.with.overflow.i32(i32 %a, i32 %b)",
        "  %wraps = extractvalue {i32, i1} %both, 1",
        "  br i1 %wraps, label %said, label %done",
        "said:",
        "  call void @__msl_index_wrap(i32 %a, i32 %b, i32 %site)",
        "  br label %done",
        "done:",
        "  ret void",
        "}",
        "declare {i32, i1} @llvm.umul.with.overflow.i32(i32, i32)",
        "declare void @__msl_index_wrap(i32, i32, i32) cold",
    ]
