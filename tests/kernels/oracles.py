"""What each kernel must compute, in float64 and as its definition says."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from cases import double

from fm_mlx import reference

Array = np.ndarray
EPS = 1e-6


def route(routing: Array, num_active: int, temperature: float) -> tuple[Array, Array, Array]:
    """Indices (tokens, k) of the active rows, and theta and phi (tokens, m)."""
    routing = double(routing)
    logits, rates = routing[:, :-2], reference.sigmoid(routing[:, -2:])
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :num_active]
    alpha = reference.affinity(logits, num_active, temperature)
    return np.sort(best), rates[:, :1] * alpha, rates[:, 1:] * alpha


def sparse_update(
    indices: Array, theta: Array, phi: Array, value: Array, state: Array, mask: Array | None
) -> tuple[Array, Array]:
    """The k rows as written (B, k, d), and y (B, d)."""
    rows, ys = [], []
    for b, active in enumerate(indices):
        real = mask is None or mask[b]
        write = double(theta[b])[:, None] * real
        v = double(value[b]) if real else np.zeros(value.shape[1])
        h = (1 - write) * double(state[b][active]) + write * v
        rows.append(h)
        ys.append(double(phi[b]) * real @ (h / reference.rms(h, EPS)))
    return np.stack(rows), np.stack(ys)


def add_rms_norm(total: Array, weight: Array) -> Array:
    """The norm of a sum (tokens, hidden) as it was rounded."""
    return double(total) / reference.rms(double(total), EPS) * double(weight)


def state_pass(
    decay: Array, increment: Array, state: Array, reverse: bool = False
) -> tuple[Array, Array]:
    """The states before (in reverse: after) each chunk, and the last one."""
    decay, increment, carried = double(decay), double(increment), double(state)
    starts = np.empty_like(increment)
    chunks = range(increment.shape[1])
    for n in reversed(chunks) if reverse else chunks:
        starts[:, n] = carried
        carried = decay[:, n, :, None] * carried + increment[:, n]
    return starts, carried


def chunk_scan(theta: Array, phi: Array, values: Array, start: Array) -> tuple[Array, Array]:
    """(qA, M) from the states themselves: (B, N, C, m), (B, N, C, C).

    Args:
        theta, phi: (B, N, C, m).
        values: (B, N, C, d).
        start: H, (B, N, m, d).
    """
    theta, phi, values, h = map(double, (theta, phi, values, start))
    tokens = theta.shape[2]
    read, inside = np.zeros_like(theta), np.zeros((*theta.shape[:3], tokens))
    decay = np.ones_like(theta[:, :, 0])
    weight = np.zeros((*theta.shape[:2], tokens, theta.shape[3]))
    for t in range(tokens):
        write = theta[:, :, t]
        h = (1 - write)[..., None] * h + write[..., None] * values[:, :, t, None]
        decay = (1 - write) * decay
        weight = (1 - write)[:, :, None] * weight
        weight[:, :, t] = write
        query = phi[:, :, t] / reference.rms(h, EPS)[..., 0]
        read[:, :, t] = query * decay
        inside[:, :, t] = (query[:, :, None] * weight).sum(-1)
    return read, inside


def chunk_scan_vjp(primals: list[Array], cotangents: list[Array], width: int) -> list[Array]:
    """Gradients of (theta, phi, gram, projection, norm0): MLX's autodiff in float64."""

    def form(theta, phi, gram, projection, norm0):
        read, inside = [], []
        decay, norm = mx.ones_like(norm0), norm0
        tokens = theta.shape[2]
        weights = mx.zeros((*theta.shape[:2], 0, theta.shape[3]), mx.float64)
        for t in range(tokens):
            write, keep = theta[:, :, t], 1 - theta[:, :, t]
            inner = decay * projection[:, :, t] + (weights * gram[:, :, t, :t, None]).sum(2)
            square = gram[:, :, t, t, None]
            norm = keep * keep * norm + write * (2 * keep * inner + write * square)
            decay = keep * decay
            weights = mx.concatenate([keep[:, :, None] * weights, write[:, :, None]], axis=2)
            query = phi[:, :, t] * mx.rsqrt(mx.maximum(norm, 0) / width + EPS)
            read.append(query * decay)
            row = (query[:, :, None] * weights).sum(-1)
            inside.append(mx.pad(row, [(0, 0), (0, 0), (0, tokens - 1 - t)]))
        return mx.stack(read, axis=2), mx.stack(inside, axis=2)

    def wide(arrays):
        return [mx.array(double(x), mx.float64) for x in arrays]

    with mx.stream(mx.cpu):
        gradients = mx.vjp(form, wide(primals), wide(cotangents))[1]
        return [np.array(x) for x in gradients]
