"""What Metal's language has and has not: headers, templates, address spaces, limits."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

F16, F32 = mx.float16, mx.float32


def _activation(x: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    kind = kinds[np.arange(x.size) % 3]
    return np.select([kind == 0, kind == 1], [np.maximum(x, 0), x / (1 + np.exp(-x))], x)


CASES = [
    Case(
        "activation",
        "a helper with a switch whose every way returns",
        """
        uint i = thread_position_in_grid.x;
        y[i] = activation(x[i], kinds[i % 3]);
        """,
        {"x": normal(96), "kinds": mx.array([0, 1, 2])},
        {"y": ((96,), F32)},
        (96, 1, 1),
        (32, 1, 1),
        _activation,
        header="""
        float activation(float x, int kind) {
            switch (kind) {
                case 0: return metal::max(x, 0.0f);
                case 1: return x / (1 + metal::precise::exp(-x));
                default: return x;
            }
        }
        """,
        mistakes=(
            mistake(
                "a way through a function that returns nothing",
                "missing-return undefined-behaviour",
                {
                    "float activation(float x, int kind) {": (
                        "float activation(float x, int kind) {  // <- here"
                    ),
                    "default: return x;": "default: break;",
                },
            ),
            mistake(
                "a function pointer",
                "not-metal compile-error",
                {
                    "y[i] = activation(x[i], kinds[i % 3]);": """
        float (*chosen)(float, int) = activation;  // <- here
        y[i] = chosen(x[i], kinds[i % 3]);"""
                },
            ),
        ),
    ),
    Case(
        "power_by_template",
        "a loop of a length that a template argument gives, in a helper of templates",
        """
        uint i = thread_position_in_grid.x;
        y[i] = power<T, N>(x[i]);
        """,
        {"x": normal(64, dtype=F16)},
        {"y": ((64,), F16)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.float32(x) ** 4,
        header="""
        template <typename T, int N>
        T power(T x) {
            float result = 1;
            for (int j = 0; j < N; ++j) result *= float(x);
            return T(result);
        }
        """,
        template=(("T", F16), ("N", 4)),
        mistakes=(
            mistake(
                "a function that calls itself",
                "not-metal compile-error",
                {
                    "template <typename T, int N> T power(T x) { float result = 1; "
                    "for (int j = 0; j < N; ++j) result *= float(x); return T(result); }": """
        float raised(float x, int n) {  // <- here
            return n == 0 ? 1.0f : x * raised(x, n - 1);
        }
        template <typename T, int N>
        T power(T x) {
            return T(raised(float(x), N));
        }"""
                },
            ),
            mistake(
                "two functions that call each other",
                "not-metal compile-error",
                {
                    "template <typename T, int N> T power(T x) { float result = 1; "
                    "for (int j = 0; j < N; ++j) result *= float(x); return T(result); }": """
        float odd_power(float x, int n);
        float even_power(float x, int n) {  // <- here
            return n == 0 ? 1.0f : x * odd_power(x, n - 1);
        }
        float odd_power(float x, int n) {  // <- here
            return n == 0 ? 1.0f : x * even_power(x, n - 1);
        }
        template <typename T, int N>
        T power(T x) {
            return T(even_power(float(x), N));
        }"""
                },
            ),
        ),
    ),
    Case(
        "polynomial",
        "coefficients in the constant address space at program scope",
        """
        uint i = thread_position_in_grid.x;
        float v = x[i], sum = 0;
        for (int j = 0; j < 4; ++j) sum = sum * v + coefficients[j];
        y[i] = sum;
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: ((0.5 * x + 2) * x - 1) * x + 3,
        header="""
        constant float coefficients[4] = {0.5, 2, -1, 3};
        """,
        mistakes=(
            mistake(
                "a variable at program scope that can change",
                "not-metal compile-error",
                {
                    "constant float coefficients[4] = {0.5, 2, -1, 3};": (
                        "float coefficients[4] = {0.5, 2, -1, 3};  // <- here"
                    )
                },
            ),
            mistake(
                "a coefficient behind the last one",
                "out-of-bounds undefined-behaviour",
                {
                    "for (int j = 0; j < 4; ++j) sum = sum * v + coefficients[j];": (
                        "for (int j = 0; j < 5; ++j) sum = sum * v + coefficients[j];  // <- here"
                    )
                },
            ),
            mistake(
                "double",
                "not-metal compile-error",
                {"float v = x[i], sum = 0;": "float v = x[i]; double sum = 0;  // <- here"},
            ),
            mistake(
                "memory from new",
                "not-metal compile-error",
                {
                    "float v = x[i], sum = 0;": """
        float v = x[i], sum = 0;
        thread float* room = new float[4];  // <- here
        room[0] = v;""",
                },
            ),
        ),
    ),
    Case(
        "tile_by_pointer",
        "a helper that takes a pointer to threadgroup memory",
        """
        threadgroup float tile[64];
        uint i = thread_position_in_threadgroup.x, row = 64 * threadgroup_position_in_grid.x;
        tile[i] = x[row + i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[row + i] = neighbours(tile, i);
        """,
        {"x": normal(128)},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (64, 1, 1),
        lambda x: (
            x.reshape(2, 64) + np.roll(x.reshape(2, 64), 1, 1) + np.roll(x.reshape(2, 64), -1, 1)
        ).ravel(),
        header="""
        float neighbours(const threadgroup float* tile, uint i) {
            return tile[(i + 63) % 64] + tile[i] + tile[(i + 1) % 64];
        }
        """,
        mistakes=(
            mistake(
                "device memory cast to the threadgroup address space",
                "not-metal compile-error address-space",
                {
                    "y[row + i] = neighbours(tile, i);": (
                        "y[row + i] = neighbours((const threadgroup float*)x, i);  // <- here"
                    )
                },
            ),
            mistake(
                "device memory handed over as threadgroup memory",
                "not-metal compile-error",
                {
                    "y[row + i] = neighbours(tile, i);": (
                        "y[row + i] = neighbours(x + row, i);  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "large_tile",
        "all of the 32 KB of threadgroup memory that a threadgroup has",
        """
        threadgroup float tile[N];
        uint i = thread_position_in_threadgroup.x;
        for (uint j = i; j < N; j += 256) tile[j] = x[j % 256];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[i] = tile[N - 1 - i];
        """,
        {"x": normal(256)},
        {"y": ((256,), F32)},
        (256, 1, 1),
        (256, 1, 1),
        lambda x: x[::-1],
        template=(("N", 8192),),
        mistakes=(
            mistake(
                "more threadgroup memory than there is",
                "threadgroup-memory",
                template=(("N", 8448),),
            ),
        ),
    ),
    Case(
        "private_scratch",
        "a local array that a thread has room for",
        """
        uint i = thread_position_in_grid.x;
        float scratch[N];
        for (uint j = 0; j < N; ++j) scratch[j] = x[j % 64] * i;
        float sum = 0;
        for (uint j = 0; j < 16; ++j) sum += scratch[(i + 4 * j) % N];
        y[i] = sum;
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: x.reshape(16, 4).sum(0)[np.arange(64) % 4] * np.arange(64),
        template=(("N", 64),),
        mistakes=(
            mistake(
                "a local array that no thread has room for",
                "memory-fault",
                template=(("N", 1 << 15),),
            ),
        ),
    ),
    Case(
        "pair_of_outputs",
        "a struct that a helper returns, and two outputs of different types",
        """
        uint i = thread_position_in_grid.x;
        Parts parts = split(x[i]);
        whole[i] = int(parts.whole);
        rest[i] = T(parts.rest);
        """,
        {"x": normal(64) * 4},
        {"whole": ((64,), mx.int32), "rest": ((64,), F16)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: (np.trunc(x), x - np.trunc(x)),
        header="""
        struct Parts {
            float whole;
            float rest;
        };
        Parts split(float x) {
            Parts parts;
            parts.whole = metal::trunc(x);
            parts.rest = x - parts.whole;
            return parts;
        }
        """,
        template=(("T", F16),),
        mistakes=(
            mistake(
                "a member of a struct that is never set",
                "uninitialised-local",
                {
                    "parts.rest = x - parts.whole;": "",
                    "rest[i] = T(parts.rest);": "rest[i] = T(parts.rest);  // <- here",
                },
            ),
            mistake(
                "a function of C that Metal has under another name",
                "not-metal compile-error",
                {"metal::trunc(x);": "truncf(x);  // <- here"},
            ),
        ),
    ),
]
