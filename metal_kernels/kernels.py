"""The kernels as functions of MLX arrays; each names its twin in `fm_mlx.ops`.

Nothing here is differentiable by itself: the ops put these functions and their vjps
together. B, T, m, k and d are free; the state, the norms, theta and phi are float32.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.launch import MetalKernel

LANES = 32

# Longest chunk of chunk_scan: a lane for each token.
MAX_CHUNK = 32

# SIMD-groups of a threadgroup: each takes 32 rows at a time and 4 KB (8 KB in the vjp) of
# the 32 KB of threadgroup memory, beside the 4 KB (8 KB) that they share.
SCAN_GROUPS = 4
SCAN_VJP_GROUPS = 2

# Most threads that share the columns of a row.
_MOST_COLUMN_THREADS = 512

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
    """The k active rows of each token; twin: `fm_mlx.ops.routing.route`.

    Args:
        routing: (tokens, m + 2), any float dtype.
        num_active: k.
        temperature: tau.

    Returns:
        indices (tokens, k) int32, theta and phi (tokens, k) float32.
    """
    tokens = routing.shape[0]
    return tuple(
        ROUTE_SPARSE(
            output_shapes=[(tokens, num_active)] * 3,
            output_dtypes=[mx.int32, mx.float32, mx.float32],
            **_route_launch(routing, num_active, temperature),
        )
    )


def route_dense(
    routing: mx.array, num_active: int, temperature: float
) -> tuple[mx.array, mx.array]:
    """theta and phi of all rows, (tokens, m) float32; twin: `fm_mlx.ops.routing.route_dense`.

    Args:
        routing, num_active, temperature: as in `route`.
    """
    tokens, columns = routing.shape
    return tuple(
        ROUTE_DENSE(
            output_shapes=[(tokens, columns - 2)] * 2,
            output_dtypes=[mx.float32, mx.float32],
            **_route_launch(routing, num_active, temperature),
        )
    )


def _route_launch(routing: mx.array, num_active: int, temperature: float) -> dict:
    tokens, columns = routing.shape
    num_rows = columns - 2
    return {
        "inputs": [routing, num_rows, num_active, float(temperature)],
        "template": [("per_lane", -(-num_rows // LANES))],
        "grid": (LANES, tokens, 1),
        "threadgroup": (LANES, min(tokens, 4), 1),
    }


def _sparse_update_kernel(masked: bool) -> MetalKernel:
    return MetalKernel(
        "sparse_update_masked" if masked else "sparse_update",
        ["indices", "theta", "phi", "value", "state", "eps", *(["mask"] if masked else [])],
        ["rows", "y"],
        f"""
    threadgroup float partial[ROWS * LANES];
    uint batch = thread_position_in_grid.y;
    sparse_update<T, columns>(
        indices, theta, phi, value, state, {"mask[batch]" if masked else "true"}, rows, y,
        partial, indices_shape[1], state_shape[1], state_shape[2], eps, batch,
        thread_position_in_threadgroup.x, threads_per_threadgroup.x,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
        file="sparse_update",
    )


SPARSE_UPDATE = _sparse_update_kernel(masked=False)
SPARSE_UPDATE_MASKED = _sparse_update_kernel(masked=True)


