"""The kernel of ``sparse_update.metal``: one token on the k rows that it chooses.

Its reference op is `fm_mlx.ops.step.sparse_update`.
"""

from __future__ import annotations

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.route import affinity_flops, rows_of_a_lane
from fm_mlx.metal_kernels.simdgroup import LANES, numbers_of_a_thread, threads_of_a_row

# Rows whose norms are summed together, as ROWS in the Metal file.
_ROWS_TOGETHER = 8

_INPUTS = ["scores", "value", "state", "last_indices", "last_rows"]
_SCALARS = ["num_active", "temperature", "eps"]


# The rows among which a token chooses: all of them, or those that the halves of product keys leave.
_ALL_ROWS = """
    int count = state_shape[1];
    auto candidates = OwnLogits<decltype(of_token)>{of_token};
"""
_PRODUCT_KEYS = """
    threadgroup int best[2 * kept];
    int half_length = (scores_shape[1] - 2) / 2;
    int count = kept * kept;
    if (simdgroup_index_in_threadgroup == 0) {
      best_of_halves<half_per_lane>(of_token, best, half_length, kept, thread_index_in_simdgroup);
    }
    auto candidates = ProductKeys<decltype(of_token)>{of_token, best, half_length, kept};
"""


def _kernel(masked: bool, product_keys: bool) -> MetalKernel:
    return MetalKernel(
        "sparse_update" + "_product" * product_keys + "_masked" * masked,
        [*_INPUTS, *_SCALARS, *(["mask"] if masked else [])],
        ["indices", "rows", "y", "theta", "phi"],
        f"""
    threadgroup float partial[ROWS * LANES];
    uint batch = thread_position_in_grid.y;
    auto of_token = scores + size_t(batch) * scores_shape[1];
    {(_PRODUCT_KEYS if product_keys else _ALL_ROWS).strip()}
    sparse_update<T, per_thread, per_lane>(
        candidates, of_token + (scores_shape[1] - 2), count, value, state, last_indices,
        last_rows, {"mask[batch]" if masked else "true"},
        indices, rows, y, theta, phi, partial, last_indices_shape[1], num_active, state_shape[1],
        state_shape[2], temperature, eps, batch, thread_position_in_threadgroup.x,
        threads_per_threadgroup.x, simdgroup_index_in_threadgroup, simdgroups_per_threadgroup,
        thread_index_in_simdgroup);
    """,
        file="sparse_update",
    )


SPARSE_UPDATE_KERNELS = {
    (masked, product_keys): _kernel(masked, product_keys)
    for product_keys in (False, True)
    for masked in (False, True)
}


def sparse_update(
    scores: mx.array,
    value: mx.array,
    state: mx.array,
    last_indices: mx.array,
    last_rows: mx.array,
    mask: mx.array | None,
    num_active: int,
    temperature: float,
    product_keys: bool,
    eps: float,
) -> tuple[mx.array, mx.array, mx.array]:
    """Write one token to the k rows that its scores choose, and read them back.

    Args:
        scores: (B, n + 2), any float dtype: n logits, then both rates before the sigmoid.
        value: (B, d), any float dtype.
        state: (B, m, d) float32; neither copied nor changed.
        last_indices: (B, n) int32, the last k of them the rows that the last token wrote, which
            the state has.
        last_rows: (B, n, d) float32, these rows.
        mask: (B,) bool; where False the rows come back as they are and y is 0.
        num_active: k.
        temperature: tau.
        product_keys: whether there are n = 2 sqrt(m) logits, of two halves, instead of m.
        eps: added to the mean square of a row.

    Returns:
        indices (B, 2k) int32 and rows (B, 2k, d) float32, the last token's, then this one's,
        rising; and y (B, d) in the dtype of ``value``. A row that both wrote is there twice, as
        this token leaves it.
    """
    batch, width = value.shape
    logits, threads = scores.shape[1] - 2, threads_of_a_row(width)
    inputs = [scores, value, state, last_indices, last_rows]
    inputs += [num_active, float(temperature), float(eps)]
    if mask is not None:
        inputs.append(mask)
    template = [("T", value.dtype), ("per_thread", numbers_of_a_thread(width))]
    if product_keys:
        kept = min(num_active, logits // 2)
        template += [
            ("per_lane", rows_of_a_lane(kept * kept)),
            ("half_per_lane", rows_of_a_lane(logits // 2)),
            ("kept", kept),
        ]
    else:
        template.append(("per_lane", rows_of_a_lane(logits)))
    indices, rows, y, _, _ = SPARSE_UPDATE_KERNELS[mask is not None, product_keys](
        inputs=inputs,
        template=template,
        grid=(threads, batch, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[
            (batch, 2 * num_active),
            (batch, 2 * num_active, width),
            value.shape,
            *[(batch, num_active)] * 2,
        ],
        output_dtypes=[mx.int32, mx.float32, value.dtype, mx.float32, mx.float32],
    )
    return indices, rows, y


def sparse_update_cost(
    batch: int, logits: int, num_active: int, width: int, item_size: int = FLOAT_BYTES
) -> Cost:
    """The cost of `sparse_update` where no row is written twice.

    Args:
        batch: B.
        logits: n, which are read.
        num_active: k.
        width: d.
        item_size: bytes of a number of value and y.
    """
    # k rows of the state and k of the last token are read, 2k are written
    moved = 4 * num_active * width * FLOAT_BYTES
    scores = (logits + 2) * FLOAT_BYTES
    # indices, theta and phi are written, and read by every SIMD-group, as the last indices are
    scalars = 4 * num_active * FLOAT_BYTES
    simdgroups = threads_of_a_row(width) // LANES
    least = moved + 2 * width * item_size + scores + 2 * scalars
    return Cost(
        batch * (least + (simdgroups - 1) * scalars),
        batch * least,
        batch * (num_active * width * 7 + affinity_flops(logits)),
        threadgroup_bytes=_ROWS_TOGETHER * LANES * FLOAT_BYTES,
    )
