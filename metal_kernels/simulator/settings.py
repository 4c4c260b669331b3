"""How kernels are executed: `options`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from .compilation.instrument import Mode
from .execution import native
from .kinds import FATAL, KINDS


@dataclass(frozen=True)
class Options:
    """How kernels are executed; see `options`."""

    order: str = "forward"
    seed: int = 0
    orders: int = 1
    reduce_order: str = "ascending"
    fatal: frozenset[str] = FATAL
    yield_at_memory: bool = False
    flush_denormals: bool = False
    timeout: float = 60.0
    checked: bool = True
    nan: bool = False
    maps: bool = False
    trace: tuple[int, int, int] | None = None
    debug: tuple[int, int, int] | None = None
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    @property
    def mode(self) -> Mode:
        """How kernels are compiled for it."""
        if self.debug is not None:
            return "debugged"
        if self.trace is not None:
            return "traced"
        if not self.checked:
            return "unchecked"
        return "nan" if self.nan else "checked"


_options: ContextVar[Options | None] = ContextVar("options", default=None)

# What holds in every thread outside of `options`.
_defaults = Options()


def current() -> Options:
    """What `options` says here."""
    return _options.get() or _defaults


def set_defaults(**changes: Any) -> Options:
    """Change what holds outside of `options`, in every thread; what held before."""
    global _defaults
    before, _defaults = _defaults, _changed(_defaults, changes)
    return before


@contextmanager
def options(**changes: Any) -> Iterator[None]:
    """Change how kernels are executed inside a ``with`` block.

    Args:
        order: "forward" (default), "reverse" or "random": of the threadgroups, the
            SIMD-groups of each and their lanes between two synchronisations.
        seed: the seed of the random order.
        orders: how many orders to execute every launch in, `order` first, then the other two
            and further random ones; outputs that differ are a finding.
        reduce_order: the order of simd_sum and its like: "ascending" (default) or "descending"
            butterfly, or "sequential".
        fatal: kinds of findings that raise `SimulationError`; FATAL by default, () for none.
        yield_at_memory: in random order, switch threads at loads and stores as well.
        flush_denormals: treat denormal numbers as 0.
        checked: False to watch no access: several times as fast, and nothing is found but what
            stops a launch; the report has no traffic.
        nan: tell of operations and functions that give NaN for numbers, and of comparisons by size
            with a NaN.
        maps: count which threadgroups move which parts of every buffer, for `draw_traffic`.
        timeout: seconds for a launch.
        workers: processes that share the threadgroups of a long launch, as many as there are
            cores unless told otherwise; the outputs and the report are those of one.

    Raises:
        ValueError: if a value is not one of those.
    """
    token = _options.set(_changed(current(), changes))
    try:
        yield
    finally:
        _options.reset(token)


def _changed(chosen: Options, changes: dict[str, Any]) -> Options:
    if "fatal" in changes:
        changes = {**changes, "fatal": frozenset(changes["fatal"])}
    chosen = replace(chosen, **changes)
    for name, allowed in (
        ("order", native.ORDERS),
        ("reduce_order", native.REDUCE_ORDERS),
    ):
        if (value := getattr(chosen, name)) not in allowed:
            raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    for name in ("orders", "workers"):
        if not isinstance(value := getattr(chosen, name), int) or value < 1:
            raise ValueError(f"{name} is {value!r}; allowed are 1, 2, 3 and so on")
    if unknown := chosen.fatal - KINDS:
        raise ValueError(f"no such kind of finding: {', '.join(sorted(unknown))}")
    return chosen
