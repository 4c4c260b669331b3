"""A launch under several orders, which must all give the same outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..kinds import SCHEDULE_DEPENDENT, SCHEDULE_ROUNDING
from ..report import Finding, Report
from ..settings import Options
from . import native
from .arrays import host_array

# How far two sums of the same numbers in another order may be apart, relative to the largest
# number of the output: many roundings of a float, few of the short types.
_ROUNDING = {mx.float32: 3e-5, mx.float16: 1e-2, mx.bfloat16: 6e-2, mx.float64: 1e-12}


def further(chosen: Options) -> Iterator[Options]:
    """The options of the launches after the first one."""
    orders = [order for order in native.ORDERS if order != chosen.order]
    for number in range(chosen.orders - 1):
        order = orders[number] if number < len(orders) else "random"
        yield replace(chosen, order=order, seed=chosen.seed + number)


def merge(report: Report, other: Report) -> None:
    """Add the findings of a further launch that the first one did not have."""
    known = {(f.kind, f.file, f.line, f.buffer) for f in report.findings}
    report.findings.extend(
        f for f in other.findings if (f.kind, f.file, f.line, f.buffer) not in known
    )


def differences(
    names: Sequence[str],
    first: Sequence[mx.array],
    second: Sequence[mx.array],
    order: tuple[str, str],
) -> Iterator[Finding]:
    """A finding for every output that depends on the order.

    Args:
        names: the names of the outputs.
        first, second: the outputs under the two orders.
        order: what the orders are called.
    """
    for name, a, b in zip(names, first, second, strict=True):
        if found := _difference(name, a, b, order):
            yield found


def _difference(name: str, a: mx.array, b: mx.array, order: tuple[str, str]) -> Finding | None:
    first, second = (
        host_array(x, row_contiguous=True).numbers.reshape(-1).view(np.uint8) for x in (a, b)
    )
    differ = np.flatnonzero(first != second)
    if not differ.size:
        return None
    rounding = a.dtype in _ROUNDING
    values = [np.array(x.astype(mx.float32) if rounding else x).reshape(-1) for x in (a, b)]
    places = np.unique(differ // a.itemsize)
    kind = SCHEDULE_DEPENDENT
    if rounding:
        left, right = values[0][places], values[1][places]
        finite = np.concatenate([v[np.isfinite(v)] for v in values])
        scale = np.abs(finite).max(initial=0)
        with np.errstate(invalid="ignore"):
            apart = ~(np.abs(left - right) <= _ROUNDING[a.dtype] * scale)
        kind = SCHEDULE_DEPENDENT if apart.any() else SCHEDULE_ROUNDING
        places = places[apart] if apart.any() else places
    at = int(places[0])
    element = [int(i) for i in np.unravel_index(at, a.shape or (1,))]
    return Finding(
        kind,
        f"{len(places)} of {a.size} elements depend on the order of the threads: the first, "
        f"{element}, is {values[0][at]} in {order[0]} order and {values[1][at]} in {order[1]}",
        buffer=name,
        offset=at * a.itemsize,
    )
