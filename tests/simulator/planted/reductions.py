"""Sums and norms of rows: SIMD-groups, threadgroups, and both in two stages."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

F32 = mx.float32


CASES = [
    Case(
        "simd_row_sum",
        "a SIMD-group a row, with neither threadgroup memory nor a barrier",
        """
        uint row = thread_position_in_grid.y, lane = thread_index_in_simdgroup;
        uint n = x_shape[1];
        float sum = 0;
        for (uint i = lane; i < n; i += 32) sum += x[row * n + i];
        sum = simd_sum(sum);
        if (lane == 0) y[row] = sum;
        """,
        {"x": normal(6, 75)},
        {"y": ((6,), F32)},
        (32, 6, 1),
        (32, 2, 1),
        lambda x: x.sum(1),
        mistakes=(
            mistake(
                "rows taken to be a multiple of the SIMD-group's width",
                "out-of-bounds",
                {
                    "for (uint i = lane; i < n; i += 32) sum += x[row * n + i];": """
        for (uint i = 0; i < n; i += 32) {
            sum += x[row * n + i + lane];  // <- here
        }"""
                },
            ),
        ),
    ),
    Case(
        "share_of_masked",
        "a sum of some lanes' numbers, in which all lanes take part",
        """
        uint i = thread_position_in_grid.x;
        float total = 0;
        total = simd_sum(mask[i] ? x[i] : 0.0f);
        y[i] = x[i] / (total + 1);
        """,
        {"x": mx.abs(normal(64)), "mask": mx.arange(64) % 3 != 0},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (64, 1, 1),
        lambda x, mask: x / (1 + np.repeat((x * mask).reshape(2, 32).sum(1), 32)),
        mistakes=(
            mistake(
                "simd_sum in a branch that some lanes skip, which need its value",
                "simd-partial simd-divergent",
                {
                    "total = simd_sum(mask[i] ? x[i] : 0.0f);": (
                        "if (mask[i]) total = simd_sum(x[i]);  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "tree_sum",
        "a tree over threadgroup memory with a barrier a level",
        """
        threadgroup float partial[128];
        uint i = thread_position_in_threadgroup.x;
        partial[i] = x[thread_position_in_grid.x];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint half_count = 64; half_count > 0; half_count /= 2) {
            if (i < half_count) partial[i] += partial[i + half_count];
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        if (i == 0) y[threadgroup_position_in_grid.x] = partial[0];
        """,
        {"x": normal(384)},
        {"y": ((3,), F32)},
        (384, 1, 1),
        (128, 1, 1),
        lambda x: x.reshape(3, 128).sum(1),
        mistakes=(
            mistake(
                "no barrier between the levels of a tree",
                "race-read-after-write race-write-after-read",
                {
                    "if (i < half_count) partial[i] += partial[i + half_count]; "
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": (
                        "if (i < half_count) partial[i] += partial[i + half_count];  // <- here"
                    )
                },
            ),
            mistake(
                "no barrier between the store and the tree",
                "race-read-after-write race-write-after-read",
                {
                    "partial[i] = x[thread_position_in_grid.x]; "
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": (
                        "partial[i] = x[thread_position_in_grid.x];"
                    ),
                    "if (i < half_count) partial[i] += partial[i + half_count];": (
                        "if (i < half_count) partial[i] += partial[i + half_count];  // <- here"
                    ),
                },
            ),
            mistake(
                "a simdgroup_barrier where threads of others are waited for",
                "race-read-after-write race-write-after-read",
                {
                    "if (i < half_count) partial[i] += partial[i + half_count]; "
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": """
            if (i < half_count) partial[i] += partial[i + half_count];  // <- here
            simdgroup_barrier(mem_flags::mem_threadgroup);"""
                },
            ),
            mistake(
                "a threadgroup array overrun by a level too many",
                "out-of-bounds",
                {
                    "uint half_count = 64;": "uint half_count = 128;",
                    "if (i < half_count) partial[i] += partial[i + half_count];": (
                        "if (i < half_count) partial[i] += partial[i + half_count];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "two_stage_sum",
        "SIMD-groups sum, then the first one sums their sums; not all entries exist",
        """
        threadgroup float sums[32];
        uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
        float sum = simd_sum(x[thread_position_in_grid.x]);
        if (lane == 0) sums[simdgroup] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simdgroup == 0) {
            float part = lane < simdgroups_per_threadgroup ? sums[lane] : 0.0f;
            part = simd_sum(part);
            if (lane == 0) y[threadgroup_position_in_grid.x] = part;
        }
        """,
        {"x": normal(512)},
        {"y": ((2,), F32)},
        (512, 1, 1),
        (256, 1, 1),
        lambda x: x.reshape(2, 256).sum(1),
        mistakes=(
            mistake(
                "sums of SIMD-groups that do not exist",
                "uninitialised-read",
                {
                    "float part = lane < simdgroups_per_threadgroup ? sums[lane] : 0.0f;": (
                        "float part = sums[lane];  // <- here"
                    )
                },
            ),
            mistake(
                "a barrier without the flag of threadgroup memory",
                "race-read-after-write",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": (
                        "threadgroup_barrier(mem_flags::mem_device);"
                    ),
                    "float part = lane < simdgroups_per_threadgroup ? sums[lane] : 0.0f;": (
                        "float part = lane < 8 ? sums[lane] : 0.0f;  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "half_a_simdgroup",
        "a threadgroup of 16 threads, whose shuffles stay among them",
        """
        uint i = thread_position_in_grid.x;
        float v = x[i];
        for (ushort bit = 8; bit > 0; bit /= 2) {
            v += simd_shuffle_xor(v, bit);
        }
        y[i] = v;
        """,
        {"x": normal(48)},
        {"y": ((48,), F32)},
        (48, 1, 1),
        (16, 1, 1),
        lambda x: np.repeat(x.reshape(3, 16).sum(1), 16),
        mistakes=(
            mistake(
                "a shuffle from a lane that has no thread",
                "bad-shuffle",
                {
                    "ushort bit = 8;": "ushort bit = 16;",
                    "v += simd_shuffle_xor(v, bit);": (
                        "v += simd_shuffle_xor(v, bit);  // <- here"
                    ),
                },
            ),
        ),
    ),
]
