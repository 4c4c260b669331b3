"""Neighbours: stencils, convolutions and windows, with their edges."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

I32, F32 = mx.int32, mx.float32


def _stencil(x: np.ndarray) -> np.ndarray:
    p = np.pad(x, 1)
    return p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * x


def _conv1d(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    p = np.pad(x, 2)
    return np.sum([w[j] * p[j : j + x.size] for j in range(5)], axis=0)


def _conv2d(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    p = np.pad(x, 1)
    h, v = x.shape
    taps = [w[i, j] * p[i : i + h, j : j + v] for i in range(3) for j in range(3)]
    return np.sum(taps, axis=0)


def _depthwise(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    p = np.pad(x, ((3, 0), (0, 0)))
    return np.sum([p[j : j + len(x)] * w[:, j] for j in range(4)], axis=0)


def _max_pool(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    windows = x.reshape(6, 2, 8, 2).transpose(0, 2, 1, 3).reshape(6, 8, 4)
    k = windows.argmax(2)
    at = (2 * np.arange(6)[:, None] + k // 2) * 16 + 2 * np.arange(8) + k % 2
    return windows.max(2), at


CASES = [
    Case(
        "stencil",
        "neighbours in two dimensions, none beyond the edges",
        """
        int2 p = int2(thread_position_in_grid.xy);
        int width = x_shape[1], height = x_shape[0], at = p.y * width + p.x;
        float sum = -4 * x[at];
        if (p.x > 0) sum += x[at - 1];
        if (p.x + 1 < width) sum += x[at + 1];
        if (p.y > 0) sum += x[at - width];
        if (p.y + 1 < height) sum += x[at + width];
        y[at] = sum;
        """,
        {"x": normal(10, 12)},
        {"y": ((10, 12), F32)},
        (12, 10, 1),
        (8, 8, 1),
        _stencil,
        mistakes=(
            mistake(
                "the row above the first one",
                "out-of-bounds",
                {"if (p.y > 0) sum += x[at - width];": "sum += x[at - width];  // <- here"},
            ),
            mistake(
                "the row below the last one",
                "out-of-bounds",
                {
                    "if (p.y + 1 < height) sum += x[at + width];": (
                        "if (p.y < height) sum += x[at + width];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "conv1d_with_halo",
        "a tile with a halo that some threads load in addition",
        """
        threadgroup float tile[36];
        int i = thread_position_in_threadgroup.x, n = x_shape[0];
        int first = int(threadgroup_position_in_grid.x) * 32 - 2;
        for (int j = i; j < 36; j += 32) {
            tile[j] = first + j >= 0 && first + j < n ? x[first + j] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float sum = 0;
        for (int j = 0; j < 5; ++j) sum += w[j] * tile[i + j];
        y[first + 2 + i] = sum;
        """,
        {"x": normal(96), "w": normal(5, seed=1)},
        {"y": ((96,), F32)},
        (96, 1, 1),
        (32, 1, 1),
        _conv1d,
        mistakes=(
            mistake(
                "a halo that nobody loads",
                "uninitialised-read",
                {
                    "for (int j = i; j < 36; j += 32)": "for (int j = i; j < 32; j += 32)",
                    "for (int j = 0; j < 5; ++j) sum += w[j] * tile[i + j];": (
                        "for (int j = 0; j < 5; ++j) sum += w[j] * tile[i + j];  // <- here"
                    ),
                },
            ),
            mistake(
                "a halo beyond a threadgroup array",
                "out-of-bounds undefined-behaviour",
                {
                    "threadgroup float tile[36];": "threadgroup float tile[35];",
                    "tile[j] = first + j >= 0 && first + j < n ? x[first + j] : 0.0f;": (
                        "tile[j] = first + j >= 0 && first + j < n ? x[first + j] : 0;  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "conv2d_padded",
        "a padded convolution with coordinates that may be negative, behind a guard",
        """
        int2 p = int2(thread_position_in_grid.xy);
        int height = x_shape[0], width = x_shape[1];
        float sum = 0;
        for (int i = 0; i < 3; ++i) {
            for (int j = 0; j < 3; ++j) {
                int row = p.y + i - 1, column = p.x + j - 1;
                if (row >= 0 && row < height && column >= 0 && column < width) {
                    sum += w[3 * i + j] * x[row * width + column];
                }
            }
        }
        y[p.y * width + p.x] = sum;
        """,
        {"x": normal(9, 11), "w": normal(3, 3, seed=1)},
        {"y": ((9, 11), F32)},
        (11, 9, 1),
        (11, 3, 1),
        _conv2d,
        mistakes=(
            mistake(
                "a negative index into the padding",
                "out-of-bounds",
                {
                    "row >= 0 && row < height && column >= 0 &&": "row < height &&",
                    "sum += w[3 * i + j] * x[row * width + column];": (
                        "sum += w[3 * i + j] * x[row * width + column];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "depthwise_conv",
        "a local array that one loop fills and another reads",
        """
        uint channel = thread_position_in_grid.x, channels = x_shape[1];
        float window[4] = {0, 0, 0, 0}, taps[4];
        for (int j = 0; j < 4; ++j) taps[j] = w[channel * 4 + j];
        for (int t = 0; t < x_shape[0]; ++t) {
            for (int j = 0; j < 3; ++j) window[j] = window[j + 1];
            window[3] = x[t * channels + channel];
            float sum = 0;
            for (int j = 0; j < 4; ++j) sum += taps[j] * window[j];
            y[t * channels + channel] = sum;
        }
        """,
        {"x": normal(7, 32), "w": normal(32, 4, seed=1)},
        {"y": ((7, 32), F32)},
        (32, 1, 1),
        (32, 1, 1),
        _depthwise,
        mistakes=(
            mistake(
                "a local array overrun",
                "undefined-behaviour local-out-of-bounds",
                {
                    "for (int j = 0; j < 3; ++j) window[j] = window[j + 1];": (
                        "for (int j = 0; j < 4; ++j) window[j] = window[j + 1];  // <- here"
                    )
                },
            ),
            mistake(
                "a local array read behind its end through a pointer",
                "local-out-of-bounds",
                {
                    "for (int j = 0; j < 4; ++j) sum += taps[j] * window[j];": """
            const thread float* last = window + 3;
            for (int j = 0; j < 4; ++j) {
                sum += taps[j] * last[j];  // <- here
            }"""
                },
            ),
            mistake(
                "an element of a local array that is never set",
                "uninitialised-local",
                {
                    "for (int j = 0; j < 4; ++j) taps[j] = w[channel * 4 + j];": (
                        "for (int j = 1; j < 4; ++j) taps[j] = w[channel * 4 + j];"
                    ),
                    "for (int j = 0; j < 4; ++j) sum += taps[j] * window[j];": (
                        "for (int j = 0; j < 4; ++j) sum += taps[j] * window[j];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "max_pool_indices",
        "the largest of four and where it is, from what the first one is",
        """
        uint2 p = thread_position_in_grid.xy;
        uint width = x_shape[1], at = 2 * p.y * width + 2 * p.x;
        float best = x[at];
        uint best_at = at;
        for (uint k = 1; k < 4; ++k) {
            uint other = at + k / 2 * width + k % 2;
            if (x[other] > best) {
                best = x[other];
                best_at = other;
            }
        }
        y[p.y * 8 + p.x] = best;
        indices[p.y * 8 + p.x] = best_at;
        """,
        {"x": normal(12, 16)},
        {"y": ((6, 8), F32), "indices": ((6, 8), I32)},
        (8, 6, 1),
        (8, 2, 1),
        _max_pool,
        mistakes=(
            mistake(
                "a local scalar that is set where another number is larger",
                "uninitialised-local",
                {
                    "uint best_at = at;": "uint best_at;",
                    "indices[p.y * 8 + p.x] = best_at;": (
                        "indices[p.y * 8 + p.x] = best_at;  // <- here"
                    ),
                },
            ),
            mistake(
                "windows one further than the input",
                "out-of-bounds",
                {
                    "uint k = 1; k < 4;": "uint k = 1; k < 6;",
                    "if (x[other] > best) {": "if (x[other] > best) {  // <- here",
                },
            ),
        ),
    ),
]
