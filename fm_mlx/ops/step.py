"""One token: write, then read."""

from __future__ import annotations

import mlx.core as mx


def memory_step(
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array]:
    """Write one token to all m rows of the state and read it back.

    Args:
        theta: write weights, (B, m).
        phi: merge weights, (B, m).
        value: v, (B, d), any float dtype.
        state: h, (B, m, d) float32.
        mask: (B,) bool; where False the state stays and y is 0.
        eps: added to the mean square of a row.

    Returns:
        y (B, d) in the dtype of ``value``, and the new state (B, m, d) float32.
    """
    theta, phi, value = _masked(mask, theta, phi, value)
    state, norm = _write(theta, value, state)
    return _read(phi, norm, state, eps).astype(value.dtype), state


def sparse_memory_step(
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array]:
    """`memory_step` on k rows only; the others are neither read nor written.

    Args:
        indices: the rows, (B, k) int32, without repeats.
        theta: write weights of these rows, (B, k).
        phi: merge weights of these rows, (B, k).
        value, state, mask, eps: as in `memory_step`.

    Returns:
        y (B, d) in the dtype of ``value``, and the new state (B, m, d) float32.
    """
    theta, phi, value = _masked(mask, theta, phi, value)
    where = mx.broadcast_to(indices[..., None], (*indices.shape, state.shape[-1]))
    rows, norm = _write(theta, value, mx.take_along_axis(state, where, axis=1))
    state = mx.put_along_axis(state, where, rows, axis=1)
    return _read(phi, norm, rows, eps).astype(value.dtype), state


def _masked(mask, *arrays):
    """(B, n) arrays with 0 where the mask is False, whatever stands there."""
    if mask is None:
        return arrays
    return [mx.where(mask[:, None], array, 0) for array in arrays]


@mx.compile
def _write(theta, value, rows):
    """The written rows, and their squared norms (B, rows)."""
    theta = theta[..., None]
    rows = (1 - theta) * rows + theta * value.astype(mx.float32)[:, None]
    return rows, rows.square().sum(axis=-1)


@mx.compile
def _query(phi, norm, width, eps):
    return phi * mx.rsqrt(norm / width + eps)


def _read(phi, norm, rows, eps):
    """sum_i phi[i] h[i] / rms(h[i]), (B, d)."""
    query = _query(phi, norm, rows.shape[-1], eps)
    return (query[:, None] @ rows).squeeze(1)
