"""The kernel of ``sparse_update.metal``: one token on k rows of the state.

Its reference op is `fm_mlx.ops.step.sparse_update`.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.simdgroup import LANES, numbers_of_a_thread, threads_of_a_row

# Rows whose norms are summed together, as ROWS in the Metal file.
_ROWS_TOGETHER = 8


def _kernel(masked: bool) -> MetalKernel:
    return MetalKernel(
        "sparse_update_masked" if masked else "sparse_update",
        ["indices", "theta", "phi", "value", "state", "eps", *(["mask"] if masked else [])],
        ["rows", "y"],
        f"""
    threadgroup float partial[ROWS * LANES];
    uint batch = thread_position_in_grid.y;
    sparse_update<T, per_thread>(
        indices, theta, phi, value, state, {"mask[batch]" if masked else "true"}, rows, y,
        partial, indices_shape[1], state_shape[1], state_shape[2], eps, batch,
        thread_position_in_threadgroup.x, threads_per_threadgroup.x,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
        file="sparse_update",
    )


SPARSE_UPDATE = _kernel(masked=False)
SPARSE_UPDATE_MASKED = _kernel(masked=True)


def sparse_update(
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    state: mx.array,
    mask: mx.array | None,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Write one token to k rows of the state and read them back.

    Args:
        indices: (B, k) int32, without repeats in a row.
        theta, phi: (B, k) float32.
        value: (B, d), any float dtype.
        state: (B, m, d) float32; neither copied nor changed.
        mask: (B,) bool; where False the rows come back as they are and y is 0.
        eps: added to the mean square of a row.

    Returns:
        The k rows as written, (B, k, d) float32, and y (B, d) in the dtype of ``value``.
    """
    batch, num_active = indices.shape
    width = value.shape[-1]
    threads = threads_of_a_row(width)
    inputs = [indices, theta, phi, value, state, float(eps)]
    if mask is None:
        kernel = SPARSE_UPDATE
    else:
        kernel = SPARSE_UPDATE_MASKED
        inputs.append(mask)
    rows, y = kernel(
        inputs=inputs,
        template=[("T", value.dtype), ("per_thread", numbers_of_a_thread(width))],
        grid=(threads, batch, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(batch, num_active, width), value.shape],
        output_dtypes=[mx.float32, value.dtype],
    )
    return rows, y


def sparse_update_cost(
    batch: int, num_active: int, width: int, item_size: int = FLOAT_BYTES
) -> Cost:
    """The cost of `sparse_update`; ``item_size`` is the bytes of a number of value and y."""
    rows = 2 * num_active * width * FLOAT_BYTES
    scalars = 3 * num_active * FLOAT_BYTES
    simdgroups = threads_of_a_row(width) // LANES
    least = rows + 2 * width * item_size + scalars
    return Cost(
        batch * (least + (simdgroups - 1) * scalars),
        batch * least,
        batch * num_active * width * 7,
        threadgroup_bytes=_ROWS_TOGETHER * LANES * FLOAT_BYTES,
    )
