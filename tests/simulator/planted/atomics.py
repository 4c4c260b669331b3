"""Atomics, and threads that agree about memory in other ways."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .cases import Case, integers, mistake, normal

I32, U32, F32 = mx.int32, mx.uint32, mx.float32


_COUNTS = {"x": integers(0, 16, 512)}


def _histogram(x: np.ndarray) -> np.ndarray:
    return np.bincount(x, minlength=16)


def _scatter(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    y = np.zeros(16, np.float32)
    np.add.at(y, places, x)
    return y


CASES = [
    Case(
        "histogram",
        "atomic counts in an output that init_value clears",
        """
        uint i = thread_position_in_grid.x;
        atomic_fetch_add_explicit(&counts[x[i]], 1u, memory_order_relaxed);
        """,
        _COUNTS,
        {"counts": ((16,), U32)},
        (512, 1, 1),
        (64, 1, 1),
        _histogram,
        init_value=0,
        make={"atomic_outputs": True},
        mistakes=(
            mistake(
                "atomic counts without init_value",
                "uninitialised-read",
                {
                    "atomic_fetch_add_explicit(&counts[x[i]], 1u, memory_order_relaxed);": (
                        "atomic_fetch_add_explicit(&counts[x[i]], 1u, memory_order_relaxed);"
                        "  // <- here"
                    )
                },
                init_value=None,
            ),
            mistake(
                "a plain load of what others count atomically",
                "race-read-after-write race-write-after-read",
                {
                    "atomic_fetch_add_explicit(&counts[x[i]], 1u, memory_order_relaxed);": """
        device uint* plain = (device uint*)counts;
        if (plain[x[i]] < 1000) {  // <- here
            atomic_fetch_add_explicit(&counts[x[i]], 1u, memory_order_relaxed);
        }"""
                },
            ),
        ),
    ),
    Case(
        "histogram_plain",
        "a thread a bucket, which needs no atomics",
        """
        uint bucket = thread_position_in_grid.x;
        for (int i = 0; i < x_shape[0]; ++i) {
            if (uint(x[i]) == bucket) counts[bucket] += 1;
        }
        """,
        _COUNTS,
        {"counts": ((16,), U32)},
        (16, 1, 1),
        (16, 1, 1),
        _histogram,
        init_value=0,
        mistakes=(
            mistake(
                "a histogram in which threads count without atomics",
                "race-write-after-write race-read-after-write",
                {
                    "for (int i = 0; i < x_shape[0]; ++i) { "
                    "if (uint(x[i]) == bucket) counts[bucket] += 1; }": """
        for (int i = bucket; i < x_shape[0]; i += 16) {
            counts[x[i]] += 1;  // <- here
        }"""
                },
            ),
        ),
    ),
    Case(
        "histogram_in_threadgroups",
        "counts of a threadgroup, cleared by its threads, then added to the output",
        """
        threadgroup metal::atomic<uint> bins[16];
        uint t = thread_position_in_threadgroup.x;
        if (t < 16) atomic_store_explicit(&bins[t], 0u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint bucket = x[thread_position_in_grid.x];
        atomic_fetch_add_explicit(&bins[bucket], 1u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (t < 16) {
            uint count = atomic_load_explicit(&bins[t], memory_order_relaxed);
            atomic_fetch_add_explicit(&counts[t], count, memory_order_relaxed);
        }
        """,
        _COUNTS,
        {"counts": ((16,), U32)},
        (512, 1, 1),
        (128, 1, 1),
        _histogram,
        init_value=0,
        make={"atomic_outputs": True},
        mistakes=(
            mistake(
                "bins that are not cleared",
                "uninitialised-read",
                {
                    "if (t < 16) atomic_store_explicit(&bins[t], 0u, memory_order_relaxed);": (
                        "if (t < 8) atomic_store_explicit(&bins[t], 0u, memory_order_relaxed);"
                    ),
                    "atomic_fetch_add_explicit(&bins[bucket], 1u, memory_order_relaxed);": (
                        "atomic_fetch_add_explicit(&bins[bucket], 1u, memory_order_relaxed);"
                        "  // <- here"
                    ),
                },
            ),
            mistake(
                "bins that are cleared by plain stores without a barrier",
                "race-read-after-write race-write-after-read race-write-after-write",
                {
                    "if (t < 16) atomic_store_explicit(&bins[t], 0u, memory_order_relaxed); "
                    "threadgroup_barrier(mem_flags::mem_threadgroup);": """
        if (t < 16) ((threadgroup uint*)bins)[t] = 0;  // <- here""",
                },
            ),
        ),
    ),
    Case(
        "one_counter",
        "all threads of all threadgroups count on one atomic",
        """
        uint i = thread_position_in_grid.x;
        if (x[i] > 0) atomic_fetch_add_explicit(&count[0], 1u, memory_order_relaxed);
        """,
        {"x": normal(256)},
        {"count": ((1,), U32)},
        (256, 1, 1),
        (64, 1, 1),
        lambda x: (x > 0).sum(),
        init_value=0,
        make={"atomic_outputs": True},
        mistakes=(
            mistake(
                "threadgroups that wait for each other",
                "timeout",
                {
                    "if (x[i] > 0) "
                    "atomic_fetch_add_explicit(&count[0], 1u, memory_order_relaxed);": """
        atomic_fetch_add_explicit(&count[0], 1u, memory_order_relaxed);
        while (atomic_load_explicit(&count[0], memory_order_relaxed) < 256) {
        }"""
                },
                timeout=0.5,
            ),
        ),
    ),
    Case(
        "places_by_prefix",
        "places of what is kept by a sum over the lanes before, which no schedule changes",
        """
        uint i = thread_position_in_grid.x;
        bool is_kept = x[i] > 0;
        uint place = simd_prefix_exclusive_sum(is_kept ? 1u : 0u);
        uint count = simd_sum(is_kept ? 1u : 0u);
        if (is_kept) {
            atomic_store_explicit(&y[i / 32 * 32 + place], i, memory_order_relaxed);
        } else {
            uint rest = i % 32 - place;
            atomic_store_explicit(&y[i / 32 * 32 + count + rest], i, memory_order_relaxed);
        }
        """,
        {"x": normal(64)},
        {"y": ((64,), U32)},
        (64, 1, 1),
        (32, 1, 1),
        lambda x: (
            np.argsort((x <= 0).reshape(2, 32), 1, kind="stable").ravel() + np.repeat([0, 32], 32)
        ),
        make={"atomic_outputs": True},
        mistakes=(
            mistake(
                "an atomic counter used as a place",
                "schedule-dependent",
                {
                    "bool is_kept = x[i] > 0;": """
        bool is_kept = x[i] > 0;
        threadgroup metal::atomic<uint> taken;
        if (i % 32 == 0) atomic_store_explicit(&taken, 0u, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);""",
                    "uint place = simd_prefix_exclusive_sum(is_kept ? 1u : 0u);": """
        uint place = simd_prefix_exclusive_sum(is_kept ? 1u : 0u), taken_place = 0;
        if (is_kept) {
            taken_place = atomic_fetch_add_explicit(&taken, 1u, memory_order_relaxed);
        }""",
                    "atomic_store_explicit(&y[i / 32 * 32 + place], i, memory_order_relaxed);": (
                        "atomic_store_explicit(&y[i / 32 * 32 + taken_place], i,"
                        " memory_order_relaxed);"
                    ),
                },
                orders=3,
            ),
        ),
    ),
    Case(
        "scatter_add",
        "float atomics at places that occur several times",
        """
        uint i = thread_position_in_grid.x;
        atomic_fetch_add_explicit(&y[places[i]], x[i], memory_order_relaxed);
        """,
        {"x": normal(128), "places": integers(0, 16, 128)},
        {"y": ((16,), F32)},
        (128, 1, 1),
        (32, 1, 1),
        _scatter,
        init_value=0,
        make={"atomic_outputs": True},
        mistakes=(
            mistake(
                "two threads that add to one element without atomics",
                "race-write-after-write race-read-after-write",
                {
                    "atomic_fetch_add_explicit(&y[places[i]], x[i], memory_order_relaxed);": (
                        "y[places[i]] += x[i];  // <- here"
                    )
                },
                make={},
            ),
        ),
    ),
    Case(
        "scatter_unique",
        "plain stores at places that occur once each",
        """
        uint i = thread_position_in_grid.x;
        y[places[i]] = x[i];
        """,
        {"x": normal(128), "places": mx.array(np.random.default_rng(3).permutation(128))},
        {"y": ((128,), F32)},
        (128, 1, 1),
        (32, 1, 1),
        lambda x, places: x[np.argsort(places)],
        mistakes=(
            mistake(
                "two threads that store one element",
                "race-write-after-write",
                {"y[places[i]] = x[i];": "y[places[i] / 2] = x[i];  // <- here"},
            ),
        ),
    ),
    Case(
        "lock_handed_round",
        "SIMD-groups of a threadgroup take turns by an atomic, the last one first",
        """
        threadgroup metal::atomic<int> turn, value;
        uint simdgroup = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
        if (thread_position_in_threadgroup.x == 0) {
            atomic_store_explicit(&turn, 7, memory_order_relaxed);
            atomic_store_explicit(&value, 1, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (lane == 0) {
            while (atomic_load_explicit(&turn, memory_order_relaxed) != int(simdgroup)) {
            }
            int old = atomic_load_explicit(&value, memory_order_relaxed);
            atomic_store_explicit(&value, old * 3 + x[simdgroup], memory_order_relaxed);
            atomic_store_explicit(&turn, int(simdgroup) - 1, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (thread_position_in_threadgroup.x == 0) {
            y[0] = atomic_load_explicit(&value, memory_order_relaxed);
        }
        """,
        {"x": mx.array([1, 0, 2, 1, 0, 2, 1, 1], I32)},
        {"y": ((1,), I32)},
        (256, 1, 1),
        (256, 1, 1),
        lambda x: 3**8 + sum(int(v) * 3**i for i, v in enumerate(x)),
        timeout=2,
        mistakes=(
            mistake(
                "a lock that is never handed to the first SIMD-group",
                "timeout",
                {
                    "atomic_store_explicit(&turn, 7, memory_order_relaxed);": (
                        "atomic_store_explicit(&turn, 8, memory_order_relaxed);"
                    ),
                },
                timeout=0.5,
            ),
        ),
    ),
]
