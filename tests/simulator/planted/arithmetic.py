"""Numbers that leave their range: conversions, products, shifts, and what becomes an index."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, integers, mistake, normal

I32, U32, F16, F32 = mx.int32, mx.uint32, mx.float16, mx.float32


def _pcg(x: np.ndarray) -> np.ndarray:
    """The hash of the dropout kernel; uint32 wraps."""
    with np.errstate(over="ignore"):
        state = x * np.uint32(747796405) + np.uint32(2891336453)
        word = ((state >> ((state >> np.uint32(28)) + np.uint32(4))) ^ state) * np.uint32(277803737)
    return (word >> np.uint32(22)) ^ word


def _rotated(x: np.ndarray) -> np.ndarray:
    count = np.arange(x.size, dtype=np.uint32) % 32
    return (x << count) | (x >> ((32 - count) & 31))


CASES = [
    Case(
        "squares_of_halves",
        "squares of halves summed in float, which half could not hold",
        """
        uint i = thread_position_in_grid.x;
        float sum = 0;
        for (uint j = 0; j < 16; ++j) {
            sum += float(x[16 * i + j]) * float(x[16 * i + j]);
        }
        y[i] = sum / 16;
        """,
        {"x": (100 * (3 + normal(32, 16))).astype(F16)},
        {"y": ((32,), F32)},
        (32, 1, 1),
        (32, 1, 1),
        lambda x: (x.astype(np.float32) ** 2).mean(1),
        mistakes=(
            mistake(
                "squares that overflow half",
                "half-overflow",
                {
                    "float sum = 0;": "half sum = 0;",
                    "sum += float(x[16 * i + j]) * float(x[16 * i + j]);": (
                        "sum += x[16 * i + j] * x[16 * i + j];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "squares_of_half_vectors",
        "the same by vectors of four",
        """
        uint i = thread_position_in_grid.x;
        float4 v = float4(((const device half4*)x)[i]);
        y[i] = metal::dot(v, v);
        """,
        {"x": (100 * (3 + normal(32, 4))).astype(F16)},
        {"y": ((32,), F32)},
        (32, 1, 1),
        (32, 1, 1),
        lambda x: (x.astype(np.float32) ** 2).sum(1),
        mistakes=(
            mistake(
                "a vector of squares that overflow half",
                "half-overflow",
                {
                    "float4 v = float4(((const device half4*)x)[i]);": (
                        "half4 v = ((const device half4*)x)[i];"
                    ),
                    "metal::dot(v, v);": (
                        "0;\n half4 s = v * v;  // <- here\n y[i] = s.x + float(s.y) + s.z + s.w;"
                    ),
                },
            ),
        ),
    ),
    Case(
        "roots",
        "square roots of numbers that rounding may have made negative",
        """
        uint i = thread_position_in_grid.x;
        y[i] = metal::sqrt(metal::max(x[i], 0.0f));
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.sqrt(np.maximum(x, 0)),
        nan=True,
        mistakes=(
            mistake(
                "the root of a negative number",
                "nan-made",
                {"metal::max(x[i], 0.0f));": "x[i]);  // <- here"},
            ),
        ),
    ),
    Case(
        "masked_softmax",
        "exponentials after a maximum; rows without any key give 0",
        """
        uint i = thread_position_in_grid.x;
        float largest = -INFINITY, sum = 0;
        for (uint j = 0; j < 16; ++j) {
            largest = metal::max(largest, x[16 * i + j]);
        }
        float bound = metal::isinf(largest) ? 0.0f : largest;
        for (uint j = 0; j < 16; ++j) {
            sum += metal::exp(x[16 * i + j] - bound);
        }
        y[i] = sum;
        """,
        {"x": mx.where((mx.arange(32) % 5 == 0)[:, None], -mx.inf, normal(32, 16))},
        {"y": ((32,), F32)},
        (32, 1, 1),
        (32, 1, 1),
        lambda x: np.exp(x - np.where(np.isinf(x).all(1), 0, x.max(1))[:, None]).sum(1),
        nan=True,
        mistakes=(
            mistake(
                "infinity less infinity",
                "nan-made",
                {
                    "metal::isinf(largest) ? 0.0f : largest;": "largest;",
                    "metal::exp(x[16 * i + j] - bound);": (
                        "metal::exp(x[16 * i + j] - bound);  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "large_ones",
        "a count of numbers above a bound, which NaN is not",
        """
        uint i = thread_position_in_grid.x;
        float v = x[i];
        y[i] = 0;
        if (!metal::isnan(v)) {
            y[i] = v > 0.5f ? 1 : 0;
        }
        """,
        {"x": mx.where(mx.arange(64) % 5 == 0, mx.nan, normal(64))},
        {"y": ((64,), I32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.nan_to_num(x) > 0.5,
        nan=True,
        mistakes=(
            mistake(
                "a comparison with NaN",
                "nan-compared",
                {
                    "if (!metal::isnan(v)) {": "{",
                    "y[i] = v > 0.5f ? 1 : 0;": "y[i] = v > 0.5f ? 1 : 0;  // <- here",
                },
            ),
        ),
    ),
    Case(
        "nan_to_zero",
        "NaN replaced, under safe mathematics",
        """
        uint i = thread_position_in_grid.x;
        float v = x[i];
        y[i] = metal::isnan(v) ? 0.0f : v;
        """,
        {"x": mx.array(np.where(np.arange(64) % 5 == 0, np.nan, 1).astype(np.float32))},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.nan_to_num(x),
        mistakes=(
            mistake(
                "isnan under fast mathematics",
                "fast-math-nan",
                {"metal::isnan(v) ? 0.0f : v;": "metal::isnan(v) ? 0.0f : v;  // <- here"},
                make={"compile_options": {"math_mode": "fast"}},
            ),
        ),
    ),
    Case(
        "saturated_integers",
        "floats of any size clamped before they become integers",
        """
        uint i = thread_position_in_grid.x;
        y[i] = int(metal::clamp(x[i] * 1e9f, -2147483520.0f, 2147483520.0f));
        """,
        {"x": normal(64) * 3},
        {"y": ((64,), I32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.clip(x * np.float32(1e9), -2147483520, 2147483520).astype(np.int32),
        mistakes=(
            mistake(
                "a float outside the range of int",
                "float-to-int",
                {
                    "int(metal::clamp(x[i] * 1e9f, -2147483520.0f, 2147483520.0f));": (
                        "int(x[i] * 1e9f);  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "bucket_of",
        "the bucket of a number, with one for NaN and one for negative numbers",
        """
        uint i = thread_position_in_grid.x;
        float v = x[i] * 4;
        bool is_nan = metal::isnan(v);
        y[i] = is_nan ? 99u : uint(metal::max(v, 0.0f));
        """,
        {
            "x": mx.array(np.where(np.arange(64) % 9 == 4, np.nan, np.arange(64) / 8 - 2)).astype(
                F32
            )
        },
        {"y": ((64,), U32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.where(np.isnan(x), 99, np.maximum(np.nan_to_num(x) * 4, 0)).astype(np.uint32),
        mistakes=(
            mistake(
                "a negative number converted to uint",
                "float-to-int",
                {"uint(metal::max(v, 0.0f));": "uint(v);  // <- here"},
            ),
            mistake(
                "NaN converted to an integer",
                "float-to-int",
                {
                    "bool is_nan = metal::isnan(v);": "bool is_nan = false;",
                    "uint(metal::max(v, 0.0f));": ("uint(v < 0.0f ? 0.0f : v);  // <- here"),
                },
            ),
        ),
    ),
    Case(
        "hash_dropout",
        "a hash whose products wrap on purpose: they are no index",
        """
        uint i = thread_position_in_grid.x;
        uint state = (i + seed) * 747796405u + 2891336453u;
        uint word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
        uint random = (word >> 22u) ^ word;
        y[i] = random < 0x40000000u ? 0.0f : x[i] / 0.75f;
        """,
        {"x": normal(256), "seed": mx.array(77, U32)},
        {"y": ((256,), F32)},
        (256, 1, 1),
        (64, 1, 1),
        lambda x, seed: np.where(
            _pcg(np.arange(256, dtype=np.uint32) + seed) < 0x40000000, 0, x / np.float32(0.75)
        ),
        mistakes=(
            mistake(
                "a hash in int, which must not overflow",
                "undefined-behaviour",
                {
                    "uint state = (i + seed) * 747796405u + 2891336453u;": (
                        "uint state = int(i + seed) * 747796405 + 12345;  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "hashed_embedding",
        "a row of a table by the upper bits of a product that wraps on purpose",
        """
        uint i = thread_position_in_grid.x;
        uint row = (tokens[i] * 2654435769u) >> 28;
        y[i] = table[row];
        """,
        {"table": normal(16), "tokens": integers(0, 100_000, 64, dtype=U32)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda table, tokens: table[tokens * np.uint32(2654435769) >> np.uint32(28)],
        mistakes=(
            mistake(
                "a bit more of a hash than the table has rows for",
                "out-of-bounds",
                {
                    "(tokens[i] * 2654435769u) >> 28;": "(tokens[i] * 2654435769u) >> 27;",
                    "y[i] = table[row];": "y[i] = table[row];  // <- here",
                },
            ),
        ),
    ),
    Case(
        "rotated_bits",
        "a rotation by 0 to 31 bits",
        """
        uint i = thread_position_in_grid.x;
        uint count = i % 32;
        y[i] = (x[i] << count) | (x[i] >> ((32 - count) & 31));
        """,
        {"x": integers(0, 2**32, 64, dtype=U32)},
        {"y": ((64,), U32)},
        (64, 1, 1),
        (32, 1, 1),
        _rotated,
        mistakes=(
            mistake(
                "a shift by 32 bits",
                "undefined-behaviour",
                {"(x[i] >> ((32 - count) & 31));": "(x[i] >> (32 - count));  // <- here"},
            ),
        ),
    ),
    Case(
        "wraps_back",
        "a difference of uint that wraps below 0, and back before it is an index",
        """
        uint i = thread_position_in_grid.x;
        uint shifted = i - 5;
        y[i] = x[shifted + 5];
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: x,
        mistakes=(
            mistake(
                "a difference of uint that wraps and is an index",
                "out-of-bounds index-wrap wild-pointer",
                {"y[i] = x[shifted + 5];": "y[i] = x[shifted];  // <- here"},
            ),
        ),
    ),
    Case(
        "block_of_position",
        "a position beyond 32 bits, in 64, that tells an entry of a table",
        """
        uint i = thread_position_in_grid.x;
        ulong position = ulong(i * 100) * tokens_per_block;
        y[i] = table[position / tokens_per_block];
        """,
        {"table": normal(6400), "tokens_per_block": mx.array(1 << 20, U32)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda table, tokens: table[::100],
        mistakes=(
            mistake(
                "a product of uint that wraps and becomes an index",
                "index-wrap",
                {
                    "ulong position = ulong(i * 100) * tokens_per_block;": (
                        "uint position = i * 100 * tokens_per_block;  // <- here"
                    )
                },
            ),
            mistake(
                "an index of 64 bits that points far from every buffer",
                "wild-pointer out-of-bounds",
                {
                    "y[i] = table[position / tokens_per_block];": (
                        "y[i] = table[position * tokens_per_block];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "mean_of_counts",
        "an integer mean of as many numbers as there are, at least one",
        """
        uint i = thread_position_in_grid.x;
        y[i] = total[i] / metal::max(count[i], 1);
        """,
        {"total": integers(0, 1000, 64), "count": mx.arange(64) % 7},
        {"y": ((64,), I32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda total, count: total // np.maximum(count, 1),
        mistakes=(
            mistake(
                "an integer divided by zero",
                "undefined-behaviour",
                {"metal::max(count[i], 1);": "count[i];  // <- here"},
            ),
        ),
    ),
    Case(
        "linear_index",
        "an index of three dimensions in int, which is large enough for it",
        """
        int3 p = int3(thread_position_in_grid);
        int at = (p.z * x_shape[1] + p.y) * x_shape[2] + p.x;
        y[at] = x[at] + bias[p.x];
        """,
        {"x": normal(3, 5, 8), "bias": normal(8, seed=1)},
        {"y": ((3, 5, 8), F32)},
        (8, 5, 3),
        (8, 2, 2),
        lambda x, bias: x + bias,
        mistakes=(
            mistake(
                "planes as far apart as rows should be",
                "race-write-after-write",
                {
                    "(p.z * x_shape[1] + p.y) * x_shape[2] + p.x;": (
                        "(p.z + p.y) * x_shape[2] + p.x;"
                    ),
                    "y[at] = x[at] + bias[p.x];": "y[at] = x[at] + bias[p.x] * p.z;  // <- here",
                },
            ),
        ),
    ),
    Case(
        "share_of_table",
        "a number of elements beyond int, in float",
        """
        uint i = thread_position_in_grid.x;
        float total = float(rows) * float(columns);
        y[i] = x[i] / total;
        """,
        {"x": normal(64), "rows": mx.array(70_000), "columns": mx.array(50_257)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x, rows, columns: x / (70_000 * 50_257),
        mistakes=(
            mistake(
                "a product of int that overflows before it is a float",
                "undefined-behaviour",
                {"float(rows) * float(columns);": "rows * columns;  // <- here"},
            ),
        ),
    ),
    Case(
        "fixed_point",
        "a product of numbers with 16 bits behind the point, in 64 bits",
        """
        uint i = thread_position_in_grid.x;
        y[i] = int(long(a[i]) * b[i] >> 16);
        """,
        {
            "a": integers(-(1 << 20), 1 << 20, 64),
            "b": integers(-(1 << 20), 1 << 20, 64, seed=1),
        },
        {"y": ((64,), I32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda a, b: a.astype(np.int64) * b >> 16,
        mistakes=(
            mistake(
                "a product of fixed point numbers that int cannot hold",
                "undefined-behaviour",
                {"int(long(a[i]) * b[i] >> 16);": "a[i] * b[i] >> 16;  // <- here"},
            ),
        ),
    ),
]
