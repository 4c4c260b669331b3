"""The kernel of ``route.metal``: how strongly a token writes and reads every row.

Its reference op is `fm_mlx.ops.routing.route_dense`.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.simdgroup import LANES

ROUTE_DENSE = MetalKernel(
    "route_dense",
    ["routing", "num_rows", "num_active", "temperature"],
    ["theta", "phi"],
    """
    route_dense<per_lane>(
        routing, theta, phi, num_rows, num_active, temperature,
        thread_position_in_grid.y, thread_index_in_simdgroup);
    """,
    file="route",
)


def route_dense(
    routing: mx.array, num_active: int, temperature: float
) -> tuple[mx.array, mx.array]:
    """Choose the k active rows of each token, and give the weights of all m rows.

    Args:
        routing: (tokens, m + 2), any float dtype: m logits, then both rates before the sigmoid.
        num_active: k.
        temperature: tau.

    Returns:
        theta and phi (tokens, m) float32, 0 for the rows that are not active.
    """
    tokens, outputs = routing.shape
    num_rows = outputs - 2
    # one SIMD-group a token, four of them a threadgroup
    theta, phi = ROUTE_DENSE(
        inputs=[routing, num_rows, num_active, float(temperature)],
        template=[("per_lane", rows_of_a_lane(num_rows))],
        grid=(LANES, tokens, 1),
        threadgroup=(LANES, min(tokens, 4), 1),
        output_shapes=[(tokens, num_rows)] * 2,
        output_dtypes=[mx.float32, mx.float32],
    )
    return theta, phi


def rows_of_a_lane(num_rows: int) -> int:
    """The most rows whose logits a lane of a SIMD-group holds."""
    return -(-num_rows // LANES)


def route_dense_cost(tokens: int, rows: int, item_size: int = FLOAT_BYTES) -> Cost:
    """The cost of `route_dense`; ``item_size`` is the number of bytes of a logit."""
    least = tokens * ((rows + 2) * item_size + 2 * rows * FLOAT_BYTES)
    return Cost(least, least, tokens * affinity_flops(rows))


def affinity_flops(rows: int) -> int:
    """A token's choice of its rows: a count for each of the 32 bits of a logit, and the softmax."""
    return rows * (32 + 8)
