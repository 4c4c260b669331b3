"""Long launches that several processes share: the results and reports are those of one."""

from __future__ import annotations

import mlx.core as mx
import pytest
from launches import INDEX, launch

from fm_mlx.metal_kernels import simulator

# Long enough to be shared: that costs some 20 ms.
THREADS = 1 << 16
LOOP = INDEX + "float s = 0; for (int j = 0; j < 256; ++j) s += x[(i * 7 + j) % 256]; "


def both(source, count=THREADS, **options):
    """Outputs and reports of one process and of two."""
    results = []
    for workers in (1, 2):
        o, report = launch(
            source, threads=THREADS, group=256, count=count, fatal=(), workers=workers, **options
        )
        results.append((o, str(report)))
    return results


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize(
    "source",
    [
        LOOP + "o[i] = s;",
        LOOP + "o[i] = simd_sum(s);",
        "threadgroup float t[256]; " + LOOP + "uint l = i % 256; t[l] = s; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); o[i] = t[255 - l] + x[l];",
        # neither the first nor the last element is written
        LOOP + "if (i > 0 && i < 65535) o[i] = s;",
    ],
    ids=["plain", "simd", "threadgroup", "unwritten"],
)
def test_same_as_one(source, order):
    one, two = both(source, order=order)
    assert mx.array_equal(one[0], two[0], equal_nan=True)
    assert one[1] == two[1]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        # the last thread meets the first: each in a process of its own
        ("race-write-after-write", LOOP + "o[i % 65535] = s + i;"),
        ("race-read-after-write", LOOP + "if (i == 65535) s += o[0]; o[i] = s;"),
        ("out-of-bounds", LOOP + "o[i] = x[i == 65535 ? 256 : 0] + s;"),
    ],
)
def test_what_one_finds(kind, source):
    one, two = both(source)
    assert kind in one[1]
    assert one[1] == two[1]


def test_an_end_in_another_process():
    _, two = both(LOOP + "if (i == 65535) o[ulong(i) << 40] = 0; o[i] = s;")
    assert "wild-pointer" in two[1]


def test_time_limit():
    source = LOOP + "while (i > 65000 && s >= 0) { s += 1; } o[i] = s;"
    with pytest.raises(simulator.SimulationError, match="timeout"):
        launch(source, threads=THREADS, group=256, count=THREADS, workers=2, timeout=1.0)
