"""Chunk-start states from the decay and the increment of every chunk."""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels import state_pass as kernels
from fm_mlx.metal_kernels.launch import runs
from fm_mlx.support.arrays import with_vjp

# Chunks that are passed over in turn; of more, groups are passed over side by side, so that the
# graph grows with the logarithm of their number.
_GROUP = 64


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
        d_increment, first = _pass(decay, d_starts, d_last, reverse=True)
    d_decay = (d_increment * outputs[0]).sum(axis=-1)
    return d_decay, d_increment, first


_state_pass = with_vjp(_forward, _state_pass_vjp)


def _pass(
    decay: mx.array, increment: mx.array, state: mx.array, reverse: bool = False
) -> tuple[mx.array, mx.array]:
    """The state before each chunk, and the last one; in reverse from the last chunk to the first.

    A chunk in turn: on the CPU faster than one product with the decays between all chunks.
    """
    chunks = increment.shape[1]
    if chunks <= _GROUP:
        states = [state]
        for n in reversed(range(chunks)) if reverse else range(chunks):
            states.append(decay[:, n, :, None] * states[-1] + increment[:, n])
        last = states.pop()
        return mx.stack(states[::-1] if reverse else states, axis=1), last
    groups = -(-chunks // _GROUP)
    padding = (0, groups * _GROUP - chunks)
    decay = mx.pad(decay, [(0, 0), padding, (0, 0)], constant_values=1)
    increment = mx.pad(increment, [(0, 0), padding, (0, 0), (0, 0)])
    decay = decay.reshape(-1, _GROUP, decay.shape[-1])
    increment = increment.reshape(-1, _GROUP, *increment.shape[2:])
    # what a group makes of zeros is its increment
    _, of_group = _pass(decay, increment, mx.zeros_like(increment[:, 0]), reverse)
    by_group = (-1, groups)
    starts, last = _pass(
        decay.prod(axis=1).reshape(*by_group, decay.shape[-1]),
        of_group.reshape(*by_group, *state.shape[1:]),
        state,
        reverse,
    )
    states, _ = _pass(decay, increment, starts.flatten(0, 1), reverse)
    return states.reshape(-1, groups * _GROUP, *state.shape[1:])[:, :chunks], last
