"""Vectors: whole ones in memory, tails, alignment, and their components."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, integers, mistake, normal

U8, U32, F16, F32 = mx.uint8, mx.uint32, mx.float16, mx.float32


def _words(data: np.ndarray) -> np.ndarray:
    return np.array([int.from_bytes(data[6 * i + 3 :][:4].tobytes(), "little") for i in range(32)])


CASES = [
    Case(
        "vectors_and_tail",
        "four numbers a thread, and a last thread that has fewer",
        """
        uint start = 4 * thread_position_in_grid.x, n = x_shape[0];
        if (start + 4 <= n) {
            float4 v = *(const device float4*)(x + start);
            *(device float4*)(y + start) = v * v;
        } else {
            for (uint i = start; i < n; ++i) y[i] = x[i] * x[i];
        }
        """,
        {"x": normal(130)},
        {"y": ((130,), F32)},
        (33, 1, 1),
        (32, 1, 1),
        lambda x: x * x,
        mistakes=(
            mistake(
                "the tail read as a whole vector",
                "out-of-bounds",
                {
                    "start + 4 <= n": "start < n",
                    "float4 v = *(const device float4*)(x + start);": (
                        "float4 v = *(const device float4*)(x + start);  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "window_of_vectors",
        "vectors from a place that is a multiple of four",
        """
        uint i = thread_position_in_grid.x;
        float4 v = *(const device float4*)(x + 4 * i + 4);
        y[i] = v.x + v.y + v.z + v.w;
        """,
        {"x": normal(140)},
        {"y": ((32,), F32)},
        (32, 1, 1),
        (32, 1, 1),
        lambda x: x[4:132].reshape(32, 4).sum(1),
        mistakes=(
            mistake(
                "a float4 loaded at an odd float",
                "misaligned",
                {"(x + 4 * i + 4);": "(x + 4 * i + 5);  // <- here"},
            ),
        ),
    ),
    Case(
        "half4_gelu",
        "half4 by a template argument, computed in float",
        """
        uint i = thread_position_in_grid.x;
        using V = metal::vec<T, 4>;
        float4 v = float4(((const device V*)x)[i]);
        float4 inner = 0.79788456f * (v + 0.044715f * v * v * v);
        ((device V*)y)[i] = V(0.5f * v * (1.0f + metal::precise::tanh(inner)));
        """,
        {"x": normal(256, dtype=F16)},
        {"y": ((256,), F16)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: 0.5 * x * (1 + np.tanh(0.79788456 * (x + 0.044715 * x.astype(np.float32) ** 3))),
        template=(("T", F16),),
        mistakes=(
            mistake(
                "half4 loaded at an odd half",
                "misaligned",
                {
                    "float4 v = float4(((const device V*)x)[i]);": (
                        "float4 v = float4(*(const device V*)(x + 3 * i));  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "words_of_bytes",
        "words at any byte, put together byte by byte",
        """
        uint i = thread_position_in_grid.x;
        const device uchar* p = (const device uchar*)data + 6 * i + 3;
        y[i] = p[0] | p[1] << 8 | p[2] << 16 | uint(p[3]) << 24;
        """,
        {"data": integers(0, 256, 200, dtype=U8)},
        {"y": ((32,), U32)},
        (32, 1, 1),
        (32, 1, 1),
        _words,
        mistakes=(
            mistake(
                "bytes read as a word where none begins",
                "misaligned",
                {
                    "y[i] = p[0] | p[1] << 8 | p[2] << 16 | uint(p[3]) << 24;": (
                        "y[i] = *(const device uint*)p;  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "vector_by_scalars",
        "four threads store the scalars of one vector through a pointer to scalars",
        """
        threadgroup float4 sums[8];
        uint i = thread_position_in_threadgroup.x, g = 32 * threadgroup_position_in_grid.x;
        threadgroup float* scalars = (threadgroup float*)&sums[i / 4];
        scalars[i % 4] = x[g + i] * 2;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float4 v = sums[i / 4];
        y[g + i] = v.x + v.y + v.z + v.w;
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.repeat(2 * x.reshape(16, 4).sum(1), 4),
        mistakes=(
            mistake(
                "two threads that store one component",
                "race-write-after-write uninitialised-read",
                {"scalars[i % 4] = x[g + i] * 2;": "scalars[i % 2] = x[g + i] * 2;  // <- here"},
            ),
            mistake(
                "no barrier between scalars and their vector",
                "race-read-after-write race-write-after-read",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": "",
                    "float4 v = sums[i / 4];": "float4 v = sums[i / 4];  // <- here",
                },
            ),
        ),
    ),
    Case(
        "vector_by_components",
        "four threads store a component each of one vector, which all read after a barrier",
        """
        threadgroup float4 sums[8];
        uint i = thread_position_in_threadgroup.x, g = 32 * threadgroup_position_in_grid.x;
        sums[i / 4][i % 4] = x[g + i] * 2;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float4 v = sums[i / 4];
        y[g + i] = v.x + v.y + v.z + v.w;
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.repeat(2 * x.reshape(16, 4).sum(1), 4),
    ),
    Case(
        "float3_by_components",
        "a float3 that is filled component by component",
        """
        uint i = thread_position_in_grid.x;
        float3 v;
        v.x = x[3 * i];
        v.y = x[3 * i + 1];
        v.z = x[3 * i + 2];
        y[i] = metal::dot(v, v);
        """,
        {"x": normal(64, 3)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: (x * x).sum(1),
        mistakes=(
            mistake(
                "a component that is never set",
                "uninitialised-local",
                {
                    "v.z = x[3 * i + 2];": "",
                    "y[i] = metal::dot(v, v);": "y[i] = metal::dot(v, v);  // <- here",
                },
            ),
        ),
    ),
]
