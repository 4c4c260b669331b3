"""Attention with an online softmax, and what models have beside it: rotations and caches."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, integers, mistake, normal

I32, U32, F16, F32 = mx.int32, mx.uint32, mx.float16, mx.float32


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool) -> np.ndarray:
    scores = q @ k.T / np.sqrt(np.float32(q.shape[1]))
    if causal:
        scores = np.where(np.tri(*scores.shape, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


def _rope(x: np.ndarray) -> np.ndarray:
    half = x.shape[1] // 2
    angle = np.arange(len(x))[:, None] * 2.0 ** (-13 * np.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], 1)


def _pages(cache: np.ndarray, pages: np.ndarray) -> np.ndarray:
    return np.where(pages[:, None] >= 0, cache[np.maximum(pages, 0)], 0)


CASES = [
    Case(
        "causal_attention",
        "a SIMD-group a query: each has another number of keys, and simd_sum inside the loop",
        """
        uint query = threadgroup_position_in_grid.x * 4 + simdgroup_index_in_threadgroup;
        uint lane = thread_index_in_simdgroup;
        float own = q[query * 32 + lane] * metal::precise::rsqrt(32.0f);
        float best = -INFINITY, sum = 0, result = 0;
        for (uint key = 0; key <= query; ++key) {
            float score = simd_sum(own * k[key * 32 + lane]);
            float next = metal::max(best, score);
            float old_scale = metal::precise::exp(best - next);
            float weight = metal::precise::exp(score - next);
            sum = sum * old_scale + weight;
            result = result * old_scale + weight * v[key * 32 + lane];
            best = next;
        }
        y[query * 32 + lane] = result / sum;
        """,
        {"q": normal(8, 32), "k": normal(8, 32, seed=1), "v": normal(8, 32, seed=2)},
        {"y": ((8, 32), F32)},
        (256, 1, 1),
        (128, 1, 1),
        lambda q, k, v: _attention(q, k, v, True),
        mistakes=(
            mistake(
                "a barrier in a loop that SIMD-groups leave at different times",
                "barrier-divergence barrier-after-exit",
                {
                    "best = next; }": """
            best = next;
            threadgroup_barrier(mem_flags::mem_threadgroup);  // <- here
        }"""
                },
            ),
            mistake(
                "an accumulator that is set for all queries but the first",
                "uninitialised-local",
                {
                    "sum = 0, result = 0;": "sum = 0, result; if (query > 0) result = 0;",
                    "result = result * old_scale + weight * v[key * 32 + lane];": (
                        "result = result * old_scale + weight * v[key * 32 + lane];  // <- here"
                    ),
                },
            ),
            mistake(
                "one key more than there are",
                "out-of-bounds",
                {
                    "key <= query; ++key": "key <= query + 1; ++key",
                    "float score = simd_sum(own * k[key * 32 + lane]);": (
                        "float score = simd_sum(own * k[key * 32 + lane]);  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "attention_tiled",
        "keys and values in tiles that four SIMD-groups load together",
        """
        threadgroup float k_tile[8][32], v_tile[8][32];
        uint simdgroup = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
        uint query = threadgroup_position_in_grid.x * 4 + simdgroup;
        float own = q[query * 32 + lane] * metal::precise::rsqrt(32.0f);
        float best = -INFINITY, sum = 0, result = 0;
        for (uint first = 0; first < uint(k_shape[0]); first += 8) {
            for (uint j = simdgroup; j < 8; j += 4) {
                k_tile[j][lane] = k[(first + j) * 32 + lane];
                v_tile[j][lane] = v[(first + j) * 32 + lane];
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint j = 0; j < 8; ++j) {
                float score = simd_sum(own * k_tile[j][lane]);
                float next = metal::max(best, score);
                float weight = metal::precise::exp(score - next);
                float old_scale = metal::precise::exp(best - next);
                sum = sum * old_scale + weight;
                result = result * old_scale + weight * v_tile[j][lane];
                best = next;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        y[query * 32 + lane] = result / sum;
        """,
        {"q": normal(8, 32), "k": normal(24, 32, seed=1), "v": normal(24, 32, seed=2)},
        {"y": ((8, 32), F32)},
        (256, 1, 1),
        (128, 1, 1),
        lambda q, k, v: _attention(q, k, v, False),
        mistakes=(
            mistake(
                "no barrier before the next tile of keys",
                "race-write-after-read race-read-after-write",
                {
                    "best = next; } threadgroup_barrier(mem_flags::mem_threadgroup); }": """
                best = next;
            }
        }""",
                    "k_tile[j][lane] = k[(first + j) * 32 + lane];": (
                        "k_tile[j][lane] = k[(first + j) * 32 + lane];  // <- here"
                    ),
                },
            ),
            mistake(
                "a tile of which the last row is not loaded",
                "uninitialised-read",
                {
                    "for (uint j = simdgroup; j < 8; j += 4) {": (
                        "for (uint j = simdgroup; j < 7; j += 4) {"
                    ),
                    "result = result * old_scale + weight * v_tile[j][lane];": (
                        "result = result * old_scale + weight * v_tile[j][lane];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "attention_split",
        "four SIMD-groups take a part of the keys each; one merges their parts",
        """
        threadgroup float bests[4], sums[4], results[4][32];
        uint part = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
        uint query = threadgroup_position_in_grid.x;
        float own = q[query * 32 + lane] * metal::precise::rsqrt(32.0f);
        float best = -INFINITY, sum = 0, result = 0;
        for (uint key = part; key < uint(k_shape[0]); key += 4) {
            float score = simd_sum(own * k[key * 32 + lane]);
            float next = metal::max(best, score);
            float weight = metal::precise::exp(score - next);
            float old_scale = metal::precise::exp(best - next);
            sum = sum * old_scale + weight;
            result = result * old_scale + weight * v[key * 32 + lane];
            best = next;
        }
        results[part][lane] = result;
        if (lane == 0) {
            bests[part] = best;
            sums[part] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (part == 0) {
            float all = metal::max(metal::max(bests[0], bests[1]), metal::max(bests[2], bests[3]));
            float total = 0, merged = 0;
            for (uint j = 0; j < 4; ++j) {
                float scale = metal::precise::exp(bests[j] - all);
                total += sums[j] * scale;
                merged += results[j][lane] * scale;
            }
            y[query * 32 + lane] = merged / total;
        }
        """,
        {"q": normal(2, 32), "k": normal(22, 32, seed=1), "v": normal(22, 32, seed=2)},
        {"y": ((2, 32), F32)},
        (256, 1, 1),
        (128, 1, 1),
        lambda q, k, v: _attention(q, k, v, False),
        mistakes=(
            mistake(
                "parts merged after a SIMD-group's barrier",
                "race-read-after-write race-write-after-read",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": (
                        "simdgroup_barrier(mem_flags::mem_threadgroup);"
                    ),
                    "merged += results[j][lane] * scale;": (
                        "merged += results[j][lane] * scale;  // <- here"
                    ),
                },
            ),
            mistake(
                "parts that all store one output",
                "race-same-value race-write-after-write",
                {
                    "if (part == 0) {": "if (part < 4) {",
                    "y[query * 32 + lane] = merged / total;": (
                        "y[query * 32 + lane] = merged / total;  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "rope",
        "pairs half a row apart",
        """
        uint2 p = thread_position_in_grid.xy;
        uint width = x_shape[1], half_width = width / 2;
        float angle = p.y * metal::precise::exp2(-13.0f * p.x / half_width);
        float cosine = metal::precise::cos(angle), sine = metal::precise::sin(angle);
        float a = x[p.y * width + p.x], b = x[p.y * width + p.x + half_width];
        y[p.y * width + p.x] = a * cosine - b * sine;
        y[p.y * width + p.x + half_width] = a * sine + b * cosine;
        """,
        {"x": normal(5, 16)},
        {"y": ((5, 16), F32)},
        (8, 5, 1),
        (8, 5, 1),
        _rope,
        mistakes=(
            mistake(
                "pairs a whole row apart",
                "out-of-bounds",
                {
                    "b = x[p.y * width + p.x + half_width];": (
                        "b = x[p.y * width + p.x + width];  // <- here"
                    )
                },
            ),
            mistake(
                "neighbouring pairs stored over each other",
                "race-write-after-write",
                {
                    "y[p.y * width + p.x + half_width] = a * sine + b * cosine;": (
                        "y[p.y * width + p.x + 1] = a * sine + b * cosine;  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "gather_pages",
        "rows of a cache by a table that pads with -1, behind a guard",
        """
        uint2 p = thread_position_in_grid.xy;
        int page = pages[p.y];
        y[p.y * 16 + p.x] = page >= 0 ? cache[page * 16 + int(p.x)] : T(0);
        """,
        {
            "cache": normal(6, 16, dtype=F16),
            "pages": mx.array([3, 0, 5, -1, 2, -1, -1, 1, 4], I32),
        },
        {"y": ((9, 16), F16)},
        (16, 9, 1),
        (16, 3, 1),
        _pages,
        template=(("T", F16),),
        mistakes=(
            mistake(
                "padding used as a page",
                "out-of-bounds",
                {
                    "page >= 0 ? cache[page * 16 + int(p.x)] : T(0);": (
                        "cache[page * 16 + int(p.x)];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "gather_guarded_pages",
        "rows of a cache by pages that may be no pages at all, behind a guard",
        """
        uint2 p = thread_position_in_grid.xy;
        uint page = pages[p.y];
        bool is_there = page < uint(cache_shape[0]);
        y[p.y * 16 + p.x] = is_there ? cache[page * 16 + p.x] : 0.0f;
        """,
        {"cache": normal(6, 16), "pages": mx.array([3, 0, 1 << 28, 5, 3 << 28, 2, 4, 1], U32)},
        {"y": ((8, 16), F32)},
        (16, 8, 1),
        (16, 4, 1),
        lambda cache, pages: np.where(pages[:, None] < 6, cache[pages % 6], 0),
        mistakes=(
            mistake(
                "a page that is none, whose place wraps into the cache",
                "index-wrap",
                {
                    "is_there ? cache[page * 16 + p.x] : 0.0f;": (
                        "cache[page * 16 + p.x];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "append_to_cache",
        "a copy of a cache with new rows at places that differ",
        """
        uint2 p = thread_position_in_grid.xy;
        float value = cache[p.y * 16 + p.x];
        for (int j = 0; j < rows_shape[0]; ++j) {
            if (uint(places[j]) == p.y) value = rows[j * 16 + p.x];
        }
        y[p.y * 16 + p.x] = value;
        """,
        {
            "cache": normal(12, 16),
            "rows": normal(3, 16, seed=1),
            "places": mx.array([7, 2, 11], I32),
        },
        {"y": ((12, 16), F32)},
        (16, 12, 1),
        (16, 4, 1),
        lambda cache, rows, places: np.stack(
            [rows[list(places).index(i)] if i in places else cache[i] for i in range(12)]
        ),
        mistakes=(
            mistake(
                "rows that are stored while others copy what was there",
                "race-write-after-write",
                {
                    "for (int j = 0; j < rows_shape[0]; ++j) { "
                    "if (uint(places[j]) == p.y) value = rows[j * 16 + p.x]; }": "",
                    "y[p.y * 16 + p.x] = value;": """
        y[p.y * 16 + p.x] = value;  // <- here
        if (p.y < 3) y[places[p.y] * 16 + p.x] = rows[p.y * 16 + p.x];""",
                },
            ),
        ),
    ),
    Case(
        "embedding",
        "rows of a table by tokens that are checked",
        """
        uint2 p = thread_position_in_grid.xy;
        int token = metal::clamp(tokens[p.y], 0, table_shape[0] - 1);
        y[p.y * 8 + p.x] = table[token * 8 + int(p.x)];
        """,
        {"table": normal(20, 8), "tokens": integers(-2, 25, 12)},
        {"y": ((12, 8), F32)},
        (8, 12, 1),
        (8, 4, 1),
        lambda table, tokens: table[np.clip(tokens, 0, 19)],
        mistakes=(
            mistake(
                "a token beyond the table",
                "out-of-bounds",
                {
                    "int token = metal::clamp(tokens[p.y], 0, table_shape[0] - 1);": (
                        "int token = metal::max(tokens[p.y], 0);"
                    ),
                    "y[p.y * 8 + p.x] = table[token * 8 + int(p.x)];": (
                        "y[p.y * 8 + p.x] = table[token * 8 + int(p.x)];  // <- here"
                    ),
                },
            ),
        ),
    ),
]
