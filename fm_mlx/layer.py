"""The Factorization Memory layer."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from fm_mlx import memory, ops


class Router(nn.Module):
    """Scores of the m rows, update rate and merge rate of each token, in float32.

    ``weight`` (m + 2, hidden) holds W_alpha, then w_eta, then w_mu. A raw weight without
    ``to_quantized``: quantisers and LoRA, which look for linear layers, leave it alone.
    """

    def __init__(self, hidden_size: int, num_memory_states: int):
        super().__init__()
        scale = 1 / math.sqrt(hidden_size)
        self.weight = mx.random.uniform(-scale, scale, (num_memory_states + 2, hidden_size))

    def __call__(self, x: mx.array) -> mx.array:
        """(..., hidden) -> (..., m + 2) float32: m logits, then both rates before the sigmoid."""
        return x.astype(mx.float32) @ self.weight.T


class FactorizationMemory(nn.Module):
    """A memory of m rows, of which each token writes and reads the k it is most affine to.

    The layer of arXiv:2511.00315: x (B, T, hidden) -> (B, T, hidden), in the dtype of x.
    The state (B, m, d), always float32, lives in the cache.

    Args:
        hidden_size: width of x.
        memory_size: d, the width of a row.
        num_memory_states: m.
        num_active_states: k; k = m is the dense layer.
        affinity_temperature: tau.
        eps: added to the mean square of a row before its root.
    """

    def __init__(
        self,
        hidden_size: int,
        memory_size: int,
        num_memory_states: int,
        num_active_states: int,
        affinity_temperature: float = 1.0,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.memory_size = memory_size
        self.num_memory_states = num_memory_states
        self.num_active_states = num_active_states
        self.affinity_temperature = affinity_temperature
        self.eps = eps
        self.in_proj = nn.Linear(hidden_size, memory_size, bias=False)
        self.router = Router(hidden_size, num_memory_states)
        self.out_proj = nn.Linear(memory_size, hidden_size, bias=False)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None = None,
        cache: ArraysCache | None = None,
        initial: mx.array | None = None,
        starts: mx.array | None = None,
    ) -> mx.array:
        """Read x (B, T, hidden) into the memory; what was read out has the same shape.

        Args:
            x: the tokens.
            mask: (B, T) bool; False marks padding, which leaves the state as it is.
            cache: holds the state to start from, and then the last one (`fm_mlx.memory`).
            initial: (m, d) float32, the memory of a text that begins; None is zeros.
            starts: (B, R) integers: tokens at which another text begins (`ops.memory_scan`).
        """
        weights = self.route(x, cache)
        values = self.in_proj(x)
        return self.out_proj(self.remember(weights, values, mask, cache, initial, starts))

    def route(self, x: mx.array, cache: ArraysCache | None = None) -> tuple[mx.array, ...]:
        """Which rows the tokens x (B, T, hidden) touch, and how strongly.

        Returns:
            indices, theta and phi (B, 1, k) of the active rows (`ops.route`) if one token meets
            a cache of two buffers; else theta and phi (B, T, m) (`ops.route_dense`).
        """
        routing = self.router(x)
        if x.shape[1] == 1 and memory.is_buffered(cache) and memory.holds(cache, len(x)):
            return ops.route(routing, self.num_active_states, self.affinity_temperature)
        return ops.route_dense(routing, self.num_active_states, self.affinity_temperature)

    def remember(
        self,
        weights: tuple[mx.array, ...],
        values: mx.array,
        mask: mx.array | None = None,
        cache: ArraysCache | None = None,
        initial: mx.array | None = None,
        starts: mx.array | None = None,
    ) -> mx.array:
        """Write the values (B, T, d) by the weights of `route`, and read: y (B, T, d)."""
        if len(weights) == 3:
            y = memory.step(cache, *weights, values, mask, self.eps)
        else:
            y = self._on_all_rows(*weights, values, mask, cache, initial, starts)
        if cache is not None:
            cache.advance(values.shape[1])
        return y

    def _on_all_rows(self, theta, phi, values, mask, cache, initial, starts):
        state = None if cache is None else memory.state_of(cache)
        if state is None:
            state = initial
        if state is None:
            state = mx.zeros(theta.shape[-1:] + values.shape[-1:], mx.float32)
        # the memory that a fresh cache holds is there once
        state = mx.broadcast_to(state, (len(values), *state.shape[-2:]))
        if starts is not None:
            y, state = ops.memory_scan(
                theta, phi, values, state, mask, eps=self.eps, starts=starts, restart=initial
            )
        else:
            recurrence = ops.memory_step if values.shape[1] == 1 else ops.memory_scan
            y, state = recurrence(theta, phi, values, state, mask, eps=self.eps)
        if cache is not None:
            memory.set_state(cache, state, self.num_active_states)
        return y
