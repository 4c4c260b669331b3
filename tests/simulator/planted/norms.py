"""Rows that are divided by something of themselves: softmax and norms."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

F32, BF16 = mx.float32, mx.bfloat16


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _layer_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight


def _rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight


CASES = [
    Case(
        "softmax_rows",
        "a threadgroup a row; the array of maxima serves the sums as well",
        """
        threadgroup float shared[4];
        uint i = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
        uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
        float v = x[row * 128 + i];
        float best = simd_max(v);
        if (lane == 0) shared[simdgroup] = best;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        best = metal::max(metal::max(shared[0], shared[1]), metal::max(shared[2], shared[3]));
        float e = metal::precise::exp(v - best);
        float sum = simd_sum(e);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (lane == 0) shared[simdgroup] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[row * 128 + i] = e / (shared[0] + shared[1] + shared[2] + shared[3]);
        """,
        {"x": normal(3, 128)},
        {"y": ((3, 128), F32)},
        (384, 1, 1),
        (128, 1, 1),
        _softmax,
        mistakes=(
            mistake(
                "no barrier before threadgroup memory is used again",
                "race-write-after-read race-read-after-write",
                {
                    "float sum = simd_sum(e); threadgroup_barrier(mem_flags::mem_threadgroup); "
                    "if (lane == 0) shared[simdgroup] = sum;": """
        float sum = simd_sum(e);
        if (lane == 0) shared[simdgroup] = sum;  // <- here"""
                },
            ),
        ),
    ),
    Case(
        "layer_norm",
        "more threads than columns: those that are too many reach every barrier",
        """
        threadgroup float sums[4], squares[4];
        uint i = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
        uint n = x_shape[1];
        bool is_inside = i < n;
        float v = is_inside ? x[row * n + i] : 0.0f;
        float sum = simd_sum(v), square = simd_sum(v * v);
        if (thread_index_in_simdgroup == 0) {
            sums[simdgroup_index_in_threadgroup] = sum;
            squares[simdgroup_index_in_threadgroup] = square;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float mean = (sums[0] + sums[1] + sums[2] + sums[3]) / n;
        float variance = (squares[0] + squares[1] + squares[2] + squares[3]) / n - mean * mean;
        if (is_inside) {
            y[row * n + i] = (v - mean) * metal::precise::rsqrt(variance + 1e-5f) * weight[i];
        }
        """,
        {"x": normal(3, 100), "weight": normal(100, seed=1)},
        {"y": ((3, 100), F32)},
        (384, 1, 1),
        (128, 1, 1),
        _layer_norm,
        mistakes=(
            mistake(
                "threads that return before a barrier",
                "barrier-after-exit",
                {
                    "bool is_inside = i < n;": """
        bool is_inside = i < n;
        if (!is_inside) return;""",
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": (
                        "threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "rms_norm_bfloat",
        "bfloat in and out by a template argument, float between",
        """
        uint row = thread_position_in_grid.y, lane = thread_index_in_simdgroup;
        const device T* in = x + row * N;
        float square = 0;
        for (uint i = lane; i < N; i += 32) square += float(in[i]) * float(in[i]);
        float scale = metal::precise::rsqrt(simd_sum(square) / N + 1e-6f);
        for (uint i = lane; i < N; i += 32) {
            y[row * N + i] = T(float(in[i]) * scale * float(weight[i]));
        }
        """,
        {"x": normal(4, 80, dtype=BF16), "weight": normal(80, seed=1, dtype=BF16)},
        {"y": ((4, 80), BF16)},
        (32, 4, 1),
        (32, 2, 1),
        _rms_norm,
        template=(("T", BF16), ("N", 80)),
        mistakes=(
            mistake(
                "a template argument for rows of another length",
                "out-of-bounds",
                {
                    "y[row * N + i] = T(float(in[i]) * scale * float(weight[i]));": (
                        "y[row * N + i] = T(float(in[i]) * scale * float(weight[i]));  // <- here"
                    )
                },
                template=(("T", BF16), ("N", 96)),
            ),
        ),
    ),
]
