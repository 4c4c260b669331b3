"""The inside of a chunk: the part of the scan that is not a matrix product.

Within a chunk of C tokens that starts from the state H, the row norms, and with them
the whole output, follow from inner products of the values:

    theta, phi  (B, N, C, m)   write and merge weights of N chunks
    gram        (B, N, C, C)   G = V V^T of each chunk
    projection  (B, N, C, m)   P = V H^T
    norm0       (B, N, m)      ||H[i]||^2

    a    = 1 - theta,  A_t = prod_{s<=t} a_s,  w_ts = theta_s prod_{s<r<=t} a_r
    p_t  = A_{t-1} P_t + sum_{s<t} w_{t-1,s} G_ts          <h_{t-1}[i], v_t>
    n_t  = a_t^2 n_{t-1} + 2 a_t theta_t p_t + theta_t^2 G_tt   ||h_t[i]||^2
    q_t  = phi_t / sqrt(n_t / d + eps)
    qA_t = q_t A_t            reads H
    M_ts = sum_i q_t w_ts     reads the chunk's own values

`chunk_map` returns (qA, M) in float32: Y = qA H + M V. Its forms agree to float32 rounding:
`kernel_chunk_map` (float32) carries w through the chunk in registers; `portable_chunk_map`
(float32, any device) builds w from running products; `factored_chunk_map` (float64, for the
CPU) writes w_ts = (theta_s / A_s) A_t in blocks of 16 tokens, so that no C x C x m array
exists. All three recompute the inside of the chunk in the backward pass.

The first two are exact where a token overwrites a row, theta = 1. In the factored form such a
row keeps a share of 1e-18 of what it held within its block of 16 tokens, and nothing of
anything else: less than float32 resolves unless what is overwritten was 6e10 times as large.
Its gradient keeps a share of 1e-9: it divides by 1 - theta what is left of numbers that
cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import mlx.core as mx

from fm_mlx.metal_kernels import chunk_scan as kernels
from fm_mlx.metal_kernels.launch import differentiable, on_cpu, runs
from fm_mlx.ops.memory_norm import inverse_rms, inverse_rms_slope
from fm_mlx.support.arrays import compiled, with_vjp

# Tokens of a block of the factored form. The products of so many decays and of half as many
# squares of decays are still normal float64 numbers.
_BLOCK = 16

# The least 1 - theta of the factored form, and of its backward pass, which takes a whole chunk
# as a block.
DECAY_FLOOR = 1e-18
_BACKWARD_FLOOR = 1e-9


def chunk_map(
    theta: mx.array,
    phi: mx.array,
    gram: mx.array,
    projection: mx.array,
    norm0: mx.array,
    width: int,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """(qA, M) of every chunk, by the kernel or else the form that suits the default device.

    Args:
        theta, phi, gram, projection, norm0: float32, shapes above; C <= MAX_CHUNK.
        width: d, the width of a row of the state.
        eps: added to the mean square of a row.
    """
    if runs("chunk_scan"):
        form = kernel_chunk_map
    else:
        form = factored_chunk_map if on_cpu() else portable_chunk_map
    read, inside = form(width, eps)(theta, phi, gram, projection, norm0)
    return read, inside


@cache
def kernel_chunk_map(width: int, eps: float):
    """The kernels as a function of (theta, phi, gram, projection, norm0)."""
    portable = portable_chunk_map(width, eps)

    def gradient(primals: Any, cotangents: Any) -> Any:
        if runs("chunk_scan_vjp"):
            inputs: list[Any] = [*primals, *cotangents, width, eps]
            return kernels.chunk_scan_vjp(*inputs)
        return mx.vjp(portable, list(primals), list(cotangents))[1]

    def kernel(theta, phi, gram, projection, norm0):
        return kernels.chunk_scan(theta, phi, gram, projection, norm0, width, eps)

    return differentiable(kernel, portable, gradient)


@cache
def factored_chunk_map(width: int, eps: float):
    """The float64 form as a function of (theta, phi, gram, projection, norm0)."""
    forward = compiled(partial(_factored_forward, width, eps))
    backward = compiled(partial(_factored_backward, width, eps))
    return with_vjp(
        lambda *inputs: forward(*inputs),
        lambda primals, cotangents, _: backward(*[*primals, *cotangents]),
    )


@cache
def portable_chunk_map(width: int, eps: float) -> Callable[..., Any]:
    """The float32 form as a function of (theta, phi, gram, projection, norm0)."""
    return mx.checkpoint(partial(_portable_forward, width, eps))


def _diagonal(gram: mx.array) -> mx.array:
    """G_tt as (B, N, C, 1)."""
    return mx.diagonal(gram, axis1=-2, axis2=-1)[..., None]


def _portable_forward(width, eps, theta, phi, gram, projection, norm0):
    chunk = theta.shape[2]
    keep = 1 - theta
    later = mx.tril(mx.ones((chunk, chunk), dtype=mx.bool_), -1)[..., None]
    causal = mx.tril(mx.ones((chunk, chunk), dtype=mx.bool_))[..., None]
    # running[t, s] = prod_{s<r<=t} a_r for s <= t; (B, N, C, C, m)
    running = mx.cumprod(mx.where(later, keep[:, :, :, None], 1), axis=2)
    weight = mx.where(causal, running * theta[:, :, None], 0)
    decay = mx.cumprod(keep, axis=2)
    before = mx.concatenate([mx.ones_like(decay[:, :, :1]), decay[:, :, :-1]], axis=2)
    weight_before = mx.concatenate([mx.zeros_like(weight[:, :, :1]), weight[:, :, :-1]], axis=2)
    inner = before * projection + (weight_before * gram[..., None]).sum(axis=3)
    gain = theta * (2 * keep * inner + theta * _diagonal(gram))
    # n_t = sum_s (prod_{s<r<=t} a_r)^2 u_s + A_t^2 n_0
    square = mx.where(causal, running * running * gain[:, :, None], 0).sum(axis=3)
    norm = decay * decay * norm0[:, :, None] + square
    query = phi * inverse_rms(mx.maximum(norm, 0), width, eps)
    return query * decay, (weight * query[:, :, :, None]).sum(axis=-1)


def _factored_forward(width, eps, *inputs):
    theta, *others = (x.astype(mx.float64) for x in inputs)
    block = partial(_block, width, eps, DECAY_FLOOR)
    if theta.shape[2] <= _BLOCK:
        read, inside, *_ = block(theta, *others)
    else:
        read, inside = _two_blocks(block, theta, *others)
    return read.astype(mx.float32), inside.astype(mx.float32)


def _two_blocks(block, theta, phi, gram, projection, norm0):
    """A chunk as two blocks: what the first one leaves is where the second one begins."""
    first, second = slice(0, _BLOCK), slice(_BLOCK, None)
    early, late = theta[:, :, first], theta[:, :, second]
    before = projection[:, :, first]
    read, inside, *_ = block(early, phi[:, :, first], gram[:, :, first, first], before, norm0)
    # h = carry H + weight^T V after the first block; products of decays, exact at theta = 1
    keep = 1 - early
    carry = keep.prod(axis=2, keepdims=True)
    weight = early * mx.cumprod(keep, axis=2, reverse=True, inclusive=False)
    inner = carry * projection[:, :, second] + gram[:, :, second, first] @ weight
    among = gram[:, :, first, first] @ weight
    norm = (carry * carry).squeeze(2) * norm0 + (weight * (2 * carry * before + among)).sum(axis=2)
    late_read, late_inside, *_ = block(
        late, phi[:, :, second], gram[:, :, second, second], inner, norm
    )
    across = late_read @ weight.swapaxes(-1, -2)
    nothing = mx.zeros((*inside.shape[:-1], late.shape[2]), mx.float64)
    return (
        mx.concatenate([read, late_read * carry], axis=2),
        mx.concatenate(
            [
                mx.concatenate([inside, nothing], axis=-1),
                mx.concatenate([across, late_inside], axis=-1),
            ],
            axis=2,
        ),
    )


def _runs(chunk: int, floor: float):
    """Slices of tokens over which a product of squared decays stays a normal number."""
    run = _BLOCK if floor == _BACKWARD_FLOOR else _BLOCK // 2
    return [slice(i, min(i + run, chunk)) for i in range(0, chunk, run)]


def _norms(keep, gain, norm0, floor):
    """||h_t[i]||^2 from n_t = a_t^2 n_{t-1} + u_t."""
    last, norms = norm0, []
    for run in _runs(keep.shape[2], floor):
        squared = mx.cumprod(keep[:, :, run] ** 2, axis=2)
        norms.append(squared * (last + mx.cumsum(gain[:, :, run] / squared, axis=2)))
        last = norms[-1][:, :, -1:]
    return mx.concatenate(norms, axis=2)


def _norms_adjoint(keep, cotangent):
    """nu_t = dn_t + a_{t+1}^2 nu_{t+1}, the reverse of `_norms`."""
    following, adjoints = mx.zeros_like(keep[:, :, :1]), []
    for run in reversed(_runs(keep.shape[2], _BACKWARD_FLOOR)):
        square = keep[:, :, run] ** 2
        squared = mx.cumprod(square, axis=2)
        weighted = mx.cumsum(squared * cotangent[:, :, run], axis=2, reverse=True)
        adjoints.append((weighted + squared[:, :, -1:] * following) / squared)
        following = square[:, :, :1] * adjoints[-1][:, :, :1]
    return mx.concatenate(adjoints[::-1], axis=2), following


class _Block(NamedTuple):
    """A block of C tokens, in float64 but for `inverse`; what the backward pass needs as well."""

    read: mx.array  # (B, N, C, m): qA
    inside: mx.array  # (B, N, C, C): M
    keep: mx.array  # (B, N, C, m): a
    decay: mx.array  # (B, N, C, m): A
    weight: mx.array  # (B, N, C, m): theta / A
    inner: mx.array  # (B, N, C, m): p
    norm: mx.array  # (B, N, C, m): n
    inverse: mx.array  # (B, N, C, m): 1 / sqrt(n / d + eps)


def _block(width, eps, floor, theta, phi, gram, projection, norm0) -> _Block:
    keep = mx.maximum(1 - theta, floor)
    decay = mx.cumprod(keep, axis=2)
    weight = theta / decay
    inner = decay / keep * (projection + mx.tril(gram, -1) @ weight)
    gain = theta * (2 * keep * inner + theta * _diagonal(gram))
    norm = _norms(keep, gain, norm0[:, :, None], floor)
    inverse = inverse_rms(mx.maximum(norm, 0).astype(mx.float32), width, eps)
    read = phi * inverse * decay
    inside = mx.tril(read @ weight.swapaxes(-1, -2))
    return _Block(read, inside, keep, decay, weight, inner, norm, inverse)


def _factored_backward(width, eps, *inputs):
    theta, phi, gram, projection, norm0, d_read, d_inside = (x.astype(mx.float64) for x in inputs)
    read, _, keep, decay, weight, inner, norm, inverse = _block(
        width, eps, _BACKWARD_FLOOR, theta, phi, gram, projection, norm0
    )
    # M = tril(qA W^T)
    d_inside = mx.tril(d_inside)
    d_read = d_read + d_inside @ weight
    d_weight = d_inside.swapaxes(-1, -2) @ read
    # qA = phi r A,  r = (n / d + eps)^(-1/2)
    d_query = d_read * decay
    d_phi = d_query * inverse
    d_norm = mx.where(norm > 0, d_phi * phi * inverse_rms_slope(inverse, width), 0)
    # n_t = a_t^2 n_{t-1} + u_t
    d_gain, d_norm0 = _norms_adjoint(keep, d_norm)
    norm_before = mx.concatenate([norm0[:, :, None], norm[:, :, :-1]], axis=2)
    # u = theta (2 a p + theta G_tt),  p = (A / a) (P + tril(G, -1) W)
    d_inner = 2 * d_gain * theta * keep
    d_projection = d_inner * decay / keep
    d_weight = d_weight + mx.tril(gram, -1).swapaxes(-1, -2) @ d_projection
    d_gram = mx.tril(d_projection @ weight.swapaxes(-1, -2), -1)
    d_gram = d_gram + mx.eye(gram.shape[-1]) * (d_gain * theta * theta).sum(-1, keepdims=True)
    # A is in qA, p and W = theta / A, and log A is a sum of log a. The a that stands in u
    # and the one that stands in p cancel.
    d_log_decay = d_read * read + d_inner * inner - d_weight * weight
    d_keep = mx.cumsum(d_log_decay, axis=2, reverse=True) / keep
    d_keep = d_keep + 2 * keep * d_gain * norm_before
    d_theta = 2 * d_gain * (keep * inner + theta * _diagonal(gram)) + d_weight / decay - d_keep
    gradients = d_theta, d_phi, d_gram, d_projection, d_norm0.squeeze(2)
    return tuple(gradient.astype(mx.float32) for gradient in gradients)
