"""The kernel of ``add_rms_norm.metal``: the residual stream's sum and its RMS norm.

Its reference op is `fm_mlx.ops.block.add_rms_norm`.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.simdgroup import LANES, numbers_of_a_thread, threads_of_a_row

ADD_RMS_NORM = MetalKernel(
    "add_rms_norm",
    ["x", "update", "weight", "eps"],
    ["total", "normed"],
    """
    threadgroup float partial[LANES];
    add_rms_norm<T, per_thread>(
        x, update, weight, total, normed, partial, x_shape[1], eps, thread_position_in_grid.y,
        thread_position_in_threadgroup.x, threads_per_threadgroup.x,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
)


def add_rms_norm(
    x: mx.array, update: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """Add ``update`` to x, and give the sum and its RMS norm.

    Args:
        x, update: (tokens, hidden), of one float dtype.
        weight: (hidden,) float32.
        eps: added to the mean square.

    Returns:
        The sum and its norm, (tokens, hidden) in the dtype of ``x``.
    """
    tokens, hidden = x.shape
    threads = threads_of_a_row(hidden)
    total, normed = ADD_RMS_NORM(
        inputs=[x, update, weight, float(eps)],
        template=[("T", x.dtype), ("per_thread", numbers_of_a_thread(hidden))],
        grid=(threads, tokens, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape, x.shape],
        output_dtypes=[x.dtype, x.dtype],
    )
    return total, normed


def add_rms_norm_cost(tokens: int, hidden: int, item_size: int = FLOAT_BYTES) -> Cost:
    """The cost of `add_rms_norm`: every token reads the weight anew."""
    numbers = 4 * hidden * item_size
    return Cost(
        tokens * (numbers + hidden * FLOAT_BYTES),
        tokens * numbers + hidden * FLOAT_BYTES,
        tokens * hidden * 5,
        threadgroup_bytes=LANES * FLOAT_BYTES,
    )
