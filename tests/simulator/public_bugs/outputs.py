"""Outputs of which a part is never written: grids that count threadgroups, caches as outputs."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from planted.cases import Case, mistake, normal

from .bug import Bug

F32, I32 = mx.float32, mx.int32


def _nearest(q: np.ndarray, x: np.ndarray) -> np.ndarray:
    return ((q[:, None] - x) ** 2).sum(2).argmin(1)


def _merged(a: np.ndarray, b: np.ndarray, lse_a: np.ndarray, lse_b: np.ndarray) -> np.ndarray:
    weight = _sigmoid(lse_a - lse_b)[:, None]
    return a * weight + b * (1 - weight)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _least(q: np.ndarray, x: np.ndarray) -> np.ndarray:
    return ((q[:, None] - x) ** 2).sum(2).reshape(len(q), 3, 8).min(2)


def _cached(cache: np.ndarray, row: np.ndarray, position: np.ndarray) -> np.ndarray:
    result = cache.copy()
    result[int(position)] = row
    return result


THREADS_FOR_QUERIES = Bug(
    "SolaceHarmony/MetalFaiss",
    ("python/metalfaiss/faissmlx/kernels/ivf_kernels.py:352",),
    "MLX's grid counts threads: b threads make one threadgroup, which answers the first query. "
    "The results of all others are what the memory held before.",
    Case(
        "nearest_of_batch",
        "a threadgroup a query: its threads search, one of them compares what they found",
        """
        threadgroup float best[64];
        threadgroup int best_at[64];
        uint t = thread_position_in_threadgroup.x, query = threadgroup_position_in_grid.x;
        uint threads = threads_per_threadgroup.x;
        best[t] = INFINITY;
        best_at[t] = 0;
        for (uint i = t; i < uint(x_shape[0]); i += threads) {
            float sum = 0;
            for (uint j = 0; j < 8; ++j) {
                float difference = x[i * 8 + j] - q[query * 8 + j];
                sum += difference * difference;
            }
            if (sum < best[t]) {
                best[t] = sum;
                best_at[t] = i;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t == 0) {
            uint least = 0;
            for (uint j = 1; j < threads; ++j) {
                if (best[j] < best[least]) least = j;
            }
            y[query] = best_at[least];
        }
        """,
        {"q": normal(5, 8), "x": normal(100, 8, seed=1)},
        {"y": ((5,), I32)},
        (5 * 64, 1, 1),
        (64, 1, 1),
        _nearest,
        mistakes=(
            mistake("a grid of as many threads as queries", "unwritten-output", grid=(5, 1, 1)),
        ),
    ),
)

THREADS_FOR_HEADS = Bug(
    "lisihao/FlashMLX",
    ("src/flashmlx/mac/merge_fused_v2.py:108",),
    "The grid has as many threads as there should be threadgroups: one threadgroup of a few "
    "threads merges a few numbers of the first head, the rest of the output is old memory.",
    Case(
        "merge_of_states",
        "two partial attentions with the logarithms of their sums, a threadgroup a head",
        """
        threadgroup float weight;
        uint head = threadgroup_position_in_grid.x, t = thread_position_in_threadgroup.x;
        if (t == 0) weight = 1 / (1 + metal::precise::exp(lse_b[head] - lse_a[head]));
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint j = t; j < 64; j += 32) {
            y[head * 64 + j] = a[head * 64 + j] * weight + b[head * 64 + j] * (1 - weight);
        }
        """,
        {
            "a": normal(6, 64),
            "b": normal(6, 64, seed=1),
            "lse_a": normal(6, seed=2),
            "lse_b": normal(6, seed=3),
        },
        {"y": ((6, 64), F32)},
        (6 * 32, 1, 1),
        (32, 1, 1),
        _merged,
        mistakes=(
            mistake("a grid of as many threads as heads", "unwritten-output", grid=(6, 1, 1)),
        ),
    ),
)

THREADS_FOR_TILES = Bug(
    "lisihao/FlashMLX",
    ("src/flashmlx/mac/match_optimized.py:299",),
    "The same, and the SIMD-groups that are missing leave their places in threadgroup memory "
    "unwritten, of which the least is taken.",
    Case(
        "least_distance_of_tiles",
        "a threadgroup a tile of rows, which compares them with a query in threadgroup memory",
        """
        threadgroup float own[32], least[2];
        uint t = thread_position_in_threadgroup.x, lane = thread_index_in_simdgroup;
        uint tile = threadgroup_position_in_grid.x, query = threadgroup_position_in_grid.y;
        for (uint j = t; j < 32; j += 64) own[j] = q[query * 32 + j];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float best = INFINITY;
        for (uint row = simdgroup_index_in_threadgroup; row < 8; row += 2) {
            float sum = 0;
            for (uint j = lane; j < 32; j += 32) {
                float difference = own[j] - x[(tile * 8 + row) * 32 + j];
                sum += difference * difference;
            }
            best = metal::min(best, simd_sum(sum));
        }
        if (lane == 0) least[simdgroup_index_in_threadgroup] = best;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t == 0) y[query * 3 + tile] = metal::min(least[0], least[1]);
        """,
        {"q": normal(2, 32), "x": normal(24, 32, seed=1)},
        {"y": ((2, 3), F32)},
        (3 * 64, 2, 1),
        (64, 1, 1),
        _least,
        mistakes=(
            mistake(
                "a grid of as many threads as tiles",
                "unwritten-output uninitialised-read",
                grid=(3, 2, 1),
            ),
        ),
    ),
)

CACHE_AS_AN_OUTPUT = Bug(
    "Hmbown/ZMLX",
    ("src/zmlx/kernels/rope.py:480",),
    "An output of MLX is new memory, not the cache that came in: the kernel stores the row of "
    "one position, and all positions before it are lost.",
    Case(
        "cache_with_a_row",
        "a cache in which one row is replaced, as a new array",
        """
        uint j = thread_position_in_grid.x, at = thread_position_in_grid.y;
        bool is_new = int(at) == position;
        new_cache[at * 16 + j] = is_new ? row[j] : cache[at * 16 + j];
        """,
        {"cache": normal(9, 16), "row": normal(16, seed=1), "position": mx.array(4)},
        {"new_cache": ((9, 16), F32)},
        (16, 9, 1),
        (16, 3, 1),
        _cached,
        mistakes=(
            mistake(
                "a cache of which one row is stored",
                "unwritten-output",
                {
                    "new_cache[at * 16 + j] = is_new ? row[j] : cache[at * 16 + j];": (
                        "if (is_new) new_cache[at * 16 + j] = row[j];"
                    )
                },
            ),
        ),
    ),
)
