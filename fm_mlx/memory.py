"""How a layer's memory lives in its cache: as one state, or as two that take turns.

A step changes k of m rows, but a functional update copies all m, unless nobody else holds
the array; and while tokens are computed one ahead, the step before still does. So a large
memory is kept twice. Each step takes the buffer that the step before did not read, writes
the rows of the last two steps into it, in place, and reads its k rows there. What it
changes waits for the next two steps. A cache that is held elsewhere (a snapshot, a branch)
keeps its arrays: the next write to each buffer copies, once.

All entries of the cache are arrays with the batch first, as mlx-lm's batches want them.
"""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from fm_mlx import ops

# Entries of a double-buffered cache. AHEAD is written and read by the next step and lacks
# the rows of the last two; BEHIND was read by the last step and lacks that one's rows.
AHEAD, BEHIND, OLDER_INDICES, OLDER_ROWS, NEWER_INDICES, NEWER_ROWS = range(6)
_ENTRIES = 6

# Numbers of a state beyond which the two buffers pay. Measured on the CPU backend, d = 256,
# k = 8, steps by themselves: 34 us for the dense form and 42 us for this one at m = 64, 86
# and 43 at m = 256, 1600 and 41 at m = 4096.
_LARGEST_DENSE = 24_576


def cache_entries(num_rows: int, num_active: int, width: int) -> int:
    """Entries of a layer's cache for a memory of m rows of d numbers, k of them active."""
    pays = num_active < num_rows and num_rows * width > _LARGEST_DENSE
    return _ENTRIES if pays else 1


def is_buffered(cache: ArraysCache | None) -> bool:
    """Whether a cache holds two states that take turns."""
    return cache is not None and len(cache.cache) == _ENTRIES


def state_of(cache: ArraysCache) -> mx.array | None:
    """The whole state (B, m, d) float32; None if nothing was read yet."""
    if not is_buffered(cache) or cache[BEHIND] is None:
        return cache[0]
    return ops.written(cache[BEHIND], (cache[NEWER_INDICES], cache[NEWER_ROWS]))


def set_state(cache: ArraysCache, state: mx.array, num_active: int) -> None:
    """Put a whole state (B, m, d) into a cache; k is that of the steps to come."""
    cache[0] = state
    if is_buffered(cache):
        # rows that wait to be written must be there: these are written already
        indices = mx.broadcast_to(mx.arange(num_active, dtype=mx.int32), (len(state), num_active))
        rows = mx.contiguous(state[:, :num_active])
        cache.cache = [state, state, indices, rows, indices, rows]


def step(
    cache: ArraysCache,
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    mask: mx.array | None,
    eps: float,
) -> mx.array:
    """One token on a double-buffered cache that is not empty; y (B, d).

    Args:
        cache: updated.
        indices, theta, phi: (B, k), of `ops.route`.
        value: (B, d).
        mask: (B,) bool or None.
        eps: added to the mean square of a row.
    """
    ahead, behind, *waiting = cache.cache
    # the graph must hold the only reference to the buffer that it writes
    cache.cache = []
    writes = list(zip(waiting[::2], waiting[1::2], strict=True))
    state, rows, y = ops.buffered_memory_step(
        writes, indices, theta, phi, value, ahead, mask, eps=eps
    )
    cache.cache = [behind, state, *waiting[2:], indices, rows]
    return y
