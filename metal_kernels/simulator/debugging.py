"""Looking into a kernel while it runs: the steps of one thread, by themselves or in a debugger."""

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
    position = _position(thread)
    steps: list[Note] = []
    with (
        options(trace=position),
        listen(lambda kernel, report: steps.extend(report.steps)),
    ):
        yield steps


@contextmanager
def debug(thread: Sequence[int] = (0, 0, 0)) -> Iterator[None]:
    """Compile kernels for a debugger inside a ``with`` block: unoptimised, with the user's lines.

    ``msl_thread_begins`` is called before the thread runs: a breakpoint there, then one at a line
    of "source" or "header". Accesses are not watched, and there is no time limit.

    Args:
        thread: its position in the grid; trailing zeros may be left out.

    Raises:
        ValueError: if the position is not one to three numbers from 0 on.
    """
    with options(debug=_position(thread), timeout=0):
        yield


def _position(thread: Sequence[int]) -> tuple[int, int, int]:
    given = tuple(thread)
    if not 1 <= len(given) <= 3 or any(not isinstance(n, int) or n < 0 for n in given):
        raise ValueError(f"thread is {thread!r}; wanted are one to three numbers from 0 on")
    x, y, z = (*given, 0, 0)[:3]
    return x, y, z
