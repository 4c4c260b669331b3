"""The cost model against what the simulator counts."""

from __future__ import annotations

import checks
import mlx.core as mx
import pytest
from checks import rounded

from fm_mlx.metal_kernels import cost, kernels

# bytes are counted in sectors of 32: parts of a sector, and rows of G that share one.
SECTORS = 0.06


def counted(kernel) -> tuple[int, int]:
    """Sector bytes and distinct bytes of the last launch, arrays only."""
    sectors = unique = 0
    for name, buffer in kernel.simulated.report.buffers.items():
        arrays = set(kernel.inputs) | set(kernel.outputs)
        if name in arrays and buffer.size > 8:
            sectors += buffer.loads.sector_bytes + buffer.stores.sector_bytes
            unique += buffer.loads.unique_bytes + buffer.stores.unique_bytes
    return sectors, unique


def agrees(kernel, expected: cost.Cost, unread: int = 0) -> None:
    """Against the last launch; `unread` bytes of the minimum are not needed after all."""
    sectors, unique = counted(kernel)
    assert unique == expected.least_bytes - unread
    assert sectors == pytest.approx(expected.bytes, rel=SECTORS)
    assert kernel.simulated.report.threadgroup_memory == expected.threadgroup_bytes
    assert expected.dispatches == 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_route(dtype):
    checks.route(rounded(checks.logits_with_ties(8, 96), dtype), 16)
    agrees(kernels.ROUTE_SPARSE, cost.route(8, 96, 16, dtype.size))
    agrees(kernels.ROUTE_DENSE, cost.route_dense(8, 96, dtype.size))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "num_active", "width"), [(64, 8, 256), (64, 16, 1024)])
def test_sparse_update(rows, num_active, width, dtype):
    checks.sparse_update((2, rows, width), num_active, dtype)
    agrees(kernels.SPARSE_UPDATE, cost.sparse_update(2, num_active, width, dtype.size))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_add_rms_norm(dtype):
    checks.add_rms_norm(2, 1024, dtype)
    agrees(kernels.ADD_RMS_NORM, cost.add_rms_norm(2, 1024, dtype.size))


def test_state_pass():
    checks.state_pass((2, 5, 32, 64))
    agrees(kernels.STATE_PASS, cost.state_pass(2, 5, 32, 64))


@pytest.mark.parametrize("rows", [64, 200])
def test_chunk_scan(rows):
    tokens, upper = 32, 32 * 31 // 2
    checks.chunk_scan((1, 2, tokens, rows, 16), 8)
    agrees(kernels.CHUNK_SCAN, cost.chunk_scan(2, tokens, rows), unread=2 * 4 * upper)
    checks.chunk_scan_vjp((1, 2, tokens, rows, 16), 8)
    agrees(kernels.CHUNK_SCAN_VJP, cost.chunk_scan_vjp(2, tokens, rows), unread=2 * 2 * 4 * upper)


def test_costs_add_up():
    one, two = cost.route(1, 64, 8), cost.chunk_scan(1, 32, 64)
    both = one * 3 + two
    assert both.bytes == 3 * one.bytes + two.bytes
    assert both.dispatches == 4
    assert both.threadgroup_bytes == two.threadgroup_bytes
