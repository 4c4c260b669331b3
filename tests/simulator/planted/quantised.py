"""Numbers in few bits: packed, unpacked and multiplied."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, integers, mistake, normal

F16, F32, BF16 = mx.float16, mx.float32, mx.bfloat16
I8, I32, U8, U32 = mx.int8, mx.int32, mx.uint8, mx.uint32


def _unpacked(w: np.ndarray) -> np.ndarray:
    """The eight numbers of 4 bits in each word, the lowest bits first."""
    shifts = 4 * np.arange(8, dtype=np.uint32)
    return ((w[..., None] >> shifts) & 15).reshape(*w.shape[:-1], -1)


def _matvec(w: np.ndarray, scales: np.ndarray, biases: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (_unpacked(w) * np.repeat(scales, 32, 1) + np.repeat(biases, 32, 1)) @ x


CASES = [
    Case(
        "quantised_matvec",
        "a product with 4-bit weights in groups of 32, a SIMD-group a row",
        """
        uint row = thread_position_in_grid.y, lane = thread_index_in_simdgroup;
        uint words = w_shape[1], groups = scales_shape[1];
        float sum = 0;
        for (uint word = lane; word < words; word += 32) {
            uint packed = w[row * words + word];
            float scale = scales[row * groups + word / 4], bias = biases[row * groups + word / 4];
            for (uint j = 0; j < 8; ++j) {
                float weight = float((packed >> (4 * j)) & 15) * scale + bias;
                sum += weight * x[8 * word + j];
            }
        }
        sum = simd_sum(sum);
        if (lane == 0) y[row] = sum;
        """,
        {
            "w": integers(0, 2**32, 6, 40, dtype=U32),
            "scales": normal(6, 10, seed=1) / 16,
            "biases": normal(6, 10, seed=2),
            "x": normal(320, seed=3) / 16,
        },
        {"y": ((6,), F32)},
        (32, 6, 1),
        (32, 2, 1),
        _matvec,
        mistakes=(
            mistake(
                "the scale of a group of another size",
                "out-of-bounds",
                {
                    "scales[row * groups + word / 4],": "scales[row * groups + word / 2],",
                    "biases[row * groups + word / 4];": (
                        "biases[row * groups + word / 4];  // <- here"
                    ),
                },
            ),
            mistake(
                "nine numbers of four bits in a word",
                "undefined-behaviour",
                {
                    "uint j = 0; j < 8; ++j": "uint j = 0; j < 9; ++j",
                    "float weight = float((packed >> (4 * j)) & 15) * scale + bias;": (
                        "float weight = float((packed >> (4 * j)) & 15) * scale + bias;  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "pack_bits",
        "32 bools as a word by a vote of a SIMD-group",
        """
        uint i = thread_position_in_grid.x;
        ulong votes = ulong(simd_ballot(x[i] > 0));
        if (i % 32 == 0) y[i / 32] = uint(votes);
        """,
        {"x": normal(128)},
        {"y": ((4,), U32)},
        (128, 1, 1),
        (64, 1, 1),
        lambda x: ((x > 0).reshape(4, 32) * 2 ** np.arange(32, dtype=np.uint64)).sum(1),
        mistakes=(
            mistake(
                "all lanes store one word",
                "race-same-value race-write-after-write",
                {
                    "if (i % 32 == 0) y[i / 32] = uint(votes);": (
                        "y[i / 32] = uint(votes);  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "unpack_bits",
        "a thread a bit",
        """
        uint i = thread_position_in_grid.x;
        y[i] = (w[i / 32] >> (i % 32)) & 1;
        """,
        {"w": integers(0, 2**32, 9, dtype=U32)},
        {"y": ((288,), mx.bool_)},
        (288, 1, 1),
        (96, 1, 1),
        lambda w: ((w[:, None] >> np.arange(32, dtype=np.uint32)) & 1).ravel() != 0,
        mistakes=(
            mistake(
                "bits of words of 16",
                "out-of-bounds",
                {
                    "y[i] = (w[i / 32] >> (i % 32)) & 1;": (
                        "y[i] = (w[i / 16] >> (i % 32)) & 1;  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "quantise_rows",
        "rows as int8 with a scale each, rounded and clamped",
        """
        uint row = thread_position_in_grid.y, lane = thread_index_in_simdgroup;
        float v = float(x[row * 32 + lane]);
        float scale = metal::max(simd_max(metal::abs(v)) / 127.0f, 1e-8f);
        y[row * 32 + lane] = char(metal::clamp(metal::rint(v / scale), -127.0f, 127.0f));
        if (lane == 0) scales[row] = scale;
        """,
        {"x": normal(5, 32, dtype=F16)},
        {"y": ((5, 32), I8), "scales": ((5,), F32)},
        (32, 5, 1),
        (32, 5, 1),
        lambda x: (
            np.rint(np.float32(x) / (np.abs(np.float32(x)).max(1, keepdims=True) / 127)),
            np.abs(np.float32(x)).max(1) / 127,
        ),
        mistakes=(
            mistake(
                "a float outside the range of char",
                "float-to-int",
                {
                    "char(metal::clamp(metal::rint(v / scale), -127.0f, 127.0f));": (
                        "char(metal::rint(v / scale * 2));  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "int8_dot",
        "products of bytes summed in int, which is wide enough",
        """
        uint row = thread_position_in_grid.x;
        int sum = 0;
        for (int j = 0; j < a_shape[1]; ++j) sum += int(a[row * a_shape[1] + j]) * int(b[j]);
        y[row] = sum;
        """,
        {
            "a": integers(-128, 128, 32, 48, dtype=I8),
            "b": integers(-128, 128, 48, seed=1, dtype=I8),
        },
        {"y": ((32,), I32)},
        (32, 1, 1),
        (32, 1, 1),
        lambda a, b: a.astype(np.int32) @ b.astype(np.int32),
    ),
    Case(
        "bits_of_float",
        "a power of two by the bits of a float, and back",
        """
        uint i = thread_position_in_grid.x;
        uint bits = as_type<uint>(x[i]);
        y[i] = as_type<float>(bits & 0xff800000u);
        """,
        {"x": normal(64)},
        {"y": ((64,), F32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: np.copysign(2.0 ** np.floor(np.log2(np.abs(x))), x),
    ),
    Case(
        "bfloat_sum",
        "bfloat summed in float and rounded once",
        """
        uint row = thread_position_in_grid.x, n = x_shape[1];
        float sum = 0;
        for (uint j = 0; j < n; ++j) sum += float(x[row * n + j]);
        y[row] = T(sum);
        """,
        {"x": normal(32, 20, dtype=BF16)},
        {"y": ((32,), BF16)},
        (32, 1, 1),
        (32, 1, 1),
        lambda x: x.sum(1),
        template=(("T", BF16),),
        mistakes=(
            mistake(
                "a float that becomes a bfloat unasked",
                "not-metal compile-error",
                {"y[row] = T(sum);": "y[row] = sum;  // <- here"},
            ),
        ),
    ),
    Case(
        "gray_of_pixels",
        "pixels of three bytes, read byte by byte",
        """
        uint i = thread_position_in_grid.x;
        y[i] = (uint(x[3 * i]) + x[3 * i + 1] + x[3 * i + 2]) / 3;
        """,
        {"x": integers(0, 256, 70, 3, dtype=U8)},
        {"y": ((64,), U32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: x[:64].astype(np.uint32).sum(1) // 3,
        mistakes=(
            mistake(
                "a vector of four bytes loaded where a pixel of three begins",
                "misaligned",
                {
                    "y[i] = (uint(x[3 * i]) + x[3 * i + 1] + x[3 * i + 2]) / 3;": """
        uchar4 pixel = *(const device uchar4*)(x + 3 * i);  // <- here
        y[i] = (uint(pixel.x) + pixel.y + pixel.z) / 3;"""
                },
            ),
        ),
    ),
]