def column_threads(width: int) -> int:
    """Threads of a threadgroup that owns the columns of rows of d numbers."""
    return min(_MOST_COLUMN_THREADS, -(-width // LANES) * LANES)


def sparse_update(
    indices: mx.array,
    theta: mx.array,
    phi: mx.array,
    value: mx.array,
    state: mx.array,
    mask: mx.array | None,
    eps: float,
) -> tuple[mx.array, mx.array]:
    """One token on k rows of the state; twin: `fm_mlx.ops.step.sparse_update`.

    Args:
        indices: (B, k) int32, without repeats in a row.
        theta, phi: (B, k) float32.
        value: (B, d), any float dtype.
        state: (B, m, d) float32; neither copied nor changed.
        mask: (B,) bool; where False the rows come back as they are and y is 0.
        eps: added to the mean square of a row.

    Returns:
        The k rows as written (B, k, d) float32, and y (B, d) in the dtype of ``value``.
    """
    batch, num_active = indices.shape
    width = value.shape[-1]
    threads = column_threads(width)
    inputs = [indices, theta, phi, value, state, float(eps)]
    if mask is None:
        kernel = SPARSE_UPDATE
    else:
        kernel = SPARSE_UPDATE_MASKED
        inputs.append(mask)
    return tuple(
        kernel(
            inputs=inputs,
            template=[("T", value.dtype), ("columns", -(-width // threads))],
            grid=(threads, batch, 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[(batch, num_active, width), value.shape],
            output_dtypes=[mx.float32, value.dtype],
        )
    )


ADD_RMS_NORM = MetalKernel(
    "add_rms_norm",
    ["x", "update", "weight", "eps"],
    ["total", "normed"],
    """
    threadgroup float partial[LANES];
    add_rms_norm<T, columns>(
        x, update, weight, total, normed, partial, x_shape[1], eps, thread_position_in_grid.y,
        thread_position_in_threadgroup.x, threads_per_threadgroup.x,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
)


def add_rms_norm(
    x: mx.array, update: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """x + update and its RMS norm; twin: `fm_mlx.ops.norm.add_rms_norm`.

    Args:
        x, update: (tokens, hidden), of one float dtype.
        weight: (hidden,) float32.
        eps: added to the mean square.

    Returns:
        The sum and its norm, (tokens, hidden) in the dtype of ``x``.
    """
    tokens, hidden = x.shape
    threads = column_threads(hidden)
    return tuple(
        ADD_RMS_NORM(
            inputs=[x, update, weight, float(eps)],
            template=[("T", x.dtype), ("columns", -(-hidden // threads))],
            grid=(threads, tokens, 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[x.shape, x.shape],
            output_dtypes=[x.dtype, x.dtype],
        )
    )


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
    """H_{n+1} = decay_n * H_n + increment_n; twin: `fm_mlx.ops.state_pass.state_pass`.

    Args:
        decay: (B, N, m) float32.
        increment: (B, N, m, d) float32.
        state: H_0, (B, m, d) float32.
        reverse: from the last chunk to the first, L_n = decay_n * L_{n+1} + increment_n
            with L_N = ``state``.

    Returns:
        H_0 .. H_{N-1} and H_N; in reverse L_1 .. L_N and L_0. (B, N, m, d) and (B, m, d).
    """
    batch, _, rows, width = increment.shape
    size = rows * width
    return tuple(
        STATE_PASS(
            inputs=[decay, increment, state],
            template=[("reverse", reverse)],
            grid=(size, batch, 1),
            threadgroup=(min(size, 256), 1, 1),
            output_shapes=[increment.shape, state.shape],
            output_dtypes=[mx.float32, mx.float32],
        )
    )


CHUNK_SCAN = MetalKernel(
    "chunk_scan",
    ["theta", "phi", "gram", "projection", "norm0", "width", "eps"],
    ["read", "inside"],
    f"""
    threadgroup float causal_gram[LANES * LANES];
    threadgroup float partial[{SCAN_GROUPS} * LANES * LANES];
    chunk_scan(
        theta, phi, gram, projection, norm0, read, inside, causal_gram, partial,
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
    """(qA, M) of every chunk; twin: `fm_mlx.ops.chunk_map.chunk_map`, with its shapes.

    Args:
        theta, phi, projection: (B, N, C, m) float32, C <= MAX_CHUNK.
        gram: (B, N, C, C) float32; only the lower triangle is read.
        norm0: (B, N, m) float32.
        width: d.
        eps: added to the mean square of a row.

    Returns:
        qA (B, N, C, m) and M (B, N, C, C), float32.
    """
    return tuple(
        CHUNK_SCAN(
            inputs=[theta, phi, gram, projection, norm0, float(width), float(eps)],
            output_shapes=[theta.shape, gram.shape],
            output_dtypes=[mx.float32, mx.float32],
            **_chunk_grid(theta, SCAN_GROUPS),
        )
    )


CHUNK_SCAN_VJP = MetalKernel(
    "chunk_scan_vjp",
    ["theta", "phi", "gram", "projection", "norm0", "d_read", "d_inside", "width", "eps"],
    ["d_theta", "d_phi", "d_gram", "d_projection", "d_norm0"],
    f"""
    threadgroup float causal_gram[LANES * LANES];
    threadgroup float causal_d_inside[LANES * LANES];
    threadgroup float partial[{SCAN_VJP_GROUPS} * LANES * LANES];
    threadgroup float norms[{SCAN_VJP_GROUPS} * LANES * LANES];
    chunk_scan_vjp(
        theta, phi, gram, projection, norm0, d_read, d_inside,
        d_theta, d_phi, d_gram, d_projection, d_norm0,
        causal_gram, causal_d_inside, partial, norms,
        theta_shape[2], theta_shape[3], width, eps, thread_position_in_grid.y,
        simdgroup_index_in_threadgroup, simdgroups_per_threadgroup, thread_index_in_simdgroup);
    """,
)


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
    """Gradients of theta, phi, gram, projection and norm0 from those of (qA, M).

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
            **_chunk_grid(theta, SCAN_VJP_GROUPS),
        )
    )


def _chunk_grid(theta: mx.array, most_groups: int) -> dict[str, tuple[int, int, int]]:
    """One threadgroup per chunk, one SIMD-group per 32 rows as far as there is room."""
    batch, chunks, _, rows = theta.shape
    threads = LANES * min(most_groups, -(-rows // LANES))
    return {"grid": (threads, batch * chunks, 1), "threadgroup": (threads, 1, 1)}


ALL = {
    kernel.name: kernel
    for kernel in (
        ROUTE_SPARSE,
        ROUTE_DENSE,
        SPARSE_UPDATE,
        SPARSE_UPDATE_MASKED,
        ADD_RMS_NORM,
        STATE_PASS,
        CHUNK_SCAN,
        CHUNK_SCAN_VJP,
    )
}
