"""Which rows of the memory a token touches, and how strongly."""

from __future__ import annotations

import mlx.core as mx


def route(logits: mx.array, num_active: int, temperature: float = 1.0) -> tuple[mx.array, mx.array]:
    """The k rows of largest memory affinity and their renormalised weights.

    Softmax over all m rows in float32, then top-k, then renormalise (the sparse
    affinity of arXiv:2511.00315). Ties go to the lowest index on every backend.
    Gradients flow through ``weights``.

    Args:
        logits: W_alpha x, shape (..., m), any float dtype.
        num_active: k, 1 <= k <= m. k = m is the dense layer; the rows then come in order.
        temperature: tau > 0; the logits are divided by it.

    Returns:
        indices (..., k) int32, by falling weight for k < m, and weights (..., k)
        float32 that sum to 1.

    Raises:
        ValueError: if k or tau is out of range.
    """
    alpha = _softmax(logits, num_active, temperature)
    num_rows = logits.shape[-1]
    if num_active == num_rows:
        return mx.broadcast_to(mx.arange(num_rows, dtype=mx.int32), logits.shape), alpha
    best = mx.sort(_largest(_unique_keys(alpha), num_active), axis=-1)[..., ::-1]
    low_word = mx.bitwise_and(best, mx.array(0xFFFFFFFF, mx.uint64)).astype(mx.int32)
    indices = num_rows - 1 - low_word
    weights = mx.take_along_axis(alpha, indices, axis=-1)
    return indices, weights / weights.sum(axis=-1, keepdims=True)


def affinity(logits: mx.array, num_active: int, temperature: float = 1.0) -> mx.array:
    """Memory affinity alpha of all m rows: `route` in dense form.

    Args:
        logits, num_active, temperature: as in `route`.

    Returns:
        (..., m) float32; the k weights that sum to 1, and 0 for the other rows.

    Raises:
        ValueError: if k or tau is out of range.
    """
    alpha = _softmax(logits, num_active, temperature)
    if num_active == logits.shape[-1]:
        return alpha
    keys = _unique_keys(alpha)
    active = keys >= _largest(keys, num_active)[..., :1]
    alpha = mx.where(active, alpha, 0)
    return alpha / alpha.sum(axis=-1, keepdims=True)


def _softmax(logits: mx.array, num_active: int, temperature: float) -> mx.array:
    num_rows = logits.shape[-1]
    if not 1 <= num_active <= num_rows:
        raise ValueError(f"num_active is {num_active}; allowed are 1 to {num_rows} (the rows)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    return mx.softmax(logits.astype(mx.float32) / temperature, axis=-1)


def _unique_keys(alpha: mx.array) -> mx.array:
    """Keys (..., m) uint64 that order like alpha, the lower index first among equals.

    The bits of a non-negative float32 order like the number. With m - 1 - index below them
    there are no ties, and every way to sort, stable or not, gives the same order.
    """
    bits = mx.stop_gradient(alpha).view(mx.uint32).astype(mx.uint64)
    below = mx.arange(alpha.shape[-1] - 1, -1, -1).astype(mx.uint64)
    return mx.left_shift(bits, mx.array(32, mx.uint64)) | below


def _largest(keys: mx.array, count: int) -> mx.array:
    """The ``count`` largest of the last axis, the least of them first."""
    rest = keys.shape[-1] - count
    return mx.partition(keys, rest, axis=-1)[..., rest:]
