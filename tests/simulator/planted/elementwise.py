"""A thread per element: guards, strides, vectors, conversions and the arithmetic of indices."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, integers, mistake, normal

F32 = mx.float32


CASES = [
    Case(
        "scale_guarded",
        "a guard for the threads that the rounded-up grid has too many",
        """
        uint i = thread_position_in_grid.x;
        if (i < uint(x_shape[0])) {
            y[i] = 2 * x[i] + 1;
        }
        """,
        {"x": normal(100)},
        {"y": ((100,), F32)},
        (128, 1, 1),
        (32, 1, 1),
        lambda x: 2 * x + 1,
        mistakes=(
            mistake(
                "no guard in a grid that is rounded up",
                "out-of-bounds",
                {
                    "if (i < uint(x_shape[0])) { y[i] = 2 * x[i] + 1; }": """
        y[i] = 2 * x[i] + 1;  // <- here"""
                },
            ),
            mistake(
                "a guard with <= for <",
                "out-of-bounds",
                {
                    "i < uint(x_shape[0])": "i <= uint(x_shape[0])",
                    "y[i] = 2 * x[i] + 1;": "y[i] = 2 * x[i] + 1;  // <- here",
                },
            ),
            mistake("a grid that is rounded down", "unwritten-output", grid=(96, 1, 1)),
            mistake("a grid that counts threadgroups", "unwritten-output", grid=(4, 1, 1)),
        ),
    ),
    Case(
        "scale_unguarded",
        "no guard, and a last threadgroup that MLX's grid makes smaller",
        """
        uint i = thread_position_in_grid.x;
        y[i] = x[i] * scale;
        """,
        {"x": normal(100), "scale": mx.array(0.5)},
        {"y": ((100,), F32)},
        (100, 1, 1),
        (32, 1, 1),
        lambda x, scale: x * scale,
        mistakes=(
            mistake(
                "a grid larger than the data",
                "out-of-bounds",
                {"y[i] = x[i] * scale;": "y[i] = x[i] * scale;  // <- here"},
                grid=(101, 1, 1),
            ),
            mistake(
                "a threadgroup of more than 1024 threads",
                "too-large refused",
                threadgroup=(2048, 1, 1),
            ),
        ),
    ),
    Case(
        "strided",
        "a transposed input, read where its strides say",
        """
        uint i = thread_position_in_grid.x;
        y[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)];
        """,
        {"x": normal(12, 8).T},
        {"y": ((8, 12), F32)},
        (96, 1, 1),
        (32, 1, 1),
        lambda x: x,
        make={"ensure_row_contiguous": False},
        mistakes=(
            mistake(
                "strides ignored with ensure_row_contiguous=False",
                "strides-ignored",
                {"x[elem_to_loc(i, x_shape, x_strides, x_ndim)];": "x[i];  // <- here"},
            ),
        ),
    ),
    Case(
        "strided_rows",
        "every second row of an input, by its own stride",
        """
        uint2 p = thread_position_in_grid.xy;
        y[p.y * x_shape[1] + p.x] = x[p.y * x_strides[0] + p.x * x_strides[1]];
        """,
        {"x": normal(14, 8)[::2]},
        {"y": ((7, 8), F32)},
        (8, 7, 1),
        (8, 4, 1),
        lambda x: x,
        make={"ensure_row_contiguous": False},
        mistakes=(
            mistake(
                "the stride of rows for that of columns",
                "out-of-bounds",
                {
                    "x[p.y * x_strides[0] + p.x * x_strides[1]];": (
                        "x[p.y * x_strides[0] + p.x * x_strides[0]];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "mask_of_bools",
        "an output of bools",
        """
        uint i = thread_position_in_grid.x;
        y[i] = x[i] > 0 && keep[i];
        """,
        {"x": normal(64), "keep": integers(0, 2, 64).astype(mx.bool_)},
        {"y": ((64,), mx.bool_)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x, keep: (x > 0) & keep,
    ),
    Case(
        "grid_stride",
        "few threads that walk over many elements",
        """
        uint n = x_shape[0];
        for (uint i = thread_position_in_grid.x; i < n; i += threads_per_grid.x) {
            y[i] = metal::precise::exp(x[i]);
        }
        """,
        {"x": normal(200)},
        {"y": ((200,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        np.exp,
        mistakes=(
            mistake(
                "a stride larger than the number of threads",
                "unwritten-output",
                {"i += threads_per_grid.x": "i += 2 * threads_per_grid.x"},
            ),
        ),
    ),
    Case(
        "own_element_again",
        "an output that the thread which wrote it reads again",
        """
        uint i = thread_position_in_grid.x;
        y[i] = x[i];
        for (int j = 0; j < 3; ++j) y[i] = y[i] * 0.5f + 1;
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: x / 8 + 1.75,
        mistakes=(
            mistake(
                "an output read before it is written",
                "uninitialised-read",
                {
                    "y[i] = x[i]; for": "for",
                    "y[i] = y[i] * 0.5f + 1;": "y[i] = y[i] * 0.5f + x[i];  // <- here",
                },
            ),
        ),
    ),
    Case(
        "added_to_output",
        "an output that init_value fills before the kernel adds to it",
        """
        uint i = thread_position_in_grid.x;
        y[i] += x[i];
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: x + 2,
        init_value=2,
        mistakes=(
            mistake(
                "an output added to without init_value",
                "uninitialised-read",
                {"y[i] += x[i];": "y[i] += x[i];  // <- here"},
                init_value=None,
            ),
            mistake(
                "an input stored to through a cast",
                "write-to-input",
                {
                    "y[i] += x[i];": """y[i] += x[i];
        ((device float*)x)[i] = 0;  // <- here"""
                },
            ),
        ),
    ),
    Case(
        "no_rows",
        "an input without elements: nothing is read of it",
        """
        uint i = thread_position_in_grid.x;
        float sum = 1;
        for (int row = 0; row < x_shape[0]; ++row) sum += x[row * 32 + i];
        y[i] = sum;
        """,
        {"x": mx.zeros((0, 32))},
        {"y": ((32,), F32)},
        (32, 1, 1),
        (32, 1, 1),
        lambda x: x.sum(0) + 1,
        mistakes=(
            mistake(
                "the first row of an input without rows",
                "out-of-bounds",
                {"float sum = 1;": "float sum = x[i];  // <- here"},
            ),
        ),
    ),
]
