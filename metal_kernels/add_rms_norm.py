"""The kernel of ``add_rms_norm.metal``: the residual stream's sum and its RMS norm.

Its reference op is `fm_mlx.ops.block.add_rms_norm`.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.simdgroup import LANES, numbers_of_a_thread, threads_of_a_row


def _kernel(in_float: bool) -> MetalKernel:
    return MetalKernel(
        "add_rms_norm_in_float" if in_float else "add_rms_norm",
        ["x", "update", "weight", "eps"],
        ["total", "normed", *(["in_float"] if in_float else [])],
        f"""
    threadgroup float partial[LANES];
    add_rms_norm<T, per_thread>(
        x, update, weight, total, normed, {"in_float" if in_float else "Nothing{}"}, partial,
        x_shape[1], eps, thread_position_in_grid.y, thread_position_in_threadgroup.x,
        threads_per_threadgroup.x, simdgroup_index_in_threadgroup, simdgroups_per_threadgroup,
        thread_index_in_simdgroup);
    """,
        file="add_rms_norm",
    )


ADD_RMS_NORM = _kernel(in_float=False)
ADD_RMS_NORM_IN_FLOAT = _kernel(in_float=True)


def add_rms_norm(
    x: mx.array, update: mx.array, weight: mx.array, eps: float, in_float: bool = False
) -> list[mx.array]:
    """Add ``update`` to x, and give the sum and its RMS norm.

    Args:
        x, update: (tokens, hidden), of one float dtype.
        weight: (hidden,) float32.
        eps: added to the mean square.
        in_float: whether the norm is wanted in float32 as well.

    Returns:
        The sum and its norm, (tokens, hidden) in the dtype of ``x``, and with ``in_float`` the
        norm's numbers in float32.
    """
    tokens, hidden = x.shape
    threads = threads_of_a_row(hidden)
    dtypes = [x.dtype, x.dtype, *([mx.float32] if in_float else [])]
    kernel = ADD_RMS_NORM_IN_FLOAT if in_float else ADD_RMS_NORM
    return kernel(
        inputs=[x, update, weight, float(eps)],
        template=[("T", x.dtype), ("per_thread", numbers_of_a_thread(hidden))],
        grid=(threads, tokens, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape] * len(dtypes),
        output_dtypes=dtypes,
    )


def add_rms_norm_cost(
    tokens: int, hidden: int, item_size: int = FLOAT_BYTES, in_float: bool = False
) -> Cost:
    """The cost of `add_rms_norm`: every token reads the weight anew.

    Args:
        tokens: rows of x.
        hidden: numbers of a row.
        item_size: bytes of a number of x.
        in_float: whether the norm is written in float32 as well.
    """
    numbers = 4 * hidden * item_size + in_float * hidden * FLOAT_BYTES
    return Cost(
        tokens * (numbers + hidden * FLOAT_BYTES),
        tokens * numbers + hidden * FLOAT_BYTES,
        tokens * hidden * 5,
        threadgroup_bytes=LANES * FLOAT_BYTES,
    )
