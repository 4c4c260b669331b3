"""Loops over time and over lanes: prefix sums, recurrences, sorts and searches."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np

from .cases import Case, mistake, normal

I32, U32, F32 = mx.int32, mx.uint32, mx.float32


def _ssm(x: np.ndarray, decay: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    state, rows = np.zeros((x.shape[1], 4), np.float32), []
    for t in range(len(x)):
        state = state * decay + x[t][:, None] * b[t]
        rows.append(state @ c[t])
    return np.stack(rows)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _lstm(gates: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, f, g, o = np.split(gates, 4, axis=1)
    new = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(new), new


def _recurrence(x: np.ndarray) -> np.ndarray:
    rows = [x[0]]
    for row in x[1:]:
        rows.append(rows[-1] * np.float32(0.5) + row)
    return np.stack(rows)


CASES = [
    Case(
        "prefix_sum",
        "sums before each element: of SIMD-groups, then of what stands before them",
        """
        threadgroup float totals[4];
        uint i = thread_position_in_grid.x, simdgroup = simdgroup_index_in_threadgroup;
        float v = x[i];
        float before = simd_prefix_exclusive_sum(v);
        if (thread_index_in_simdgroup == 31) totals[simdgroup] = before + v;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint j = 0; j < simdgroup; ++j) before += totals[j];
        y[i] = before;
        """,
        {"x": normal(256)},
        {"y": ((256,), F32)},
        (256, 1, 1),
        (128, 1, 1),
        lambda x: (x.reshape(2, 128).cumsum(1) - x.reshape(2, 128)).ravel(),
        mistakes=(
            mistake(
                "no barrier before the totals of other SIMD-groups are read",
                "race-read-after-write race-write-after-read",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup); "
                    "for (uint j = 0; j < simdgroup; ++j) before += totals[j];": (
                        "for (uint j = 0; j < simdgroup; ++j) before += totals[j];  // <- here"
                    )
                },
            ),
            mistake(
                "a total of a SIMD-group that does not exist",
                "out-of-bounds undefined-behaviour",
                {
                    "for (uint j = 0; j < simdgroup; ++j) before += totals[j];": (
                        "for (uint j = 0; j < simdgroup; ++j) before += totals[j + 4];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "cumulative_max",
        "steps of doubling length, with a barrier between loads and stores and one after",
        """
        threadgroup float v[64];
        uint i = thread_position_in_threadgroup.x, row = threadgroup_position_in_grid.x * 64;
        v[i] = x[row + i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint step = 1; step < 64; step *= 2) {
            float other = i >= step ? v[i - step] : -INFINITY;
            threadgroup_barrier(mem_flags::mem_threadgroup);
            v[i] = metal::max(v[i], other);
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        y[row + i] = v[i];
        """,
        {"x": normal(128)},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (64, 1, 1),
        lambda x: np.maximum.accumulate(x.reshape(2, 64), 1).ravel(),
        mistakes=(
            mistake(
                "no barrier between what others load and the store over it",
                "race-write-after-read race-read-after-write",
                {
                    "threadgroup_barrier(mem_flags::mem_threadgroup); "
                    "v[i] = metal::max(v[i], other);": (
                        "v[i] = metal::max(v[i], other);  // <- here"
                    )
                },
            ),
            mistake(
                "a step below the first element",
                "out-of-bounds",
                {
                    "float other = i >= step ? v[i - step] : -INFINITY;": (
                        "float other = v[int(i) - int(step)];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "ssm_scan",
        "a loop over time with the state in a local array, passed to a helper by pointer",
        """
        uint channel = thread_position_in_grid.x, channels = x_shape[1];
        float state[4] = {0, 0, 0, 0};
        float rate = decay[0];
        for (int t = 0; t < x_shape[0]; ++t) {
            step(state, rate, x[t * channels + channel], b + t * 4);
            float sum = 0;
            for (int s = 0; s < 4; ++s) sum += state[s] * c[t * 4 + s];
            y[t * channels + channel] = sum;
        }
        """,
        {
            "x": normal(6, 32),
            "decay": mx.array([0.75]),
            "b": normal(6, 4, seed=1),
            "c": normal(6, 4, seed=2),
        },
        {"y": ((6, 32), F32)},
        (32, 1, 1),
        (32, 1, 1),
        _ssm,
        header="""
        void step(thread float* state, float decay, float x, const device float* b) {
            for (int s = 0; s < 4; ++s) state[s] = state[s] * decay + x * b[s];
        }
        """,
        mistakes=(
            mistake(
                "a local array overrun through a pointer",
                "local-out-of-bounds",
                {
                    "for (int s = 0; s < 4; ++s) state[s] = state[s] * decay + x * b[s];": (
                        "for (int s = 1; s < 5; ++s) state[s] = state[s] * decay + x * b[s - 1];"
                        "  // <- here"
                    )
                },
            ),
            mistake(
                "a state that is used before it is set",
                "uninitialised-local",
                {
                    "float state[4] = {0, 0, 0, 0};": "float state[4];",
                    "state[s] = state[s] * decay + x * b[s];": (
                        "state[s] = state[s] * decay + x * b[s];  // <- here"
                    ),
                },
            ),
        ),
    ),
    Case(
        "recurrence_in_output",
        "a thread reads of an output what it stored the step before",
        """
        uint i = thread_position_in_grid.x, n = x_shape[1];
        y[i] = x[i];
        for (int t = 1; t < x_shape[0]; ++t) {
            y[t * n + i] = y[(t - 1) * n + i] * 0.5f + x[t * n + i];
        }
        """,
        {"x": normal(5, 64)},
        {"y": ((5, 64), F32)},
        (64, 1, 1),
        (32, 1, 1),
        _recurrence,
        mistakes=(
            mistake(
                "the step that is not stored yet",
                "uninitialised-read",
                {
                    "y[(t - 1) * n + i] * 0.5f + x[t * n + i];": (
                        "y[t * n + i] * 0.5f + x[t * n + i];  // <- here"
                    )
                },
            ),
            mistake(
                "the step before of a neighbour in another threadgroup",
                "race-read-after-write race-write-after-read uninitialised-read",
                {
                    "y[(t - 1) * n + i] * 0.5f + x[t * n + i];": (
                        "y[(t - 1) * n + (i + 32) % n] * 0.5f + x[t * n + i];  // <- here"
                    )
                },
            ),
        ),
    ),
    Case(
        "lstm_cell",
        "a batch of cells: four gates a row",
        """
        uint2 p = thread_position_in_grid.xy;
        uint hidden = cell_shape[1];
        uint at = p.y * hidden + p.x, gate = p.y * 4 * hidden + p.x;
        float i = sigmoid(gates[gate]), f = sigmoid(gates[gate + hidden]);
        float g = metal::precise::tanh(gates[gate + 2 * hidden]);
        float o = sigmoid(gates[gate + 3 * hidden]);
        float next = f * cell[at] + i * g;
        new_cell[at] = next;
        h[at] = o * metal::precise::tanh(next);
        """,
        {"gates": normal(3, 64), "cell": normal(3, 16, seed=1)},
        {"h": ((3, 16), F32), "new_cell": ((3, 16), F32)},
        (16, 3, 1),
        (16, 3, 1),
        _lstm,
        header="""
        float sigmoid(float x) { return 1 / (1 + metal::precise::exp(-x)); }
        """,
        mistakes=(
            mistake(
                "the gates of a batch in another order than they are stored",
                "out-of-bounds",
                {
                    "gate = p.y * 4 * hidden + p.x;": "gate = p.x * 4 * hidden + p.y;",
                    "float o = sigmoid(gates[gate + 3 * hidden]);": (
                        "float o = sigmoid(gates[gate + 3 * hidden]);  // <- here"
                    ),
                },
            ),
            mistake(
                "a second output that one row never gets",
                "unwritten-output",
                {"new_cell[at] = next;": "if (p.y > 0) new_cell[at] = next;"},
            ),
        ),
    ),
    Case(
        "ring_of_tokens",
        "a buffer that turns: the place of a token is a remainder",
        """
        uint i = thread_position_in_grid.x;
        uint place = (start + i) % ring_shape[0];
        y[i] = ring[place];
        """,
        {"ring": normal(48), "start": mx.array(40, U32)},
        {"y": ((48,), F32)},
        (48, 1, 1),
        (16, 1, 1),
        lambda ring, start: np.roll(ring, -int(start)),
        mistakes=(
            mistake(
                "a place in a ring without the remainder",
                "out-of-bounds",
                {
                    "uint place = (start + i) % ring_shape[0];": "uint place = start + i;",
                    "y[i] = ring[place];": "y[i] = ring[place];  // <- here",
                },
            ),
        ),
    ),
    Case(
        "sums_of_segments",
        "segments of a flat array by their offsets, an empty one among them",
        """
        uint segment = thread_position_in_grid.x;
        float sum = 0;
        for (int j = offsets[segment]; j < offsets[segment + 1]; ++j) sum += x[j];
        y[segment] = sum;
        """,
        {
            "x": normal(40),
            "offsets": mx.array([0, 3, 3, 10, 11, 20, 31, 36, 40], I32),
        },
        {"y": ((8,), F32)},
        (8, 1, 1),
        (8, 1, 1),
        lambda x, offsets: np.array([x[a:b].sum() for a, b in itertools.pairwise(offsets)]),
        mistakes=(
            mistake(
                "an offset behind the last one",
                "out-of-bounds",
                {
                    "float sum = 0;": """
        float sum = 0;
        int end = offsets[segment + 2];  // <- here""",
                    "j < offsets[segment + 1];": "j < end;",
                },
            ),
        ),
    ),
]
