"""The Factorization Memory layer."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from fm_mlx import cache as caches
from fm_mlx import ops
from fm_mlx.metal_kernels.launch import on_cpu
from fm_mlx.ops import DenseRouting, SparseRouting

# What `FactorizationMemory.route` says of the tokens; an array holds the router's scores.
Routing = DenseRouting | SparseRouting | mx.array


# Where the logits of the rows come from, the values of `router` in config.json: weights of every
# row, or sums of two halves.
LINEAR, PRODUCT = "linear", "product"


class Router(nn.Module):
    """Scores of the m rows, update rate and merge rate of each token, in float32.

    ``weight`` (n + 2, hidden) holds W_alpha, then w_eta, then w_mu. There are n = m logits, or
    those of two halves, n = 2 sqrt(m) (`ops.route`). A raw weight without
    ``to_quantized``: quantisers and LoRA, which look for linear layers, leave it alone.
    """

    def __init__(self, hidden_size: int, num_logits: int):
        super().__init__()
        scale = 1 / math.sqrt(hidden_size)
        self.weight = mx.random.uniform(-scale, scale, (num_logits + 2, hidden_size))

    def __call__(self, x: mx.array) -> mx.array:
        """(..., hidden) -> (..., n + 2) float32: n logits, then both rates before the sigmoid."""
        return x.astype(mx.float32) @ self.weight.T


class FactorizationMemory(nn.Module):
    """A memory of m rows, of which each token writes and reads the k it is most affine to.

    The layer of arXiv:2511.00315: x (B, T, hidden) -> (B, T, hidden), in the dtype of x.
    The state (B, m, d), always float32, lives in the cache.

    Args:
        hidden_size: the width of x.
        memory_size: d, the width of a row.
        num_memory_states: m, the number of rows.
        num_active_states: k, the rows that a token touches; k = m is the dense layer.
        affinity_temperature: tau, by which the routing logits are divided.
        eps: added to the mean square of a row before its root.
        router: "linear", or "product", with which m is a square: where the logits of the rows
            come from.
    """

    def __init__(
        self,
        hidden_size: int,
        memory_size: int,
        num_memory_states: int,
        num_active_states: int,
        affinity_temperature: float = 1.0,
        eps: float = 1e-6,
        router: str = LINEAR,
    ):
        super().__init__()
        self.memory_size = memory_size
        self.num_memory_states = num_memory_states
        self.num_active_states = num_active_states
        self.affinity_temperature = affinity_temperature
        self.eps = eps
        self.in_proj = nn.Linear(hidden_size, memory_size, bias=False)
        self.product_keys = router == PRODUCT
        num_logits = ops.num_logits(num_memory_states, self.product_keys)
        self.router = Router(hidden_size, num_logits)
        self.out_proj = nn.Linear(memory_size, hidden_size, bias=False)

    def __call__(
        self,
        x: mx.array,
        mask: mx.array | None = None,
        cache: ArraysCache | None = None,
        initial_state: mx.array | None = None,
        reset_positions: mx.array | None = None,
        in_float: mx.array | None = None,
    ) -> mx.array:
        """Write the tokens x (B, T, hidden) to the memory, and read: (B, T, hidden).

        Args:
            x: the tokens.
            mask: (B, T) bool; False marks padding, which leaves the state as it is.
            cache: holds the state to start from, and afterwards the last one (`fm_mlx.cache`).
            initial_state: (m, d) float32, or (B, m, d): the state before the first token of a
                text; None stands for zeros.
            reset_positions: (B, R) integers, the tokens at which another text begins
                (`ops.memory_scan`).
            in_float: x in float32, which the router reads, if it is at hand.
        """
        routing = self.route(x if in_float is None else in_float, cache)
        values = self.in_proj(x)
        read = self.recurrence(routing, values, mask, cache, initial_state, reset_positions)
        return self.out_proj(read)

    def route(self, x: mx.array, cache: ArraysCache | None = None) -> Routing:
        """Choose the rows that the tokens x (B, T, hidden) touch, and how strongly.

        Returns:
            theta and phi of all rows, or of the active ones where the recurrence is faster on
            these alone. If one token meets a cache of two buffers, the router's scores
            (B, 1, n + 2): there the recurrence chooses the active rows itself.
        """
        scores = self.router(x)
        one_token = x.shape[1] == 1
        if one_token and caches.takes_rows(cache, batch=len(x)):
            return scores
        sizes = self.num_memory_states, self.num_active_states
        if one_token:
            is_sparse = on_cpu() and ops.sparse_step_is_faster(len(x), *sizes, self.memory_size)
        else:
            is_sparse = ops.sparse_scan_is_faster(*sizes)
        route = ops.route if is_sparse else ops.route_dense
        return route(scores, self.num_active_states, self.affinity_temperature, self.product_keys)

    def recurrence(
        self,
        routing: Routing,
        values: mx.array,
        mask: mx.array | None = None,
        cache: ArraysCache | None = None,
        initial_state: mx.array | None = None,
        reset_positions: mx.array | None = None,
    ) -> mx.array:
        """Write the values (B, T, d) as `route` says, and read: y (B, T, d)."""
        if isinstance(routing, mx.array):
            assert cache is not None  # only a cache of two buffers takes scores
            y = caches.step(
                cache,
                routing,
                values,
                mask,
                self.affinity_temperature,
                self.eps,
                self.product_keys,
            )
        else:
            y = self._on_whole_state(routing, values, mask, cache, initial_state, reset_positions)
        if cache is not None:
            cache.advance(values.shape[1])
        return y

    def _on_whole_state(self, routing, values, mask, cache, initial_state, reset_positions):
        state = None if cache is None else caches.state_of(cache)
        if state is None:
            state = initial_state
        if state is None:
            state = mx.zeros((self.num_memory_states, values.shape[-1]))
        # the initial state of a fresh cache is there once for the whole batch
        state = mx.broadcast_to(state, (len(values), *state.shape[-2:]))
        theta_is_seen = isinstance(cache, caches.WritesSeen)
        if isinstance(routing, SparseRouting) and (theta_is_seen or reset_positions is not None):
            routing = routing.on_all_rows(self.num_memory_states)
        if isinstance(routing, SparseRouting):
            if values.shape[1] == 1:
                y, state = ops.sparse_memory_step(*routing, values, state, mask, eps=self.eps)
            else:
                y, state = ops.sparse_memory_scan(routing, values, state, mask, eps=self.eps)
        else:
            theta, phi = routing
            if theta_is_seen:
                cache.watch(theta, values, state)
            if values.shape[1] == 1 and reset_positions is None:
                y, state = ops.memory_step(theta, phi, values, state, mask, eps=self.eps)
            else:
                y, state = ops.memory_scan(
                    theta,
                    phi,
                    values,
                    state,
                    mask,
                    eps=self.eps,
                    reset_positions=reset_positions,
                    reset_state=initial_state,
                )
        if cache is not None:
            caches.set_state(cache, state, self.num_active_states)
        return y
