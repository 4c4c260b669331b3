"""Which rows of the memory a token touches, and how strongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mlx.core as mx

from fm_mlx.metal_kernels import route as kernels
from fm_mlx.metal_kernels.launch import differentiable, on_cpu, runs

# Rows whose largest logit is looked at first, and the number of logits from which on that pays.
_BLOCK = 32
_MANY_LOGITS = 1 << 14


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

    def on_all_rows(self, num_rows: int) -> DenseRouting:
        """The same in dense form; m is the number of rows."""
        nothing = mx.zeros((*self.theta.shape[:-1], num_rows))
        return DenseRouting(
            *(mx.put_along_axis(nothing, self.indices, x, axis=-1) for x in (self.theta, self.phi))
        )


class DenseRouting(NamedTuple):
    """The weights of all m rows for each token; those of rows that are not active are 0.

    Attributes:
        theta: The write weights, (..., m) float32.
        phi: The merge weights, (..., m) float32.
    """

    theta: mx.array
    phi: mx.array


def num_logits(num_rows: int, product_keys: bool) -> int:
    """The logits that a router gives for m rows: m, or 2 sqrt(m) with product keys.

    Raises:
        ValueError: product keys are wanted for a number of rows that is no square.
    """
    if not product_keys:
        return num_rows
    if math.isqrt(num_rows) ** 2 != num_rows:
        raise ValueError(f"there are {num_rows} rows; product keys need the square of an integer")
    return 2 * math.isqrt(num_rows)


def route(
    routing: mx.array, num_active: int, temperature: float = 1.0, product_keys: bool = False
) -> SparseRouting:
    """The k active rows of each token, with their write and merge weights.

    Softmax over all m rows, then top-k, then renormalise (the sparse affinity of
    arXiv:2511.00315), which is the softmax over the active rows alone, in float32; times the
    update or the merge rate. Ties go to the lowest index on every backend. Differentiable in
    ``routing``.

    Args:
        routing: (..., m + 2), any float dtype: the logits W_alpha x of m rows, then
            w_eta . x and w_mu . x, whose sigmoids are the update and the merge rate.
        num_active: k, 1 <= k <= m. k = m is the dense layer.
        temperature: tau > 0; the logits are divided by it.
        product_keys: whether there are 2 n logits for m = n * n rows: a of one half, then b of
            the other. Row i n + j has the logit a[i] + b[j] (product keys, arXiv:1907.05242).
            The active rows are the k best of those whose i and j are among the k best of their
            halves. That they are the k best of all rows is certain where sums are exact; of
            rows whose different sums round to the same number, others may be taken.

    Returns:
        indices (..., k) int32, in rising order, and theta and phi (..., k) float32.

    Raises:
        ValueError: if k or tau is out of range, or the two halves are not equally long.
    """
    _check(_num_rows(routing, product_keys), num_active, temperature)
    form = _route_by_product if product_keys else _route
    return SparseRouting(*form(routing, num_active, temperature))


def route_dense(
    routing: mx.array, num_active: int, temperature: float = 1.0, product_keys: bool = False
) -> DenseRouting:
    """`route` in dense form: theta and phi of all rows, 0 where a row is not active.

    Args:
        routing, num_active, temperature, product_keys: as in `route`.

    Returns:
        theta and phi, (..., m) float32.

    Raises:
        ValueError: as in `route`.
    """
    num_rows = _num_rows(routing, product_keys)
    if product_keys:
        return route(routing, num_active, temperature, True).on_all_rows(num_rows)
    _check(num_rows, num_active, temperature)
    if not runs("route"):
        return DenseRouting(*_route_dense(routing, num_active, temperature))
    outputs = _kernel_form(num_active, temperature)(routing.reshape(-1, routing.shape[-1]))
    return DenseRouting(*(x.reshape(*routing.shape[:-1], x.shape[-1]) for x in outputs))


def _num_rows(routing: mx.array, product_keys: bool) -> int:
    logits = routing.shape[-1] - 2
    if not product_keys:
        return logits
    if logits % 2:
        raise ValueError(f"there are {logits} logits; product keys have two halves of equal length")
    return (logits // 2) ** 2


def _check(num_rows: int, num_active: int, temperature: float) -> None:
    if not 1 <= num_active <= num_rows:
        raise ValueError(f"num_active is {num_active}; allowed are 1 to {num_rows} (the rows)")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be greater than 0")


def _route(routing, num_active, temperature):
    return _by_logits(*_logits_and_rates(routing), num_active, temperature)


def _by_logits(logits, rates, num_active, temperature):
    num_rows = logits.shape[-1]
    if num_active == num_rows:
        indices = mx.broadcast_to(mx.arange(num_rows, dtype=mx.int32), logits.shape)
        alpha = _softmax(logits, temperature)
    else:
        indices = mx.sort(_active_rows(logits, num_active).astype(mx.int32), axis=-1)
        alpha = _softmax(mx.take_along_axis(logits, indices, axis=-1), temperature)
    return indices, rates[..., :1] * alpha, rates[..., 1:] * alpha


def _route_by_product(routing, num_active, temperature):
    """Of the k * k rows whose halves are among the k best, rising, the k best.

    A row i n + j whose i is not among the k best of its half is none of the k best rows: each of
    those k has, with the same j, a row that comes before it.
    """
    logits, rates = _logits_and_rates(routing)
    *tokens, both = logits.shape
    halves = logits.reshape(*tokens, 2, both // 2)
    best = _active_rows(halves, min(num_active, both // 2))
    best = mx.sort(best.astype(mx.int32), axis=-1)
    parts = mx.take_along_axis(halves, best, axis=-1)
    rows = (best[..., 0, :, None] * (both // 2) + best[..., 1, None, :]).flatten(-2)
    sums = (parts[..., 0, :, None] + parts[..., 1, None, :]).flatten(-2)
    chosen, theta, phi = _by_logits(sums, rates, num_active, temperature)
    return mx.take_along_axis(rows, chosen, axis=-1), theta, phi


def _route_dense(routing, num_active, temperature):
    logits, rates = _logits_and_rates(routing)
    if num_active == logits.shape[-1]:
        alpha = _softmax(logits, temperature)
    else:
        indices = _active_rows(logits, num_active)
        alpha = _softmax(mx.take_along_axis(logits, indices, axis=-1), temperature)
        alpha = mx.put_along_axis(mx.zeros_like(logits), indices, alpha, axis=-1)
    return rates[..., :1] * alpha, rates[..., 1:] * alpha


def _logits_and_rates(routing: mx.array) -> tuple[mx.array, mx.array]:
    """The logits (..., m), and eta and mu (..., 2), float32."""
    routing = routing.astype(mx.float32)
    return routing[..., :-2], mx.sigmoid(routing[..., -2:])


def _softmax(logits: mx.array, temperature: float) -> mx.array:
    if temperature != 1:
        logits = logits / temperature
    return mx.softmax(logits, axis=-1)


def _active_rows(logits: mx.array, num_active: int) -> mx.array:
    """The rows of the k largest logits (..., m) float32, in any order: (..., k) integers.

    By the logits, not by their softmax, which keeps their order up to its rounding and rounds
    differently on every backend. The lower index is the larger among equals.
    """
    choose = _by_partition if on_cpu() else _by_unique_keys
    logits = mx.stop_gradient(logits)
    if logits.shape[-1] > 2 * _BLOCK * num_active and logits.size >= _MANY_LOGITS:
        return _by_blocks(choose, logits, num_active)
    return choose(logits, num_active)


def _by_blocks(
    choose: Callable[[mx.array, int], mx.array], logits: mx.array, num_active: int
) -> mx.array:
    """The same rows, looked for in the k blocks of rows that have the largest logits alone.

    A row of another block is none of the k best: each of these blocks has a row before it, with
    a larger logit, or an equal one and, since the block comes first among equals, a lower index.
    """
    *tokens, num_rows = logits.shape
    padding = [(0, 0)] * len(tokens) + [(0, -num_rows % _BLOCK)]
    rows = mx.pad(logits, padding, constant_values=-mx.inf).reshape(-1, _BLOCK)
    largest = rows.max(axis=-1).reshape(*tokens, -1)
    blocks = mx.sort(choose(largest, num_active).astype(mx.int32), axis=-1)
    first = mx.arange(0, largest.size, largest.shape[-1], dtype=mx.int32)
    within = mx.take(rows, blocks + first.reshape(*tokens, 1), axis=0).flatten(-2)
    best = choose(within, num_active).astype(mx.int32)
    return mx.take_along_axis(blocks, best // _BLOCK, axis=-1) * _BLOCK + best % _BLOCK


def _by_partition(logits: mx.array, num_active: int) -> mx.array:
    """For the CPU backend, whose `mx.argpartition` compares equal numbers by their index."""
    return mx.argpartition(-logits, num_active - 1, axis=-1)[..., :num_active]


def _by_unique_keys(logits: mx.array, num_active: int) -> mx.array:
    """For every backend: without ties, every way to sort gives the same rows."""
    num_rows = logits.shape[-1]
    rest = num_rows - num_active
    best = mx.partition(_unique_keys(logits), rest, axis=-1)[..., rest:]
    low_word = mx.bitwise_and(best, mx.array(0xFFFFFFFF, mx.uint64)).astype(mx.int32)
    return num_rows - 1 - low_word


def _unique_keys(logits: mx.array) -> mx.array:
    """Keys (..., m) uint64 that order like the logits, the lower index first among equals.

    The bits of a positive float32 order like the number, those of a negative one against it.
    With m - 1 - index below them there are no ties.
    """
    bits = mx.where(logits == 0, 0, logits).view(mx.uint32)  # -0 is +0
    sign = mx.array(0x80000000, mx.uint32)
    bits = mx.where(bits >= sign, mx.bitwise_invert(bits), bits | sign).astype(mx.uint64)
    below = mx.arange(logits.shape[-1] - 1, -1, -1).astype(mx.uint64)
    return mx.left_shift(bits, mx.array(32, mx.uint64)) | below


@cache
def _kernel_form(num_active: int, temperature: float):
    """Of (tokens, m + 2)."""
    return differentiable(
        lambda routing: kernels.route_dense(routing, num_active, temperature),
        lambda routing: _route_dense(routing, num_active, temperature),
    )
