"""One token: write, then read. Shapes are those of `memory_scan` with T = 1."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx

from fm_mlx.metal_kernels import sparse_update as kernels
from fm_mlx.metal_kernels.launch import differentiable, runs
from fm_mlx.ops.memory_norm import inverse_rms
from fm_mlx.ops.routing import route
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


# Numbers of the states that must be spared for a step on the active rows to pay, and how many rows
# an active one costs: measured by evidence/steps.py on the CPU.
_LEAST_SPARED = 16_000
_COST_OF_ACTIVE = 4


def sparse_step_is_faster(batch: int, num_rows: int, num_active: int, width: int) -> bool:
    """Whether a token of every text of a batch is faster on its k active rows than on all m.

    On the CPU. An active row is gathered, written and put back, which costs what four rows cost
    that are updated where they are; what is spared must outweigh some small operations more.
    """
    spared = num_rows - _COST_OF_ACTIVE * num_active
    return batch * spared * width > _LEAST_SPARED


class Write(NamedTuple):
    """Rows of a state that are to be replaced.

    Attributes:
        indices: Which rows, (B, n) int32. A row that is there twice is the same both times.
        rows: What they will hold, (B, n, d) float32.
    """

    indices: mx.array
    rows: mx.array


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
    """`memory_step` on k rows only; the others keep their bits.

    Args:
        indices: the rows, (B, 1, k) int32, without repeats.
        theta: write weights of these rows, (B, 1, k).
        phi: merge weights of these rows, (B, 1, k).
        values, state, mask, eps: as in `memory_step`.

    Returns:
        y (B, 1, d) in the dtype of ``values``, and the new state (B, m, d) float32.
    """
    theta, phi, values = _masked(mask, theta, phi, values)
    rows, y = _update(indices.squeeze(1), theta, phi, values, state, eps)
    return y, written(state, Write(indices.squeeze(1), rows))


def buffered_memory_step(
    older: Write,
    newer: Write,
    scores: mx.array,
    values: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    temperature: float = 1.0,
    eps: float = 1e-6,
    product_keys: bool = False,
) -> tuple[mx.array, Write, Write, mx.array]:
    """Write one token to its k active rows, on a state that lacks the rows of the last two.

    The rows that are missing are written first, in place if nobody else holds the state; what
    this step changes is given back for later. That leaves one buffer with one reader.

    Args:
        older: the write of the token before the last, or that of both (`sparse_update`).
        newer: the write of the last token, to k rows in rising order.
        scores: (B, 1, n + 2), from the router: logits, then both rates before the sigmoid.
        values: v, (B, 1, d), any float dtype.
        state: h, (B, m, d) float32, without the last two tokens.
        mask: (B, 1) bool; where False the state stays and y is 0.
        temperature: tau.
        eps: added to the mean square of a row.
        product_keys: whether there are n = 2 sqrt(m) logits, of two halves, instead of m
            (`route`).

    Returns:
        The state with the last two tokens but not this one; what is `older` and `newer` for the
        next token; and y (B, 1, d) in the dtype of ``values``.
    """
    if runs("sparse_update"):
        num_active = newer.indices.shape[1]
        if older.indices.shape[1] > num_active:
            # it has the newer rows too, and as a whole it lies as a kernel wants it
            last, state = older, written(state, older)
        else:
            last, state = newer, written(state, older, newer)
        both, y = sparse_update(
            last,
            scores,
            values,
            state,
            mask,
            num_active=num_active,
            temperature=temperature,
            eps=eps,
            product_keys=product_keys,
        )
        return state, both, last_rows(both, num_active), y
    step = _compiled_buffered_step(temperature, eps, product_keys)
    state, own, y = step(state, older, newer, scores, values, mask)
    return state, newer, Write(*own), y


@cache
def _compiled_buffered_step(temperature: float, eps: float, product_keys: bool):
    """As one graph: on the CPU the time of a step is that of building it."""

    @compiled
    def step(state, older, newer, scores, values, mask):
        state = written(state, Write(*older), Write(*newer))
        choice = newer[0].shape[1], temperature, product_keys
        own, y = _own_write(scores, values, state, mask, choice, eps)
        return state, own, y

    return step


def written(state: mx.array, *writes: Write) -> mx.array:
    """The state (B, m, d) with rows replaced, one write after the other."""
    for indices, rows in writes:
        own = mx.broadcast_to(indices[..., None], rows.shape)
        state = mx.put_along_axis(state, own, rows, axis=1)
    return state


def last_rows(write: Write, count: int) -> Write:
    """The last rows of a write alone."""
    return Write(write.indices[:, -count:], write.rows[:, -count:])


def sparse_update(
    last: Write,
    scores: mx.array,
    values: mx.array,
    state: mx.array,
    mask: mx.array | None = None,
    *,
    num_active: int,
    temperature: float = 1.0,
    eps: float = 1e-6,
    product_keys: bool = False,
) -> tuple[Write, mx.array]:
    """Choose k rows and write one token to them, in one launch that leaves the state as it is.

    Args:
        last: a write that ends with that of the last token, which the state has, to k rows in
            rising order.
        num_active: k.
        scores, values, mask, temperature, eps, product_keys: as in `buffered_memory_step`.
        state: h, (B, m, d) float32.

    Returns:
        The write of the last token and this one together, n = 2k: the last token's rows as this
        one leaves them, then this one's. And y (B, 1, d) in the dtype of ``values``.
    """
    choice = num_active, temperature, product_keys
    if not runs("sparse_update"):
        return _sparse_update(last, scores, values, state, mask, choice, eps)
    optional = [] if mask is None else [mask]
    indices, rows, y = _kernel_sparse_update(choice, eps)(*last, scores, values, state, *optional)
    return Write(indices, rows), y


def _sparse_update(last, scores, values, state, mask, choice, eps):
    num_active = choice[0]
    last = last_rows(last, num_active)
    own, y = _own_write(scores, values, state, mask, choice, eps)
    # 1 + the place of a row among this token's, 0 for all others
    places = mx.zeros((len(state), state.shape[1]), mx.int32)
    of_own = mx.broadcast_to(mx.arange(1, num_active + 1, dtype=mx.int32), own.indices.shape)
    places = mx.put_along_axis(places, own.indices, of_own, axis=1)
    place = mx.take_along_axis(places, last.indices, axis=1)[..., None]
    as_now = mx.take_along_axis(own.rows, mx.maximum(place - 1, 0), axis=1)
    rows = mx.where(place > 0, as_now, last.rows)
    indices = mx.concatenate([last.indices, own.indices], axis=1)
    return Write(indices, mx.concatenate([rows, own.rows], axis=1)), y


def _own_write(scores, values, state, mask, choice, eps):
    """`choice` is what `route` takes beside the scores."""
    indices, theta, phi = route(scores, *choice)
    theta, phi, values = _masked(mask, theta, phi, values)
    indices = indices.squeeze(1)
    rows, y = _update(indices, theta, phi, values, state, eps)
    return Write(indices, rows), y


@cache
def _kernel_sparse_update(choice: tuple[int, float, bool], eps: float):
    def kernel(indices, rows, scores, values, state, mask=None):
        mask = None if mask is None else mask.squeeze(1)
        scores, values = scores.squeeze(1), values.squeeze(1)
        indices, rows, y = kernels.sparse_update(
            scores, values, state, indices, rows, mask, *choice, eps
        )
        return indices, rows, y[:, None]

    def reference(indices, rows, scores, values, state, mask=None):
        last = Write(indices, rows)
        write, y = _sparse_update(last, scores, values, state, mask, choice, eps)
        return *write, y

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


def _update(indices, theta, phi, values, state, eps):
    rows = mx.take_along_axis(state, indices[..., None], axis=1)
    return _write_and_read(theta, phi, values, rows, eps)


def _write_and_read(theta, phi, values, rows, eps):
    """The rows (B, n, d) as written, and y (B, 1, d) = sum_i phi[i] h[i] / rms(h[i])."""
    theta = theta.swapaxes(1, 2)
    rows = (1 - theta) * rows + theta * values.astype(mx.float32)
    norm = rows.square().sum(axis=-1)[:, None]
    query = phi * inverse_rms(norm, rows.shape[-1], eps)
    return rows, (query @ rows).astype(values.dtype)
