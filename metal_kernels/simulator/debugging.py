"""Looking into a kernel while it runs: the steps of one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .listeners import listen
from .report import Note
from .settings import options


@contextmanager
def trace(thread: Sequence[int] = (0, 0, 0)) -> Iterator[list[Note]]:
    """Trace one thread of every kernel that is launched inside a ``with`` block.

    Args:
        thread: its position in the grid; trailing zeros may be left out.

    Yields:
        The list that the steps are added to: what was stored in which variable, loaded from
        memory and stored there, with the lines. Kernels are compiled anew for it.

    Raises:
        ValueError: if the position is not one to three numbers from 0 on.
    """
    position = tuple(thread)
    if not 1 <= len(position) <= 3 or any(not isinstance(n, int) or n < 0 for n in position):
        raise ValueError(f"thread is {thread!r}; wanted are one to three numbers from 0 on")
    steps: list[Note] = []
    position = (*position, 0, 0)[:3]
    with (
        options(trace=position),
        listen(lambda kernel, report: steps.extend(report.steps)),
    ):
        yield steps
