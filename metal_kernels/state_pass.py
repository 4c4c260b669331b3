"""The kernel of ``state_pass.metal``: chunk-start states, forwards and in reverse.

Its reference op is `fm_mlx.ops.state_pass.state_pass`.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel

STATE_PASS = MetalKernel(
    "state_pass",
    ["decay", "increment", "state"],
    ["starts", "last"],
    """
    state_pass<reverse>(
        decay, increment, state, starts, last, increment_shape[1], increment_shape[2],
        increment_shape[3], thread_position_in_grid.x, thread_position_in_grid.y);
    """,
)


def state_pass(
    decay: mx.array, increment: mx.array, state: mx.array, *, reverse: bool = False
) -> tuple[mx.array, mx.array]:
    """Compute H_{n+1} = decay_n * H_n + increment_n over all chunks n.

    Args:
        decay: (B, N, m) float32.
        increment: (B, N, m, d) float32.
        state: H_0, (B, m, d) float32.
        reverse: go from the last chunk to the first: L_n = decay_n * L_{n+1} + increment_n
            with L_N = ``state``. That is the gradient of the forward pass.

    Returns:
        H_0 .. H_{N-1} and H_N; in reverse L_1 .. L_N and L_0. Their shapes are (B, N, m, d)
        and (B, m, d), their dtype float32.
    """
    batch, _, rows, width = increment.shape
    size = rows * width
    starts, last = STATE_PASS(
        inputs=[decay, increment, state],
        template=[("reverse", reverse)],
        grid=(size, batch, 1),
        threadgroup=(min(size, 256), 1, 1),
        output_shapes=[increment.shape, state.shape],
        output_dtypes=[mx.float32, mx.float32],
    )
    return starts, last


def state_pass_cost(batch: int, chunks: int, rows: int, width: int) -> Cost:
    """The cost of `state_pass`: every 32 threads read the sector that holds their decay."""
    numbers = batch * chunks * rows * width
    states = 2 * batch * rows * width
    least = FLOAT_BYTES * (batch * chunks * rows + 2 * numbers + states)
    return Cost(least + numbers, least, 10 * numbers)
