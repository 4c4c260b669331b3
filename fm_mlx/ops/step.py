"""One token: write, then read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mlx.core as mx

from fm_mlx.metal_kernels import kernels
from fm_mlx.metal_kernels.launch import runs_kernels


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
    rows, y = sparse_update(indices, theta, phi, value, state, mask, eps=eps)
    return y, written(state, (indices, rows))


def buffered_memory_step(
    writes: Sequence[tuple[mx.array, mx.array]],
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array, mx.array]:
    """`sparse_memory_step` on a state that lacks rows of earlier steps, and will lack this one's.

    The rows that are missing are written first, in place if nobody else holds the state;
    what this step changes is given back for later. That leaves one buffer with one reader.

    Args:
        writes: (indices (B, k) int32, rows (B, k, d) float32) of earlier steps, in order.
        indices, theta, phi, value, state, mask, eps: as in `sparse_memory_step`.

    Returns:
        The state with `writes` but not this step, the k rows as this step changes them
        (B, k, d), and y (B, d) in the dtype of ``value``.
    """
    if runs_kernels():
        state = written(state, *writes)
        rows, y = sparse_update(indices, theta, phi, value, state, mask, eps=eps)
        return state, rows, y
    theta, phi, value = _masked(mask, theta, phi, value)
    return _compiled_buffered_step(eps)(state, writes, indices, theta, phi, value)


@cache
def _compiled_buffered_step(eps: float):
    """As one graph: on the CPU the time of a step is that of building it."""

    @mx.compile
    def step(state, writes, indices, theta, phi, value):
        state = written(state, *writes)
        return state, *_sparse_update(indices, theta, phi, value, state, None, eps)

    return step


def written(state: mx.array, *writes: tuple[mx.array, mx.array]) -> mx.array:
    """The state (B, m, d) with rows replaced: (indices (B, k), rows (B, k, d)), in order."""
    for indices, rows in writes:
        state = mx.put_along_axis(state, _columns(indices, state), rows, axis=1)
    return state


def sparse_update(
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array]:
    """`sparse_memory_step` without the write: one launch, whose cost does not feel m.

    Args:
        indices, theta, phi, value, state, mask, eps: as in `sparse_memory_step`.

    Returns:
        The k rows as they are to be written (B, k, d) float32, and y (B, d) in the dtype
        of ``value``.
    """
    if not runs_kernels():
        return _sparse_update(indices, theta, phi, value, state, mask, eps)
    optional = [] if mask is None else [mask]
    return _kernel_sparse_update(eps)(indices, theta, phi, value, state, *optional)


def _sparse_update(indices, theta, phi, value, state, mask, eps):
    theta, phi, value = _masked(mask, theta, phi, value)
    rows = mx.take_along_axis(state, _columns(indices, state), axis=1)
    rows, norm = _write(theta, value, rows)
    return rows, _read(phi, norm, rows, eps).astype(value.dtype)


@cache
def _kernel_sparse_update(eps: float):
    """The kernel with the gradient of its twin."""

    @mx.custom_function
    def form(indices, theta, phi, value, state, mask=None):
        return kernels.sparse_update(indices, theta, phi, value, state, mask, eps)

    @form.vjp
    def form_vjp(primals, cotangents, _):
        indices, theta, phi, value, state, *optional = primals
        mask = optional[0] if optional else None

        def twin(theta, phi, value, state):
            return _sparse_update(indices, theta, phi, value, state, mask, eps)

        smooth = mx.vjp(twin, [theta, phi, value, state], list(cotangents))[1]
        return mx.zeros_like(indices), *smooth, *(mx.zeros_like(x) for x in optional)

    return form


def _columns(indices: mx.array, state: mx.array) -> mx.array:
    """(B, k) rows as (B, k, d), which take_along_axis and put_along_axis want."""
    return mx.broadcast_to(indices[..., None], (*indices.shape, state.shape[-1]))


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
