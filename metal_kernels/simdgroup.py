"""What the launchers of several kernels share, as ``simdgroup.h`` does for their Metal text."""

from __future__ import annotations

from functools import cache

# Threads of a SIMD-group on an Apple GPU.
LANES = 32

_MOST_THREADS_OF_A_ROW = 512


@cache
def threads_of_a_row(width: int) -> int:
    """The number of threads of a threadgroup that shares a row of ``width`` numbers.

    It is a multiple of `LANES`. A thread takes every number whose position in the row is its
    own index plus a multiple of this count.
    """
    return min(_MOST_THREADS_OF_A_ROW, -(-width // LANES) * LANES)


@cache
def numbers_of_a_thread(width: int) -> int:
    """The most numbers of a row of ``width`` that one of its threads takes."""
    return -(-width // threads_of_a_row(width))
