"""One token: write, then read. Shapes are those of `memory_scan` with T = 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mlx.core as mx

from fm_mlx.metal_kernels import sparse_update as kernels
from fm_mlx.metal_kernels.launch import differentiable, runs
from fm_mlx.ops.memory_norm import inverse_rms
from fm_mlx.support.arrays import compiled


def memory_step(
    theta: mx.array,
    phi: mx.array,
    values: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array]:
    """Write one token to all m rows of the state and read it back.

    Args:
        theta: write weights, (B, 1, m).
        phi: merge weights, (B, 1, m).
        values: v, (B, 1, d), any float dtype.
        state: h, (B, m, d) float32.
        mask: (B, 1) bool; where False the state stays and y is 0.
        eps: added to the mean square of a row.

    Returns:
        y (B, 1, d) in the dtype of ``values``, and the new state (B, m, d) float32.
    """
    theta, phi, values = _masked(mask, theta, phi, values)
    state, y = _compiled_write_and_read(eps)(theta, phi, values, state)
    return y, state


def sparse_memory_step(
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    values: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array]:
    """`memory_step` on k rows only; the others are neither read nor written.

    Args:
        indices: the rows, (B, 1, k) int32, without repeats.
        theta: write weights of these rows, (B, 1, k).
        phi: merge weights of these rows, (B, 1, k).
        values, state, mask, eps: as in `memory_step`.

    Returns:
        y (B, 1, d) in the dtype of ``values``, and the new state (B, m, d) float32.
    """
    rows, y = sparse_update(indices, theta, phi, values, state, mask, eps=eps)
    return y, written(state, (element_indices(indices, state), rows))


def buffered_memory_step(
    writes: Sequence[tuple[mx.array, mx.array]],
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    values: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, tuple[mx.array, mx.array], mx.array]:
    """`sparse_memory_step` on a state that lacks rows of earlier steps, and will lack this one's.

    The rows that are missing are written first, in place if nobody else holds the state;
    what this step changes is given back for later. That leaves one buffer with one reader.

    Args:
        writes: the writes of earlier steps, in order, as `written` takes them.
        indices, theta, phi, values, state, mask, eps: as in `sparse_memory_step`.

    Returns:
        The state with `writes` but not this step, this step's own write, and y (B, 1, d) in
        the dtype of ``values``.
    """
    if runs("sparse_update"):
        state = written(state, *writes)
        rows, y = sparse_update(indices, theta, phi, values, state, mask, eps=eps)
        return state, (element_indices(indices, state), rows), y
    theta, phi, values = _masked(mask, theta, phi, values)
    return _compiled_buffered_step(eps)(state, writes, indices, theta, phi, values)


@cache
def _compiled_buffered_step(eps: float):
    """As one graph: on the CPU the time of a step is that of building it."""

    @compiled
    def step(state, writes, indices, theta, phi, values):
        state = written(state, *writes)
        own = element_indices(indices, state)
        rows, y = _update(own, theta, phi, values, state, eps)
        return state, (own, rows), y

    return step


def written(state: mx.array, *writes: tuple[mx.array, mx.array]) -> mx.array:
    """The state (B, m, d) with rows replaced, one write after the other.

    Args:
        state: (B, m, d) float32.
        writes: pairs of `element_indices` (B, k, d) and rows (B, k, d) float32.
    """
    for own, rows in writes:
        state = mx.put_along_axis(state, own, rows, axis=1)
    return state


def element_indices(indices: mx.array, state: mx.array) -> mx.array:
    """Indices (B, 1, k) of rows, repeated for each of their numbers: (B, k, d), without a copy.

    This is what `mx.take_along_axis` and `mx.put_along_axis` want of a state (B, m, d).
    """
    batch, _, count = indices.shape
    return mx.broadcast_to(indices.swapaxes(1, 2), (batch, count, state.shape[-1]))


def sparse_update(
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    values: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[mx.array, mx.array]:
    """`sparse_memory_step` without the write: one launch, whose cost does not feel m.

    Args:
        indices, theta, phi, values, state, mask, eps: as in `sparse_memory_step`.

    Returns:
        The k rows as they are to be written (B, k, d) float32, and y (B, 1, d) in the dtype
        of ``values``.
    """
    if not runs("sparse_update"):
        return _sparse_update(indices, theta, phi, values, state, mask, eps)
    optional = [] if mask is None else [mask]
    rows, y = _kernel_sparse_update(eps)(indices, theta, phi, values, state, *optional)
    return rows, y


def _sparse_update(indices, theta, phi, values, state, mask, eps):
    theta, phi, values = _masked(mask, theta, phi, values)
    return _update(element_indices(indices, state), theta, phi, values, state, eps)


@cache
def _kernel_sparse_update(eps: float):
    def kernel(indices, theta, phi, values, state, mask=None):
        index, write, merge, value = (x.squeeze(1) for x in (indices, theta, phi, values))
        mask = None if mask is None else mask.squeeze(1)
        rows, y = kernels.sparse_update(index, write, merge, value, state, mask, eps)
        return rows, y[:, None]

    def reference(indices, theta, phi, values, state, mask=None):
        return _sparse_update(indices, theta, phi, values, state, mask, eps)

    return differentiable(kernel, reference)


def _masked(mask, *arrays):
    """(B, 1, n) arrays with 0 where the mask is False, whatever stands there."""
    if mask is None:
        return arrays
    return [mx.where(mask[..., None], array, 0) for array in arrays]


@cache
def _compiled_write_and_read(eps: float):
    @compiled
    def form(theta, phi, values, rows):
        return _write_and_read(theta, phi, values, rows, eps)

    return form


def _update(own, theta, phi, values, state, eps):
    rows = mx.take_along_axis(state, own, axis=1)
    return _write_and_read(theta, phi, values, rows, eps)


def _write_and_read(theta, phi, values, rows, eps):
    """The rows (B, n, d) as written, and y (B, 1, d) = sum_i phi[i] h[i] / rms(h[i])."""
    theta = theta.swapaxes(1, 2)
    rows = (1 - theta) * rows + theta * values.astype(mx.float32)
    norm = rows.square().sum(axis=-1)[:, None]
    query = phi * inverse_rms(norm, rows.shape[-1], eps)
    return rows, (query @ rows).astype(values.dtype)
