"""The kernels of ``route.metal``: which rows a token touches, and how strongly.

Their reference ops are `fm_mlx.ops.routing.route` and `fm_mlx.ops.routing.route_dense`.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, SECTOR_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.simdgroup import LANES

ROUTE_SPARSE = MetalKernel(
    "route_sparse",
    ["routing", "num_rows", "num_active", "temperature"],
    ["indices", "theta", "phi"],
    """
    route_sparse<per_lane>(
        routing, indices, theta, phi, num_rows, num_active, temperature,
        thread_position_in_grid.y, thread_index_in_simdgroup);
    """,
    file="route",
)

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


def route(
    routing: mx.array, num_active: int, temperature: float
) -> tuple[mx.array, mx.array, mx.array]:
    """Choose the k active rows of each token.

    Args:
        routing: (tokens, m + 2), any float dtype: m logits, then both rates before the sigmoid.
        num_active: k.
        temperature: tau.

    Returns:
        indices (tokens, k) int32 in rising order, theta and phi (tokens, k) float32.
    """
    tokens = routing.shape[0]
    indices, theta, phi = ROUTE_SPARSE(
        output_shapes=[(tokens, num_active)] * 3,
        output_dtypes=[mx.int32, mx.float32, mx.float32],
        **_launch(routing, num_active, temperature),
    )
    return indices, theta, phi


def route_dense(
    routing: mx.array, num_active: int, temperature: float
) -> tuple[mx.array, mx.array]:
    """Choose the k active rows of each token, and give the weights of all m rows.

    Args:
        routing, num_active, temperature: as in `route`.

    Returns:
        theta and phi (tokens, m) float32, 0 for the rows that are not active.
    """
    tokens, outputs = routing.shape
    theta, phi = ROUTE_DENSE(
        output_shapes=[(tokens, outputs - 2)] * 2,
        output_dtypes=[mx.float32, mx.float32],
        **_launch(routing, num_active, temperature),
    )
    return theta, phi


def _launch(routing: mx.array, num_active: int, temperature: float) -> dict[str, Any]:
    """One SIMD-group a token, four of them a threadgroup."""
    tokens, outputs = routing.shape
    num_rows = outputs - 2
    return {
        "inputs": [routing, num_rows, num_active, float(temperature)],
        "template": [("per_lane", -(-num_rows // LANES))],
        "grid": (LANES, tokens, 1),
        "threadgroup": (LANES, min(tokens, 4), 1),
    }


def route_dense_cost(tokens: int, rows: int, item_size: int = FLOAT_BYTES) -> Cost:
    """The cost of `route_dense`; ``item_size`` is the number of bytes of a logit."""
    least = tokens * ((rows + 2) * item_size + 2 * rows * FLOAT_BYTES)
    return Cost(least, least, tokens * _flops(rows))


def route_cost(tokens: int, rows: int, num_active: int, item_size: int = FLOAT_BYTES) -> Cost:
    """The cost of `route`; ``item_size`` is the number of bytes of a logit.

    The active rows among every 32 rows are written from the start of a sector of their own.
    """
    least = tokens * ((rows + 2) * item_size + 3 * num_active * FLOAT_BYTES)
    shared = tokens * 3 * (-(-rows // LANES) - 1) * SECTOR_BYTES
    return Cost(least + shared, least, tokens * _flops(rows))


def _flops(rows: int) -> int:
    """One count for each of the 32 bits of a logit, and the softmax."""
    return rows * (32 + 8)
