"""Threads of a threadgroup that do not wait for each other, or store over each other."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from planted.cases import Case, mistake, normal

from .bug import Bug

F32 = mx.float32


def _gradient(k: np.ndarray, w: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The loop over time backwards, a matrix of state a head."""
    steps, heads, width = k.shape
    state, out = np.zeros((heads, width, width), np.float32), np.empty_like(k)
    for t in reversed(range(steps)):
        out[t] = np.einsum("hij,hj->hi", state, k[t])
        state = state * w[t][:, None] + g[t][:, :, None] * k[t][:, None]
    return out


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    scores = q @ k.T
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


# The rows of a step are stored into threadgroup memory, used until the end of the loop's body,
# and stored over at its beginning.
LOOP_WITHOUT_LAST_BARRIER = Bug(
    "RafaelUI/rwkv-mlx",
    ("model/wkv7.py:173", "model/wkv7_checkpoint.py:157"),
    "A SIMD-group that is ahead stores the next step's decays while another still multiplies "
    "with the last step's: gradients are off by 5 to 13 %, and by another amount each time.",
    Case(
        "backward_scan",
        "a loop over time backwards, whose rows all threads read",
        """
        threadgroup float key[64], decay[64];
        uint i = thread_position_in_threadgroup.x, head = threadgroup_position_in_grid.x;
        float row[64];
        for (uint j = 0; j < 64; ++j) row[j] = 0;
        for (int t = k_shape[0] - 1; t >= 0; --t) {
            uint at = (t * k_shape[1] + head) * 64;
            key[i] = k[at + i];
            decay[i] = w[at + i];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            float sum = 0;
            for (uint j = 0; j < 64; ++j) sum += row[j] * key[j];
            y[at + i] = sum;
            for (uint j = 0; j < 64; ++j) row[j] = row[j] * decay[j] + g[at + i] * key[j];
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        """,
        {
            "k": normal(4, 2, 64) / 8,
            "w": mx.sigmoid(normal(4, 2, 64, seed=1)),
            "g": normal(4, 2, 64, seed=2),
        },
        {"y": ((4, 2, 64), F32)},
        (128, 1, 1),
        (64, 1, 1),
        _gradient,
        mistakes=(
            mistake(
                "no barrier at the end of a loop over time",
                "race-write-after-read race-read-after-write",
                {
                    "row[j] = row[j] * decay[j] + g[at + i] * key[j]; "
                    "threadgroup_barrier(mem_flags::mem_threadgroup); }": (
                        "row[j] = row[j] * decay[j] + g[at + i] * key[j];  // <- here\n        }"
                    )
                },
            ),
        ),
    ),
)

PARTS_NOT_MERGED = Bug(
    "lisihao/FlashMLX",
    ("src/flashmlx/mac/attention_gqa_opt.py:136",),
    "Every SIMD-group attends to its part of the keys, normalises that and stores it as the whole: "
    "the output is the part of whichever SIMD-group stores last.",
    Case(
        "attention_of_parts",
        "parts of the keys by SIMD-groups, which one of them merges",
        """
        threadgroup float bests[4], sums[4], results[4][32];
        uint part = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
        uint query = threadgroup_position_in_grid.x, keys = k_shape[0];
        uint size = (keys + 3) / 4, end = metal::min((part + 1) * size, keys);
        float own = q[query * 32 + lane], best = -INFINITY, sum = 0, result = 0;
        for (uint key = part * size; key < end; ++key) {
            float score = simd_sum(own * k[key * 32 + lane]);
            float next = metal::max(best, score);
            float scale = metal::precise::exp(best - next);
            float weight = metal::precise::exp(score - next);
            sum = sum * scale + weight;
            result = result * scale + weight * v[key * 32 + lane];
            best = next;
        }
        results[part][lane] = result;
        if (lane == 0) {
            bests[part] = best;
            sums[part] = sum;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (part > 0) return;
        best = metal::max(metal::max(bests[0], bests[1]), metal::max(bests[2], bests[3]));
        sum = result = 0;
        for (uint j = 0; j < 4; ++j) {
            float scale = metal::precise::exp(bests[j] - best);
            sum += sums[j] * scale;
            result += results[j][lane] * scale;
        }
        y[query * 32 + lane] = result / sum;
        """,
        {"q": normal(3, 32) / 6, "k": normal(22, 32, seed=1), "v": normal(22, 32, seed=2)},
        {"y": ((3, 32), F32)},
        (384, 1, 1),
        (128, 1, 1),
        _attention,
        mistakes=(
            mistake(
                "parts that are each stored as the whole",
                "race-write-after-write",
                {
                    "if (part > 0) return;": "",
                    "best = metal::max(metal::max(bests[0], bests[1]), "
                    "metal::max(bests[2], bests[3])); sum = result = 0;": "",
                    "for (uint j = 0; j < 4; ++j) { "
                    "float scale = metal::precise::exp(bests[j] - best); "
                    "sum += sums[j] * scale; result += results[j][lane] * scale; }": "",
                    "y[query * 32 + lane] = result / sum;": (
                        "y[query * 32 + lane] = result / sum;  // <- here"
                    ),
                },
            ),
        ),
    ),
)
