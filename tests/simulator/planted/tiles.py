"""Tiles in threadgroup memory: transposes, products of matrices, stencils and convolutions."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

F32 = mx.float32


# A tile of 8 x 8 of A and of B at a time; K need not be known.
_MATMUL = """
        threadgroup float a_tile[8][8], b_tile[8][8];
        uint2 t = thread_position_in_threadgroup.xy, p = thread_position_in_grid.xy;
        uint k_size = a_shape[1], columns = b_shape[1];
        float sum = 0;
        for (uint k = 0; k < k_size; k += 8) {
            a_tile[t.y][t.x] = a[p.y * k_size + k + t.x];
            b_tile[t.y][t.x] = b[(k + t.y) * columns + p.x];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint j = 0; j < 8; ++j) sum += a_tile[t.y][j] * b_tile[j][t.x];
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        c[p.y * columns + p.x] = sum;
        """


CASES = [
    Case(
        "transpose",
        "a tile with a padded row, stored by rows and read by columns",
        """
        threadgroup float tile[16][17];
        uint2 t = thread_position_in_threadgroup.xy, g = threadgroup_position_in_grid.xy;
        uint rows = x_shape[0], columns = x_shape[1];
        for (uint j = t.y; j < 16; j += 8) {
            tile[j][t.x] = x[(g.y * 16 + j) * columns + g.x * 16 + t.x];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint j = t.y; j < 16; j += 8) {
            y[(g.x * 16 + j) * rows + g.y * 16 + t.x] = tile[t.x][j];
        }
        """,
        {"x": normal(32, 48)},
        {"y": ((48, 32), F32)},
        (48, 16, 1),
        (16, 8, 1),
        lambda x: x.T,
        mistakes=(
            mistake(
                "no barrier after a tile is stored",
                "race-read-after-write race-write-after-read",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": "",
                    "y[(g.x * 16 + j) * rows + g.y * 16 + t.x] = tile[t.x][j];": (
                        "y[(g.x * 16 + j) * rows + g.y * 16 + t.x] = tile[t.x][j];  // <- here"
                    ),
                },
            ),
            mistake(
                "the two coordinates of an output swapped",
                "out-of-bounds",
                {
                    "y[(g.x * 16 + j) * rows + g.y * 16 + t.x] = tile[t.x][j];": (
                        "y[(g.x * 16 + j) * columns + g.y * 16 + t.x] = tile[t.x][j];  // <- here"
                    ),
                },
            ),
            mistake(
                "a column beyond a row of a threadgroup array",
                "out-of-bounds undefined-behaviour",
                {
                    "threadgroup float tile[16][17];": "threadgroup float tile[16][15];",
                    "tile[j][t.x] = x[(g.y * 16 + j) * columns + g.x * 16 + t.x];": (
                        "tile[j][t.x] = x[(g.y * 16 + j) * columns + g.x * 16 + t.x];  // <- here"
                    ),
                },
            ),
            mistake(
                "half of a tile's rows stored",
                "uninitialised-read",
                {
                    "for (uint j = t.y; j < 16; j += 8) { tile[j][t.x] = x[": """
        for (uint j = t.y; j < 8; j += 8) {
            tile[j][t.x] = x[""",
                    "y[(g.x * 16 + j) * rows + g.y * 16 + t.x] = tile[t.x][j];": (
                        "y[(g.x * 16 + j) * rows + g.y * 16 + t.x] = tile[t.x][j];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "matmul_tiled",
        "scalar tiles with a barrier before and after their use",
        _MATMUL,
        {"a": normal(16, 24), "b": normal(24, 32, seed=1)},
        {"c": ((16, 32), F32)},
        (32, 16, 1),
        (8, 8, 1),
        lambda a, b: a @ b,
        mistakes=(
            mistake(
                "no barrier at the end of a loop over tiles",
                "race-write-after-read race-read-after-write",
                {
                    "for (uint j = 0; j < 8; ++j) sum += a_tile[t.y][j] * b_tile[j][t.x]; "
                    "threadgroup_barrier(mem_flags::mem_threadgroup); }": """
            for (uint j = 0; j < 8; ++j) sum += a_tile[t.y][j] * b_tile[j][t.x];  // <- here
        }"""
                },
            ),
            mistake(
                "row and column of a tile swapped",
                "out-of-bounds",
                {
                    "b_tile[t.y][t.x] = b[(k + t.y) * columns + p.x];": (
                        "b_tile[t.y][t.x] = b[(p.x + t.y) * columns + k];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "matmul_double_buffered",
        "two tiles in turn, so that one barrier an iteration is enough",
        """
        threadgroup float tile[2][32];
        uint i = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x;
        float sum = 0;
        for (uint k = 0; k < 4; ++k) {
            tile[k % 2][i] = a[row * 128 + k * 32 + i];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint j = 0; j < 32; ++j) sum += tile[k % 2][j] * b[(k * 32 + j) * 32 + i];
        }
        c[row * 32 + i] = sum;
        """,
        {"a": normal(4, 128), "b": normal(128, 32, seed=1)},
        {"c": ((4, 32), F32)},
        (128, 1, 1),
        (32, 1, 1),
        lambda a, b: a @ b,
        mistakes=(
            mistake(
                "the same of two tiles in every iteration",
                "race-write-after-read race-read-after-write",
                {
                    "tile[k % 2][i] = a[row * 128 + k * 32 + i];": (
                        "tile[k % 1][i] = a[row * 128 + k * 32 + i];  // <- here"
                    ),
                    "sum += tile[k % 2][j]": "sum += tile[k % 1][j]",
                },
            ),
            mistake(
                "the tile that the next iteration fills",
                "uninitialised-read race-write-after-read race-read-after-write",
                {
                    "for (uint j = 0; j < 32; ++j) "
                    "sum += tile[k % 2][j] * b[(k * 32 + j) * 32 + i];": """
            for (uint j = 0; j < 32; ++j) {
                sum += tile[(k + 1) % 2][j] * b[(k * 32 + j) * 32 + i];  // <- here
            }"""
                },
            ),
        ),
    ),
    Case(
        "matmul_simdgroup_matrix",
        "8 x 8 matrices of a SIMD-group, whose SIMD-groups share nothing",
        """
        uint row = 8 * thread_position_in_grid.y, column = 8 * threadgroup_position_in_grid.x;
        simdgroup_float8x8 a_part, b_part, sum = make_filled_simdgroup_matrix<float, 8>(0.0f);
        for (uint k = 0; k < 24; k += 8) {
            simdgroup_load(a_part, a + row * 24 + k, 24);
            simdgroup_load(b_part, b + k * 16 + column, 16);
            simdgroup_multiply_accumulate(sum, a_part, b_part, sum);
        }
        simdgroup_store(sum, c + row * 16 + column, 16);
        """,
        {"a": normal(32, 24), "b": normal(24, 16, seed=1)},
        {"c": ((32, 16), F32)},
        (64, 4, 1),
        (32, 2, 1),
        lambda a, b: a @ b,
        mistakes=(
            mistake(
                "a matrix stored over the last row",
                "out-of-bounds",
                {
                    "simdgroup_store(sum, c + row * 16 + column, 16);": (
                        "simdgroup_store(sum, c + (row + 1) * 16 + column, 16);  // <- here"
                    )
                },
            ),
            mistake(
                "SIMD-groups that store over each other",
                "race-write-after-write",
                {
                    "simdgroup_store(sum, c + row * 16 + column, 16);": (
                        "simdgroup_store(sum, c + row / 2 * 16 + column, 16);  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "matrix_by_threadgroup_memory",
        "a matrix of a SIMD-group made of a tile that all lanes fill",
        """
        threadgroup float tile[64];
        uint lane = thread_index_in_simdgroup, at = 64 * threadgroup_position_in_grid.x;
        tile[2 * lane] = metal::max(x[at + 2 * lane], 0.0f);
        tile[2 * lane + 1] = metal::max(x[at + 2 * lane + 1], 0.0f);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_float8x8 part, square;
        simdgroup_load(part, tile, 8);
        simdgroup_multiply(square, part, part);
        simdgroup_store(square, y + at, 8);
        """,
        {"x": normal(3, 8, 8)},
        {"y": ((3, 8, 8), F32)},
        (96, 1, 1),
        (32, 1, 1),
        lambda x: np.maximum(x, 0) @ np.maximum(x, 0),
        mistakes=(
            mistake(
                "no barrier before a matrix is loaded of a tile",
                "race-read-after-write race-write-after-read",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": "",
                    "simdgroup_load(part, tile, 8);": "simdgroup_load(part, tile, 8);  // <- here",
                },
            ),
        ),
    ),
]
