"""Peak memory that does not depend on how busy the machine is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


@contextmanager
def in_step() -> Iterator[None]:
    """MLX hands over a task when the one before is done, inside a ``with`` block.

    Otherwise it allocates for up to ten tasks that wait for their turn, fewer or more as
    the thread that does them keeps up: peaks of one computation were seen to differ by 16 %.
    Above the memory limit it waits first.
    """
    limit = mx.set_memory_limit(1)
    try:
        yield
    finally:
        mx.set_memory_limit(limit)
