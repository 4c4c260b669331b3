"""Which rows of the memory a token touches, and how strongly."""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.ops.activations import softmax


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
    num_rows = logits.shape[-1]
    if not 1 <= num_active <= num_rows:
        raise ValueError(f"num_active is {num_active}; allowed are 1 to {num_rows} (the rows)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")
    affinity = softmax(logits.astype(mx.float32) / temperature)
    rows = mx.arange(num_rows, dtype=mx.int32)
    if num_active == num_rows:
        return mx.broadcast_to(rows, logits.shape), affinity
    indices = _top_rows(mx.stop_gradient(affinity), num_active)
    weights = mx.take_along_axis(affinity, indices, axis=-1)
    return indices, weights / weights.sum(axis=-1, keepdims=True)


def scatter_rows(indices: mx.array, weights: mx.array, num_rows: int) -> mx.array:
    """The dense (..., m) form of k weights: zero where a row is not among the indices."""
    if indices.shape[-1] == num_rows:
        return weights
    dense = mx.zeros((*weights.shape[:-1], num_rows), dtype=weights.dtype)
    return mx.put_along_axis(dense, indices, weights, axis=-1)


def _top_rows(affinity: mx.array, num_active: int) -> mx.array:
    """Indices of the k largest of the last axis, the lowest index first among equals.

    The bits of a non-negative float32 order like the number, so (bits, m - 1 - index)
    packed into one uint64 is a key without ties: any sort, stable or not, agrees on it.
    """
    num_rows = affinity.shape[-1]
    bits = affinity.view(mx.uint32).astype(mx.uint64)
    tie_break = mx.arange(num_rows - 1, -1, -1).astype(mx.uint64)
    keys = mx.left_shift(bits, mx.array(32, mx.uint64)) | tie_break
    best = mx.partition(keys, num_rows - num_active, axis=-1)[..., num_rows - num_active :]
    best = mx.sort(best, axis=-1)[..., ::-1]
    low = mx.bitwise_and(best, mx.array(0xFFFFFFFF, mx.uint64)).astype(mx.int32)
    return num_rows - 1 - low
