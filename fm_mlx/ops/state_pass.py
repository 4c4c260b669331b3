"""Chunk-start states from the decay and the increment of every chunk."""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels import state_pass as kernels
from fm_mlx.metal_kernels.launch import runs
from fm_mlx.support.arrays import with_vjp

# Chunks that one matrix product carries the state across; more are grouped, and the
# groups passed over in turn, so the graph grows with log(number of chunks).
_GROUP = 32


def state_pass(decay: mx.array, increment: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
    """H_{n+1} = decay_n * H_n + increment_n over n = 0 .. N-1, from H_0 = state.

    Args:
        decay: (B, N, m) float32, in [0, 1].
        increment: (B, N, m, d) float32.
        state: (B, m, d) float32.

    Returns:
        H_0 .. H_{N-1} (B, N, m, d) and H_N (B, m, d), float32.
    """
    starts, last = _state_pass(decay, increment, state)
    return starts, last


def _forward(decay, increment, state):
    if runs("state_pass"):
        return kernels.state_pass(decay, increment, state)
    return _pass(decay, increment, state)


def _state_pass_vjp(primals, cotangents, outputs):
    decay = primals[0]
    d_starts, d_last = cotangents
    # L_N = dH_N, L_n = dH_n + decay_n L_{n+1}: the same recurrence, from the end.
    # Increment n enters H_{n+1}, so its gradient is L_{n+1}.
    if runs("state_pass"):
        d_increment, first = kernels.state_pass(decay, d_starts, d_last, reverse=True)
    else:
        after, first = _pass(decay[:, ::-1], d_starts[:, ::-1], d_last)
        d_increment = after[:, ::-1]
    d_decay = (d_increment * outputs[0]).sum(axis=-1)
    return d_decay, d_increment, first


_state_pass = with_vjp(_forward, _state_pass_vjp)


def _pass(decay: mx.array, increment: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
    chunks = increment.shape[1]
    if chunks <= _GROUP:
        sources = mx.concatenate([state[:, :, None], increment.swapaxes(1, 2)], axis=2)
        states = _across(decay) @ sources
        # laid out by chunk, as the products that read the states want it; the last state
        # is copied out, or whoever keeps it would keep all of them
        return mx.contiguous(states[:, :, :-1].swapaxes(1, 2)), mx.contiguous(states[:, :, -1])
    groups = -(-chunks // _GROUP)
    padding = (0, groups * _GROUP - chunks)
    decay = mx.pad(decay, [(0, 0), padding, (0, 0)], constant_values=1)
    increment = mx.pad(increment, [(0, 0), padding, (0, 0), (0, 0)])
    decay = decay.reshape(-1, groups, _GROUP, decay.shape[-1])
    increment = increment.reshape(-1, groups, _GROUP, *increment.shape[2:])
    starts, last = _pass(*_over_group(decay, increment), state)
    states, _ = _pass(decay.flatten(0, 1), increment.flatten(0, 1), starts.flatten(0, 1))
    return states.reshape(-1, groups * _GROUP, *state.shape[1:])[:, :chunks], last


def _over_group(decay: mx.array, increment: mx.array) -> tuple[mx.array, mx.array]:
    """Decay and increment of whole groups: (B, G, N, m) and (B, G, N, m, d) without N."""
    to_end = mx.cumprod(decay, axis=2, reverse=True, inclusive=False)
    return decay.prod(axis=2), (to_end[..., None] * increment).sum(axis=2)


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
