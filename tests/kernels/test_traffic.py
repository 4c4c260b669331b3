"""Bytes that the kernels move, as the simulator counts them, against the least possible."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import routed
from checks import chunks
from oracles import EPS

from fm_mlx import ops
from fm_mlx.metal_kernels.add_rms_norm import add_rms_norm
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.chunk_scan import chunk_scan, chunk_scan_vjp
from fm_mlx.metal_kernels.sparse_update import sparse_update


def moved(kernel, measure: str = "sector_bytes") -> dict[str, int]:
    """Bytes of the last launch by buffer, loads and stores, device memory only.

    ``sector_bytes`` counts 32-byte sectors once per SIMD-group between synchronisations:
    what is read again later, or by another SIMD-group, counts again.
    """
    return {
        name: getattr(buffer.loads, measure) + getattr(buffer.stores, measure)
        for name, buffer in kernel.simulated.report.buffers.items()
        if buffer.kind in ("input", "output")
    }


def update(rows: int, num_active: int, width: int, dtype=mx.float32) -> dict[str, int]:
    """Bytes moved by sparse_update, where no row is written twice."""
    scores = mx.arange(rows + 2)[None].astype(mx.float32)  # the last rows are chosen
    last = mx.arange(num_active, dtype=mx.int32)[None], mx.zeros((1, num_active, width))
    value, state = mx.zeros((1, width), dtype), mx.zeros((1, rows, width))
    sparse_update(scores, value, state, *last, None, num_active, 1.0, False, EPS)
    return moved(KERNELS["sparse_update"])


@pytest.mark.parametrize(
    ("num_active", "width", "dtype"),
    [
        (8, 256, mx.float32),
        (8, 2048, mx.float32),
        (16, 1024, mx.bfloat16),
        (64, 512, mx.float32),
        pytest.param(8, 256, mx.bfloat16, marks=pytest.mark.slow),
        pytest.param(8, 2048, mx.bfloat16, marks=pytest.mark.slow),
        pytest.param(16, 1024, mx.float32, marks=pytest.mark.slow),
        pytest.param(64, 512, mx.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sparse_update_moves_k_rows(num_active, width, dtype):
    """At most 1.1 times 2k rows in, 2k rows out, value, output; of m only the scores."""
    least = 4 * num_active * width * 4 + 2 * width * dtype.size
    of_rows = {m: update(m, num_active, width, dtype=dtype) for m in (2 * num_active, 200, 1024)}
    for m, by_buffer in of_rows.items():
        assert by_buffer.pop("scores") <= 1.5 * (m + 2) * 4
    counted = {sum(by_buffer.values()) for by_buffer in of_rows.values()}
    assert len(counted) == 1, of_rows
    got = counted.pop()
    print(f"k {num_active} d {width}: {got} bytes, {got / least:.3f} of the least")
    assert got <= 1.1 * least


def test_add_rms_norm_reads_once_and_writes_once():
    x, weight = mx.ones((1, 2048)), mx.ones((2048,))
    add_rms_norm(x, x * 2, weight, EPS)
    got, least = sum(moved(KERNELS["add_rms_norm"]).values()), 5 * 2048 * 4
    print(f"{got} bytes, {got / least:.3f} of the least")
    assert got <= 1.05 * least


@pytest.mark.parametrize("rows", [64, 200])
def test_chunk_scan_reads_once_and_writes_once(rows):
    tokens, count, width = 32, 2, 16
    inputs, _, _ = chunks((1, count, tokens, rows, width), 8)
    chunk_scan(*map(mx.array, inputs), width, EPS)
    got = sum(moved(KERNELS["chunk_scan"]).values())
    least = 4 * count * (4 * tokens * rows + 2 * tokens * tokens + rows)
    print(f"m {rows}: {got} bytes, {got / least:.3f} of the least")
    assert got <= 1.25 * least


def test_chunk_scan_vjp_reads_little_twice():
    """The norms are computed anew: P is read twice, the rest once."""
    tokens, count, rows, width = 32, 2, 64, 16
    inputs, _, _ = chunks((1, count, tokens, rows, width), 8)
    d_read, d_inside = mx.zeros(inputs[0].shape), mx.zeros(inputs[2].shape)
    chunk_scan_vjp(*map(mx.array, inputs), d_read, d_inside, width, EPS)
    got = sum(moved(KERNELS["chunk_scan_vjp"]).values())
    least = 4 * count * (7 * tokens * rows + 3 * tokens * tokens + 2 * rows)
    print(f"{got} bytes, {got / least:.3f} of the least")
    assert got <= 1.1 * least


def test_none_loads_the_state_for_every_token():
    """A scan reads each chunk's increment, not m x d numbers per token; a step k rows."""
    length, rows, width = 128, 64, 48
    theta, phi, values, state, _ = routed((1, length, rows, width), 8).arrays()
    ops.memory_scan(theta, phi, values, state)
    loaded = {
        f"{kernel.name} {name}": buffer.loads.bytes
        for kernel in (KERNELS["state_pass"], KERNELS["chunk_scan"])
        for name, buffer in kernel.simulated.report.buffers.items()
        if buffer.kind == "input"
    }
    size = rows * width * 4
    assert all(count <= length * size / 16 for count in loaded.values()), loaded
    update(rows, 8, width)
    assert moved(KERNELS["sparse_update"], "bytes")["state"] == 8 * width * 4
