"""The kernels of ``chunk_scan.metal`` and ``chunk_scan_vjp.metal``: the inside of a chunk.

Their reference op is `fm_mlx.ops.chunk_map.chunk_map`, which also defines the symbols.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.simdgroup import LANES

# The longest chunk: each lane of a SIMD-group holds one token's partial sums.
MAX_CHUNK = LANES

# SIMD-groups of a threadgroup. Each takes 32 rows at a time and 4 KB (8 KB in the vjp) of the
# 32 KB of threadgroup memory, beside the 4 KB (8 KB) that they share.
_GROUPS = 4
_VJP_GROUPS = 2

CHUNK_SCAN = MetalKernel(
    "chunk_scan",
    ["theta", "phi", "gram", "projection", "norm0", "width", "eps"],
    ["read", "inside"],
    f"""
    threadgroup float causal_gram[LANES * LANES];
    threadgroup float partial[{_GROUPS} * LANES * LANES];
    chunk_scan(
        theta, phi, gram, projection, norm0, read, inside, causal_gram, partial,
        theta_shape[2], theta_shape[3], width, eps, thread_position_in_grid.y,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
)

CHUNK_SCAN_VJP = MetalKernel(
    "chunk_scan_vjp",
    ["theta", "phi", "gram", "projection", "norm0", "d_read", "d_inside", "width", "eps"],
    ["d_theta", "d_phi", "d_gram", "d_projection", "d_norm0"],
    f"""
    threadgroup float causal_gram[LANES * LANES];
    threadgroup float causal_d_inside[LANES * LANES];
    threadgroup float partial[{_VJP_GROUPS} * LANES * LANES];
    threadgroup float norms[{_VJP_GROUPS} * LANES * LANES];
    chunk_scan_vjp(
        theta, phi, gram, projection, norm0, d_read, d_inside,
        d_theta, d_phi, d_gram, d_projection, d_norm0,
        causal_gram, causal_d_inside, partial, norms,
        theta_shape[2], theta_shape[3], width, eps, thread_position_in_grid.y,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
)


def chunk_scan(
    theta: mx.array,
    phi: mx.array,
    gram: mx.array,
    projection: mx.array,
    norm0: mx.array,
    width: int,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """Compute (qA, M) of every chunk.

    Args:
        theta, phi, projection: (B, N, C, m) float32, C <= MAX_CHUNK.
        gram: (B, N, C, C) float32; only the lower triangle is read.
        norm0: (B, N, m) float32.
        width: d.
        eps: added to the mean square of a row.

    Returns:
        qA (B, N, C, m) and M (B, N, C, C), float32.
    """
    read, inside = CHUNK_SCAN(
        inputs=[theta, phi, gram, projection, norm0, float(width), float(eps)],
        output_shapes=[theta.shape, gram.shape],
        output_dtypes=[mx.float32, mx.float32],
        **_grid(theta, _GROUPS),
    )
    return read, inside


def chunk_scan_vjp(
    theta: mx.array,
    phi: mx.array,
    gram: mx.array,
    projection: mx.array,
    norm0: mx.array,
    d_read: mx.array,
    d_inside: mx.array,
    width: int,
    eps: float,
) -> tuple[mx.array, ...]:
    """Compute the gradients of the inputs of `chunk_scan` from those of (qA, M).

    Args:
        theta, phi, gram, projection, norm0, width, eps: as given to `chunk_scan`.
        d_read: (B, N, C, m) float32, the cotangent of qA.
        d_inside: (B, N, C, C) float32, the cotangent of M.

    Returns:
        Five float32 arrays of the shapes of the first five arguments.
    """
    primals = [theta, phi, gram, projection, norm0]
    return tuple(
        CHUNK_SCAN_VJP(
            inputs=[*primals, d_read, d_inside, float(width), float(eps)],
            output_shapes=[x.shape for x in primals],
            output_dtypes=[mx.float32] * len(primals),
            **_grid(theta, _VJP_GROUPS),
        )
    )


def _grid(theta: mx.array, most_groups: int) -> dict[str, tuple[int, int, int]]:
    """One threadgroup per chunk, one SIMD-group per 32 rows as far as there is room."""
    batch, chunks, _, rows = theta.shape
    threads = LANES * min(most_groups, -(-rows // LANES))
    return {"grid": (threads, batch * chunks, 1), "threadgroup": (threads, 1, 1)}


def chunk_scan_cost(chunks: int, tokens: int, rows: int) -> Cost:
    """The cost of `chunk_scan` on ``chunks`` = B N chunks of C ``tokens``."""
    per_row = 4 * tokens * rows + rows
    square = tokens * tokens
    upper = tokens * (tokens - 1) // 2
    return Cost(
        FLOAT_BYTES * chunks * (per_row + 2 * square - upper),
        FLOAT_BYTES * chunks * (per_row + 2 * square),
        chunks * rows * tokens * (5 * tokens + 16),
        threadgroup_bytes=(1 + _GROUPS) * LANES * LANES * FLOAT_BYTES,
    )


def chunk_scan_vjp_cost(chunks: int, tokens: int, rows: int) -> Cost:
    """The cost of `chunk_scan_vjp`, which reads the projection twice."""
    per_row = 7 * tokens * rows + 2 * rows
    square = tokens * tokens
    upper = tokens * (tokens - 1) // 2
    return Cost(
        FLOAT_BYTES * chunks * (per_row + tokens * rows + 3 * square - 2 * upper),
        FLOAT_BYTES * chunks * (per_row + 3 * square),
        chunks * rows * tokens * (20 * tokens + 40),
        threadgroup_bytes=2 * (1 + _VJP_GROUPS) * LANES * LANES * FLOAT_BYTES,
    )
