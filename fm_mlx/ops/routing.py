"""Which rows of the memory a token touches, and how strongly."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import mlx.core as mx

from fm_mlx.metal_kernels import route as kernels
from fm_mlx.metal_kernels.launch import differentiable, runs


class SparseRouting(NamedTuple):
    """The k active rows of each token.

    Attributes:
        indices: The active rows in rising order, (..., k) int32.
        theta: Their write weights, (..., k) float32.
        phi: Their merge weights, (..., k) float32.
    """

    indices: mx.array
    theta: mx.array
    phi: mx.array


class DenseRouting(NamedTuple):
    """The weights of all m rows for each token; those of rows that are not active are 0.

    Attributes:
        theta: The write weights, (..., m) float32.
        phi: The merge weights, (..., m) float32.
    """

    theta: mx.array
    phi: mx.array


def route(routing: mx.array, num_active: int, temperature: float = 1.0) -> SparseRouting:
    """The k active rows of each token, with their write and merge weights.

    Softmax over all m rows in float32, then top-k, then renormalise (the sparse
    affinity of arXiv:2511.00315), times the update or the merge rate. Ties go to the
    lowest index on every backend. Differentiable in ``routing``.

    Args:
        routing: (..., m + 2), any float dtype: the logits W_alpha x of m rows, then
            w_eta . x and w_mu . x, whose sigmoids are the update and the merge rate.
        num_active: k, 1 <= k <= m. k = m is the dense layer.
        temperature: tau > 0; the logits are divided by it.

    Returns:
        indices (..., k) int32, in rising order, and theta and phi (..., k) float32.

    Raises:
        ValueError: if k or tau is out of range.
    """
    _check(routing.shape[-1] - 2, num_active, temperature)
    if not runs("route"):
        return SparseRouting(*_route(routing, num_active, temperature))
    form = _kernel_form(kernels.route, _route, num_active, temperature)
    return SparseRouting(*_over_tokens(form, routing))


def route_dense(routing: mx.array, num_active: int, temperature: float = 1.0) -> DenseRouting:
    """`route` in dense form: theta and phi of all rows, 0 where a row is not active.

    Args:
        routing, num_active, temperature: as in `route`.

    Returns:
        theta and phi, (..., m) float32.

    Raises:
        ValueError: if k or tau is out of range.
    """
    _check(routing.shape[-1] - 2, num_active, temperature)
    if not runs("route"):
        return DenseRouting(*_route_dense(routing, num_active, temperature))
    form = _kernel_form(kernels.route_dense, _route_dense, num_active, temperature)
    return DenseRouting(*_over_tokens(form, routing))


def _check(num_rows: int, num_active: int, temperature: float) -> None:
    if not 1 <= num_active <= num_rows:
        raise ValueError(f"num_active is {num_active}; allowed are 1 to {num_rows} (the rows)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")


def _route(routing, num_active, temperature):
    logits, rates = routing[..., :-2], _rates(routing)
    num_rows = logits.shape[-1]
    alpha = _softmax(logits, temperature)
    if num_active == num_rows:
        indices = mx.broadcast_to(mx.arange(num_rows, dtype=mx.int32), logits.shape)
    else:
        best = _largest(_unique_keys(logits), num_active)
        low_word = mx.bitwise_and(best, mx.array(0xFFFFFFFF, mx.uint64)).astype(mx.int32)
        indices = mx.sort(num_rows - 1 - low_word, axis=-1)
        best_alpha = mx.take_along_axis(alpha, indices, axis=-1)
        alpha = best_alpha / best_alpha.sum(axis=-1, keepdims=True)
    return indices, rates[..., :1] * alpha, rates[..., 1:] * alpha


def _route_dense(routing, num_active, temperature):
    alpha, rates = _affinity(routing[..., :-2], num_active, temperature), _rates(routing)
    return rates[..., :1] * alpha, rates[..., 1:] * alpha


def _affinity(logits, num_active, temperature):
    """Memory affinity alpha of all m rows."""
    alpha = _softmax(logits, temperature)
    if num_active == logits.shape[-1]:
        return alpha
    keys = _unique_keys(logits)
    active = keys >= _largest(keys, num_active)[..., :1]
    alpha = mx.where(active, alpha, 0)
    return alpha / alpha.sum(axis=-1, keepdims=True)


def _rates(routing: mx.array) -> mx.array:
    """eta and mu, (..., 2) float32."""
    return mx.sigmoid(routing[..., -2:].astype(mx.float32))


def _softmax(logits: mx.array, temperature: float) -> mx.array:
    return mx.softmax(logits.astype(mx.float32) / temperature, axis=-1)


def _unique_keys(logits: mx.array) -> mx.array:
    """Keys (..., m) uint64 that order like the logits, the lower index first among equals.

    The softmax keeps the order of the logits, up to its rounding, which differs between
    backends: the choice of rows should not. The bits of a positive float32 order like the
    number, those of a negative one against it. With m - 1 - index below them there are no
    ties, and every way to sort, stable or not, gives the same order.
    """
    logits = mx.stop_gradient(logits).astype(mx.float32)
    bits = mx.where(logits == 0, 0, logits).view(mx.uint32)  # -0 is +0
    sign = mx.array(0x80000000, mx.uint32)
    bits = mx.where(bits >= sign, mx.bitwise_invert(bits), bits | sign).astype(mx.uint64)
    below = mx.arange(logits.shape[-1] - 1, -1, -1).astype(mx.uint64)
    return mx.left_shift(bits, mx.array(32, mx.uint64)) | below


def _largest(keys: mx.array, count: int) -> mx.array:
    """The ``count`` largest of the last axis, the least of them first."""
    rest = keys.shape[-1] - count
    return mx.partition(keys, rest, axis=-1)[..., rest:]


def _over_tokens(form, routing: mx.array) -> tuple[mx.array, ...]:
    """A form over (tokens, m + 2) applied to (..., m + 2)."""
    outputs = form(routing.reshape(-1, routing.shape[-1]))
    return tuple(x.reshape(*routing.shape[:-1], x.shape[-1]) for x in outputs)


@cache
def _kernel_form(kernel, reference, num_active: int, temperature: float):
    return differentiable(
        lambda routing: kernel(routing, num_active, temperature),
        lambda routing: reference(routing, num_active, temperature),
    )
