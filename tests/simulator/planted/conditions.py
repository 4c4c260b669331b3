"""What is done by some threads only, or under a condition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

F32 = mx.float32


CASES = [
    Case(
        "scalar_of_one_thread",
        "one thread keeps a scalar in threadgroup memory, which all read after a barrier",
        """
        threadgroup float scale;
        uint i = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
        if (i == 0) scale = metal::rsqrt(x[row * 64] * x[row * 64] + 1);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[row * 64 + i] = x[row * 64 + i] * scale;
        """,
        {"x": normal(4, 64)},
        {"y": ((4, 64), F32)},
        (256, 1, 1),
        (64, 1, 1),
        lambda x: x / np.sqrt(x[:, :1] ** 2 + 1),
        mistakes=(
            mistake(
                "a barrier in a branch that one thread takes",
                "barrier-divergence barrier-after-exit",
                {
                    "if (i == 0) scale = metal::rsqrt(x[row * 64] * x[row * 64] + 1); "
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": """
        if (i == 0) {
            scale = metal::rsqrt(x[row * 64] * x[row * 64] + 1);
            threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here
        }"""
                },
            ),
            mistake(
                "a scalar that no thread keeps",
                "uninitialised-read",
                {
                    "if (i == 0) scale": "if (i == 64) scale",
                    "y[row * 64 + i] = x[row * 64 + i] * scale;": (
                        "y[row * 64 + i] = x[row * 64 + i] * scale;  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "guarded_by_a_constant",
        "one thread stores an element, and the same one loads it: no barrier is needed",
        """
        threadgroup float kept[64];
        uint i = thread_position_in_threadgroup.x;
        float result = x[thread_position_in_grid.x];
        if (i == 3) kept[5] = result * 2;
        result += 1;
        if (i == 3) result = kept[5];
        y[thread_position_in_grid.x] = result;
        """,
        {"x": normal(128)},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (64, 1, 1),
        lambda x: np.where(np.arange(128) % 64 == 3, 2 * x, x + 1),
        mistakes=(
            mistake(
                "another thread loads what one stored",
                "race-read-after-write race-write-after-read uninitialised-read",
                {
                    "if (i == 3) result = kept[5];": "if (i == 4) result = kept[5];  // <- here",
                },
            ),
        ),
    ),
    Case(
        "loaded_where_stored",
        "threadgroup memory that is loaded under the condition under which it was stored",
        """
        threadgroup float tile[64];
        uint i = thread_position_in_threadgroup.x, row = 64 * threadgroup_position_in_grid.x;
        bool has_bias = flags[threadgroup_position_in_grid.x];
        if (has_bias) tile[i] = x[row + i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[row + i] = has_bias ? tile[63 - i] : 0.0f;
        """,
        {"x": normal(3, 64), "flags": mx.array([True, False, True])},
        {"y": ((3, 64), F32)},
        (192, 1, 1),
        (64, 1, 1),
        lambda x, flags: np.where(flags[:, None], x[:, ::-1], 0),
        mistakes=(
            mistake(
                "threadgroup memory that another threadgroup stored",
                "uninitialised-read",
                {
                    "y[row + i] = has_bias ? tile[63 - i] : 0.0f;": (
                        "y[row + i] = tile[63 - i] * has_bias;  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "value_of_a_condition",
        "a local that is set and used under one condition",
        """
        uint i = thread_position_in_grid.x;
        float extra;
        bool is_even = i % 2 == 0;
        if (is_even) extra = x[i] * 3;
        float result = x[i];
        if (is_even) result += extra;
        y[i] = result;
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.where(np.arange(64) % 2 == 0, 4 * x, x),
        mistakes=(
            mistake(
                "a local that is used where it was not set",
                "uninitialised-local",
                {"if (is_even) result += extra;": ("if (i % 4 < 2) result += extra;  // <- here")},
            ),
        ),
    ),
    Case(
        "uniform_flag",
        "a barrier in a branch that all threads of a threadgroup take alike",
        """
        threadgroup float tile[32];
        uint i = thread_position_in_threadgroup.x, row = 32 * threadgroup_position_in_grid.x;
        float v = x[row + i];
        if (flags[threadgroup_position_in_grid.x]) {
            tile[i] = v;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            v = tile[(i + 1) % 32];
        }
        y[row + i] = v;
        """,
        {"x": normal(4, 32), "flags": mx.array([True, False, False, True])},
        {"y": ((4, 32), F32)},
        (128, 1, 1),
        (32, 1, 1),
        lambda x, flags: np.where(flags[:, None], np.roll(x, -1, 1), x),
        mistakes=(
            mistake(
                "a barrier in each way of a branch",
                "barrier-divergence",
                {
                    "if (flags[threadgroup_position_in_grid.x]) {": "if (v > 0) {",
                    "threadgroup_barrier(mem_flags::mem_threadgroup); "
                    "v = tile[(i + 1) % 32]; }": """
            threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here
            v = tile[(i + 1) % 32];
        } else {
            threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here
        }""",
                },
            ),
            mistake(
                "a barrier in a branch that some threads take",
                "barrier-divergence barrier-after-exit",
                {
                    "if (flags[threadgroup_position_in_grid.x]) {": "if (v > 0) {",
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": (
                        "threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "exchange_in_device_memory",
        "threads of a threadgroup exchange by an output, ordered by the flag of device memory",
        """
        uint i = thread_position_in_grid.x, t = thread_position_in_threadgroup.x;
        y[i] = x[i] * 2;
        threadgroup_barrier(mem_flags::mem_device);
        float other = y[i - t + 63 - t];
        threadgroup_barrier(mem_flags::mem_device);
        y[i] = other + 1;
        """,
        {"x": normal(128)},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (64, 1, 1),
        lambda x: x.reshape(2, 64)[:, ::-1].ravel() * 2 + 1,
        mistakes=(
            mistake(
                "a barrier without the flag of device memory",
                "race-read-after-write race-write-after-read",
                {
                    "threadgroup_barrier(mem_flags::mem_device); float other =": """
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float other =""",
                    "y[i - t + 63 - t];": "y[i - t + 63 - t];  // <- here",
                },
            ),
        ),
    ),
    Case(
        "exchange_in_simdgroup",
        "lanes exchange by threadgroup memory, ordered by their SIMD-group's barrier alone",
        """
        threadgroup float tile[4][32];
        uint i = thread_position_in_grid.x, lane = thread_index_in_simdgroup;
        uint simdgroup = simdgroup_index_in_threadgroup;
        float v = x[i];
        tile[simdgroup][lane] = v;
        simdgroup_barrier(mem_flags::mem_threadgroup);
        y[i] = tile[simdgroup][(lane * 5 + 3) % 32];
        """,
        {"x": normal(128)},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (128, 1, 1),
        lambda x: x.reshape(4, 32)[:, (np.arange(32) * 5 + 3) % 32].ravel(),
        mistakes=(
            mistake(
                "a barrier of a SIMD-group without a flag",
                "simd-lockstep race-read-after-write race-write-after-read",
                {
                    "simdgroup_barrier(mem_flags::mem_threadgroup);": (
                        "simdgroup_barrier(mem_flags::mem_none);"
                    ),
                    "y[i] = tile[simdgroup][(lane * 5 + 3) % 32];": (
                        "y[i] = tile[simdgroup][(lane * 5 + 3) % 32];  // <- here"
                    ),
                },
            ),
            mistake(
                "a SIMD function taken for a barrier",
                "simd-lockstep race-read-after-write",
                {
                    "simdgroup_barrier(mem_flags::mem_threadgroup);": "v = simd_sum(v);",
                    "y[i] = tile[simdgroup][(lane * 5 + 3) % 32];": (
                        "y[i] = tile[simdgroup][(lane * 5 + 3) % 32] + v;  // <- here"
                    ),
                },
            ),
            mistake(
                "two barriers of a SIMD-group in the ways of a branch",
                "simdgroup-barrier-divergence",
                {
                    "simdgroup_barrier(mem_flags::mem_threadgroup);": """
        if (v > 0) {
            simdgroup_barrier(mem_flags::mem_threadgroup);  // <- here
        } else {
            simdgroup_barrier(mem_flags::mem_threadgroup);  // <- here
        }"""
                },
            ),
        ),
    ),
    Case(
        "simdgroups_return",
        "whole SIMD-groups that have no row return; no barrier comes after",
        """
        uint row = threadgroup_position_in_grid.x * 4 + simdgroup_index_in_threadgroup;
        if (row >= uint(x_shape[0])) return;
        float v = x[row * 32 + thread_index_in_simdgroup];
        y[row * 32 + thread_index_in_simdgroup] = v - simd_sum(v) / 32;
        """,
        {"x": normal(6, 32)},
        {"y": ((6, 32), F32)},
        (256, 1, 1),
        (128, 1, 1),
        lambda x: x - x.mean(1, keepdims=True),
        mistakes=(
            mistake(
                "SIMD-groups beyond the last row",
                "out-of-bounds",
                {
                    "if (row >= uint(x_shape[0])) return;": "",
                    "float v = x[row * 32 + thread_index_in_simdgroup];": (
                        "float v = x[row * 32 + thread_index_in_simdgroup];  // <- here"
                    ),
                },
            ),
            mistake(
                "lanes that return before a SIMD function that wants them",
                "simd-partial simd-divergent",
                {
                    "if (row >= uint(x_shape[0])) return;": """
        if (row >= uint(x_shape[0])) return;
        if (thread_index_in_simdgroup == 31 && row == 2) {
            y[row * 32 + 31] = 0;
            return;
        }""",
                    "y[row * 32 + thread_index_in_simdgroup] = v - simd_sum(v) / 32;": (
                        "y[row * 32 + thread_index_in_simdgroup] = v - simd_sum(v) / 32;"
                        "  // <- here"
                    ),
                },
            ),
        ),
    ),
]
