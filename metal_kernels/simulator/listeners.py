"""Who is told of every launch: `listen`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .report import Report

# Called with a `simulator.Kernel` and the report of its launch.
Listener = Callable[[Any, Report], None]

_listeners: list[Listener] = []


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Be told of every launch of the process inside a ``with`` block.

    Args:
        listener: called with the kernel and the report of each launch, before a fatal finding
            raises; also for a kernel that does not compile, whose report has that as a finding.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(kernel: Any, report: Report) -> None:
    """Tell everybody who listens."""
    for listener in tuple(_listeners):
        listener(kernel, report)
