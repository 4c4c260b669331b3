"""The largest, the k largest, all in order: sorts and searches."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

I32, U32, F32 = mx.int32, mx.uint32, mx.float32


_BITONIC = """
        threadgroup float v[64];
        uint i = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x * 64;
        v[i] = x[row + i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint size = 2; size <= 64; size *= 2) {
            for (uint step = size / 2; step > 0; step /= 2) {
                uint other = i ^ step;
                if (other > i) {
                    bool is_ascending = (i & size) == 0;
                    float a = v[i], b = v[other];
                    if ((a > b) == is_ascending) {
                        v[i] = b;
                        v[other] = a;
                    }
                }
                threadgroup_barrier(mem_flags::mem_threadgroup);
            }
        }
        y[row + i] = v[i];
        """


CASES = [
    Case(
        "arg_max",
        "values and indices go down the lanes together",
        """
        uint row = thread_position_in_grid.y, lane = thread_index_in_simdgroup;
        float best = x[row * 32 + lane];
        uint at = lane;
        for (ushort step = 16; step > 0; step /= 2) {
            float other = simd_shuffle_down(best, step);
            uint other_at = simd_shuffle_down(at, step);
            if (other > best) {
                best = other;
                at = other_at;
            }
        }
        if (lane == 0) y[row] = at;
        """,
        {"x": normal(6, 32)},
        {"y": ((6,), I32)},
        (32, 6, 1),
        (32, 2, 1),
        lambda x: x.argmax(1),
        mistakes=(
            mistake(
                "a shuffle from a lane beyond the last",
                "bad-shuffle",
                {
                    "float other = simd_shuffle_down(best, step);": (
                        "float other = simd_shuffle(best, ushort(lane + step));  // <- here"
                    )
                },
            ),
            mistake(
                "a shuffle from a lane that does not take part",
                "bad-shuffle",
                {
                    "float other = simd_shuffle_down(best, step);": """
            float other = best;
            if (lane < step) other = simd_shuffle(best, ushort(lane + step));  // <- here"""
                },
            ),
        ),
    ),
    Case(
        "bitonic_sort",
        "a sort of 64 numbers; the barrier stands outside the branch",
        _BITONIC,
        {"x": normal(128)},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (64, 1, 1),
        lambda x: np.sort(x.reshape(2, 64), 1).ravel(),
        mistakes=(
            mistake(
                "a barrier that half of the threads reach",
                "barrier-divergence barrier-after-exit",
                {
                    "v[other] = a; } } threadgroup_barrier(mem_flags::mem_threadgroup); }": """
                        v[other] = a;
                    }
                    threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here
                }
            }"""
                },
            ),
            mistake(
                "no barrier between the steps of a sort",
                "race-read-after-write race-write-after-read race-write-after-write",
                {
                    "v[other] = a; } } threadgroup_barrier(mem_flags::mem_threadgroup); }": """
                        v[other] = a;  // <- here
                    }
                }
            }"""
                },
            ),
        ),
    ),
    Case(
        "top_k",
        "the k largest of a row, one after another, by a SIMD-group",
        """
        uint row = thread_position_in_grid.y, lane = thread_index_in_simdgroup;
        float v = x[row * 32 + lane];
        for (uint j = 0; j < K; ++j) {
            float best = simd_max(v);
            uint at = simd_min(v == best ? lane : 32u);
            if (lane == at) v = -INFINITY;
            if (lane == 0) y[row * K + j] = at;
        }
        """,
        {"x": normal(6, 32)},
        {"y": ((6, 5), U32)},
        (32, 6, 1),
        (32, 3, 1),
        lambda x: np.argsort(-x, 1)[:, :5],
        template=(("K", 5),),
        mistakes=(
            mistake(
                "the last of k places is not stored",
                "unwritten-output",
                {"j < K; ++j": "j + 1 < K; ++j"},
            ),
            mistake(
                "places of rows that are one apart",
                "race-write-after-write race-same-value",
                {
                    "if (lane == 0) y[row * K + j] = at;": (
                        "if (lane == 0) y[row * (K - 1) + j] = at;  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "search_sorted",
        "a binary search that ends",
        """
        uint i = thread_position_in_grid.x;
        uint low = 0, high = edges_shape[0];
        while (low < high) {
            uint middle = (low + high) / 2;
            if (edges[middle] <= x[i]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        y[i] = low;
        """,
        {"edges": mx.array(np.linspace(-2, 2, 17, dtype=np.float32)), "x": normal(64)},
        {"y": ((64,), U32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda edges, x: np.searchsorted(edges, x, "right"),
        mistakes=(
            mistake(
                "a binary search that never ends",
                "timeout",
                {"low = middle + 1;": "low = middle;"},
                timeout=0.5,
            ),
        ),
    ),
    Case(
        "compact",
        "the elements that are kept, in their order",
        """
        uint i = thread_position_in_grid.x;
        if (keep[i]) {
            uint place = 0;
            for (uint j = 0; j < i; ++j) place += keep[j];
            y[place] = x[i];
        }
        """,
        {"x": normal(64), "keep": mx.arange(64) % 2 == 0},
        {"y": ((32,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x, keep: x[keep],
        mistakes=(
            mistake(
                "places that are counted from one",
                "out-of-bounds",
                {
                    "uint place = 0;": "uint place = 1;",
                    "y[place] = x[i];": "y[place] = x[i];  // <- here",
                },
            ),
        ),
    ),
]
