"""How the state of a layer lives in its cache: once, or in two buffers that take turns.

A step changes k of m rows, but a functional update copies all m, unless nobody else holds
the array; and while tokens are computed one ahead, the step before still does. So a large
memory is kept twice. Each step takes the buffer that the step before did not read, writes
the rows of the last two steps into it, in place, and reads its k rows there. What it
changes waits for the next two steps. An evaluation that waits in a queue holds what it was
given: evaluate tokens ahead, not the cache's arrays. A cache that is held elsewhere (a
snapshot, a branch) keeps its arrays: the next write to each buffer copies, once.

All entries of the cache are arrays with the batch first, as mlx-lm's batches want them.
"""

from __future__ import annotations

from typing import TypeGuard, cast

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache

from fm_mlx import ops
from fm_mlx.metal_kernels.launch import runs
from fm_mlx.ops import Write
from fm_mlx.ops.step import written

# Entries of a double-buffered cache. AHEAD is written and read by the next step and lacks
# the rows of the last two; BEHIND was read by the last step and lacks that one's rows. OLDER
# holds the rows of the token before the last, or, where the kernel runs, those of both.
AHEAD, BEHIND, OLDER_INDICES, OLDER_ROWS, NEWER_INDICES, NEWER_ROWS = range(6)
_ENTRIES = 6

# Numbers of a state beyond which the two buffers pay. By evidence/steps.py, on the CPU: for eight
# texts or more from some 40,000 on, for one, where a state is copied in less time than it takes to
# write to the rows of two tokens, from some 150,000.
_LARGEST_DENSE = 40_000


class WritesSeen(ArraysCache):
    """A cache of one state that is told what every forward pass writes to it."""

    def __init__(self):
        super().__init__(size=1)

    def watch(self, theta: mx.array, values: mx.array, state: mx.array) -> None:
        """See what a pass of T tokens writes.

        Args:
            theta: the rates with which rows are written, (B, T, m).
            values: (B, T, d).
            state: what is written to, (B, m, d) float32.
        """
        raise NotImplementedError


class WatchedCache(WritesSeen):
    """A cache of one state that also sums up how much its rows keep of what they held.

    A token that writes with the rate theta keeps 1 - theta of a row; the logarithm of what is
    kept over many tokens is the sum of theirs.
    """

    # what is kept where a row is overwritten: no weight of a sum in float32, and its logarithm
    # is finite
    _LEAST_KEPT = 1e-30

    def __init__(self):
        super().__init__()
        self._log_kept = mx.array(0.0)

    def watch(self, theta: mx.array, values: mx.array, state: mx.array) -> None:
        """Count the tokens of a pass; a batch of one."""
        kept = mx.maximum(1 - theta, self._LEAST_KEPT)
        self._log_kept = self._log_kept + mx.log(kept).sum(axis=(0, 1))

    def take_log_kept(self) -> mx.array:
        """Sum of log(1 - theta) over the tokens since the last call, (m,) float32."""
        kept, self._log_kept = self._log_kept, mx.array(0.0)
        return kept


class RewindableCache(WritesSeen):
    """A cache of one state that can go back to any token of the last forward pass.

    A token's write depends on the tokens before it and on no later one. So the writes of a
    pass, and the state before it, are all it takes to have the state after its first tokens.
    """

    def __init__(self, state: mx.array | None):
        super().__init__()
        self[0] = state

    def watch(self, theta: mx.array, values: mx.array, state: mx.array) -> None:
        """Keep what a pass writes, and the state before it, until the next pass."""
        self._pass = theta, values, state

    def rewind(self, tokens: int) -> None:
        """Put the state after the first tokens of the last pass, 1 to T, into the cache.

        h_n = prod_{s<=n} (1 - theta_s) * h_0 + sum_{s<=n} theta_s prod_{s<r<=n} (1 - theta_r) v_s
        """
        theta, values, state = self._pass
        if tokens < theta.shape[1]:
            theta, values = theta[:, :tokens], values[:, :tokens].astype(mx.float32)
            keep = 1 - theta
            to_end = theta * mx.cumprod(keep, axis=1, reverse=True, inclusive=False)
            self[0] = keep.prod(axis=1)[..., None] * state + to_end.swapaxes(1, 2) @ values


def cache_entries(num_rows: int, num_active: int, width: int) -> int:
    """Entries of a layer's cache for a memory of m rows of d numbers, k of them active."""
    pays = num_active < num_rows and num_rows * width > _LARGEST_DENSE
    return _ENTRIES if pays else 1


def is_buffered(cache: ArraysCache | None) -> TypeGuard[ArraysCache]:
    """Whether a cache holds two states that take turns."""
    return cache is not None and len(cache.cache) == _ENTRIES


def has_state_alone(cache: ArraysCache) -> bool:
    """Whether a cache holds a state, and nothing is kept of the passes that led to it."""
    return cache[0] is not None and not isinstance(cache, WritesSeen)


def takes_rows(cache: ArraysCache | None, batch: int) -> bool:
    """Whether `step` can take a token of a batch of this size.

    It cannot if the cache is fresh: then it has no state, or one for the whole batch.
    """
    return is_buffered(cache) and cache[0] is not None and len(cache[0]) == batch


def state_of(cache: ArraysCache) -> mx.array | None:
    """The whole state (B, m, d) float32; None if nothing was read yet and nothing learned."""
    if not is_buffered(cache) or cache[BEHIND] is None:
        return cache[0]
    return written(cache[BEHIND], _write(cache[NEWER_INDICES], cache[NEWER_ROWS]))


def _write(indices: mx.array, rows: mx.array) -> Write:
    """What waits in a cache; there are saved ones in which every number of a row has its index."""
    return Write(indices[..., 0] if indices.ndim == 3 else indices, rows)


def set_state(cache: ArraysCache, state: mx.array, num_active: int) -> None:
    """Put a whole state (B, m, d) into a cache; k is that of the steps to come."""
    cache[0] = state
    if is_buffered(cache):
        # rows that wait to be written must be there: these are written already
        indices = mx.broadcast_to(mx.arange(num_active, dtype=mx.int32), (len(state), num_active))
        newer = Write(indices, mx.contiguous(state[:, :num_active]))
        older = newer
        if runs("sparse_update"):
            # as its steps leave it, so that caches of one length can be joined into a batch
            older = Write(*(mx.concatenate([x, x], axis=1) for x in newer))
        cache.cache = [state, state, *older, *newer]


def step(
    cache: ArraysCache,
    scores: mx.array,
    values: mx.array,
    mask: mx.array | None,
    temperature: float,
    eps: float,
    product_keys: bool = False,
) -> mx.array:
    """One token on a cache for which `takes_rows` holds; y (B, 1, d).

    Args:
        cache: updated.
        scores: of the rows and the rates, from the router; (B, 1, n + 2).
        values: (B, 1, d).
        mask: (B, 1) bool or None.
        temperature: tau.
        eps: added to the mean square of a row.
        product_keys: whether the scores are those of two halves (`ops.route`).
    """
    ahead, behind, *waiting = cast(list[mx.array], cache.cache)
    # the graph must hold the only reference to the buffer that it writes
    cache.cache = []
    state, older, newer, y = ops.buffered_memory_step(
        _write(*waiting[:2]),
        _write(*waiting[2:]),
        scores,
        values,
        ahead,
        mask,
        temperature=temperature,
        eps=eps,
        product_keys=product_keys,
    )
    cache.cache = [behind, state, *older, *newer]
    return y
