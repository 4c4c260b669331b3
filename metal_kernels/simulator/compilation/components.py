"""Stores to components of a vector, as stores of just those components.

clang stores ``v.x = a`` by loading all of v, putting a into it and storing all of it. What the
source says is a store of one component, and threads may well store different ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_VALUE = r"%[-\w.$]+"
_VECTOR = r"<(\d+) x (\w+)>"
_LOAD = re.compile(
    rf"\s*({_VALUE}) = load (volatile )?{_VECTOR}, (ptr(?: addrspace\(\d+\))?) ((?:%|@)\S+), align"
)
_INSERT = re.compile(
    rf"\s*({_VALUE}) = insertelement {_VECTOR} ({_VALUE}), (\w+) (\S+), (i\d+) (\S+?)(?=,|$)"
)
_SHUFFLE = re.compile(
    rf"\s*({_VALUE}) = shufflevector {_VECTOR} ({_VALUE}), {_VECTOR} ({_VALUE}|poison|undef), "
    r"<\d+ x i32> (<[^>]*>|zeroinitializer|poison)"
)
_STORE = re.compile(r"\s*store (?:volatile )?<\d+ x \w+> (\S+), (ptr(?: addrspace\(\d+\))?) (\S+),")
_DEBUG = re.compile(r", !dbg !\d+")

# bytes of the scalars that vectors consist of
SCALAR_BYTES = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "half": 2, "bfloat": 2, "float": 4}


def store_components(lines: Sequence[str]) -> list[str]:
    """The lines of a function; what stores components of a vector stores nothing else.

    Values keep their names: those that are no longer needed become pointers.
    """
    result: list[str] = []
    at = 0
    while at < len(lines):
        rewritten, count = _rewritten(lines, at)
        result += rewritten if count else [lines[at]]
        at += count or 1
    return result


def components_loaded(lines: Sequence[str], at: int) -> tuple[tuple[int, int], ...] | None:
    """Offset and bytes of what is used of the vector that ``lines[at]`` loads.

    None if it is all of it, or not a vector.
    """
    load = _LOAD.match(lines[at])
    if not load or at + 1 == len(lines):
        return None
    name, size = load[1], SCALAR_BYTES.get(load[4], 0)
    following = lines[at + 1]
    one = re.match(
        rf"\s*{_VALUE} = extractelement {_VECTOR} {re.escape(name)}, i\d+ (\d+)", following
    )
    if one and size:
        return ((int(one[3]) * size, size),)
    several = _SHUFFLE.match(following)
    if several and size and several[4] == name and several[7] in ("poison", "undef"):
        lanes = sorted({lane for lane in _mask(several[8]) if 0 <= lane < int(load[3])})
        if len(lanes) < int(load[3]):
            return tuple((lane * size, size) for lane in lanes)
    return None


def _rewritten(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """What replaces the lines from `at` on, and how many; 0 if they store no component."""
    load = _LOAD.match(lines[at])
    if not load or load[4] not in SCALAR_BYTES:
        return [], 0
    window = lines[at + 1 : at + 4]
    insert = _INSERT.match(window[0]) if window else None
    if insert and len(window) > 1 and insert[4] == load[1] and _stores(window[1], insert[1], load):
        return _one_component(lines[at], load, insert), 3
    for first in (0, 1):
        if len(window) <= first + 1:
            break
        shuffle = _SHUFFLE.match(window[first])
        if shuffle and shuffle[4] == load[1] and _stores(window[first + 1], shuffle[1], load):
            pointer, *stores = _several_components(lines[at], load, shuffle)
            # a shuffle that widens what is stored stands between
            return [pointer, *window[:first], *stores], first + 3
    return [], 0


def _stores(line: str, value: str, load: re.Match) -> bool:
    store = _STORE.match(line)
    return bool(store) and (store[1], store[2], store[3]) == (value, load[5], load[6])


def _one_component(line: str, load: re.Match, insert: re.Match) -> list[str]:
    scalar, pointer, debug = load[4], f"{load[5]} {load[6]}", _debug(line)
    volatile = load[2] or ""
    return [
        f"  {load[1]} = getelementptr {scalar}, {pointer}, {insert[7]} {insert[8]}{debug}",
        f"  {insert[1]} = getelementptr {scalar}, {pointer}, {insert[7]} {insert[8]}{debug}",
        f"  store {volatile}{scalar} {insert[6]}, {load[5]} {load[1]}, "
        f"align {SCALAR_BYTES[scalar]}{debug}",
    ]


def _several_components(line: str, load: re.Match, shuffle: re.Match) -> list[str]:
    scalar, pointer, debug = load[4], f"{load[5]} {load[6]}", _debug(line)
    lanes, size = int(load[3]), SCALAR_BYTES[scalar]
    result = [
        f"  {name} = getelementptr i8, {pointer}, i64 0{debug}" for name in (load[1], shuffle[1])
    ]
    stem = shuffle[1].strip("%")
    for lane, taken in enumerate(_mask(shuffle[8])):
        if taken < lanes:
            continue
        value, place = f"%msl.component.{stem}.{lane}", f"%msl.place.{stem}.{lane}"
        result += [
            f"  {value} = extractelement <{shuffle[5]} x {scalar}> {shuffle[7]}, "
            f"i64 {taken - lanes}{debug}",
            f"  {place} = getelementptr {scalar}, {pointer}, i64 {lane}{debug}",
            f"  store {load[2] or ''}{scalar} {value}, {load[5]} {place}, align {size}{debug}",
        ]
    return result


def _mask(text: str) -> list[int]:
    """The lanes that a shuffle takes; -1 for those that it leaves open."""
    if text == "zeroinitializer":
        return [0]
    return [
        int(n) if n.lstrip("-").isdigit() else -1 for n in re.findall(r"i32 (\S+?)(?=[,>])", text)
    ]


def _debug(line: str) -> str:
    found = _DEBUG.search(line)
    return found[0] if found else ""
