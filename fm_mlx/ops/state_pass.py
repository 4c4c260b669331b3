"""Chunk-start states from the decay and the increment of every chunk."""

from __future__ import annotations

import mlx.core as mx

# Chunks that one matrix product carries the state across; more are grouped, and the
# groups passed over in turn, so the graph grows with log(number of chunks).
_GROUP = 16


@mx.custom_function
def state_pass(decay: mx.array, increment: mx.array, state: mx.array) -> mx.array:
    """H_{n+1} = decay_n * H_n + increment_n over n = 0 .. N-1, from H_0 = state.

    Args:
        decay: (B, N, m) float32, in [0, 1].
        increment: (B, N, m, d) float32.
        state: (B, m, d) float32.

    Returns:
        (B, N + 1, m, d) float32: the state before each chunk, then the last state.
    """
    return _pass(decay, increment, state)


@state_pass.vjp
def _state_pass_vjp(primals, cotangent, states):
    decay = primals[0]
    # L_n = dH_n + decay_n L_{n+1}: the same recurrence, from the end
    adjoint = _pass(decay[:, ::-1], cotangent[:, -2::-1], cotangent[:, -1])[:, ::-1]
    d_decay = (adjoint[:, 1:] * states[:, :-1]).sum(axis=-1)
    return d_decay, adjoint[:, 1:], adjoint[:, 0]


def _pass(decay: mx.array, increment: mx.array, state: mx.array) -> mx.array:
    batch, chunks, rows, width = increment.shape
    if chunks <= _GROUP:
        across = _across(decay)
        sources = mx.concatenate([state[:, None], increment], axis=1).swapaxes(1, 2)
        return (across @ sources).swapaxes(1, 2)
    groups = -(-chunks // _GROUP)
    padding = [(0, 0), (0, groups * _GROUP - chunks), (0, 0)]
    decay = mx.pad(decay, padding, constant_values=1)
    increment = mx.pad(increment, [*padding, (0, 0)])
    decay = decay.reshape(batch, groups, _GROUP, rows)
    increment = increment.reshape(batch, groups, _GROUP, rows, width)
    to_end = _across(decay.reshape(-1, _GROUP, rows))[:, :, -1:]
    to_end = to_end.reshape(batch, groups, rows, 1, _GROUP + 1)
    group_increment = (to_end[..., 1:] @ increment.swapaxes(2, 3)).squeeze(3)
    starts = _pass(to_end[..., 0, 0], group_increment, state)[:, :-1]
    states = _pass(
        decay.reshape(-1, _GROUP, rows),
        increment.reshape(-1, _GROUP, rows, width),
        starts.reshape(-1, rows, width),
    ).reshape(batch, groups, _GROUP + 1, rows, width)
    before = states[:, :, :-1].reshape(batch, groups * _GROUP, rows, width)
    last = states[:, -1:, -1]
    return mx.concatenate([before, last], axis=1)[:, : chunks + 1]


def _across(decay: mx.array) -> mx.array:
    """(B, m, N + 1, N + 1): what is left in H_n of the start (column 0) and of increment j - 1.

    Products of decays, never quotients: exact where a decay is 0.
    """
    size = decay.shape[1] + 1
    keep = mx.concatenate([mx.ones_like(decay[:, :1]), decay], axis=1).swapaxes(1, 2)
    later = mx.tril(mx.ones((size, size), dtype=mx.bool_), -1)
    across = mx.tril(mx.cumprod(mx.where(later, keep[..., None], 1), axis=2))
    # a product this small is below the resolution of any sum, and denormals are slow
    return mx.where(across < 1e-30, 0, across)
