"""The cost model against what the simulator counts."""

from __future__ import annotations

import checks
import mlx.core as mx
import pytest
from checks import rounded

from fm_mlx.metal_kernels.add_rms_norm import add_rms_norm_cost
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.metal_kernels.chunk_scan import chunk_scan_cost, chunk_scan_vjp_cost
from fm_mlx.metal_kernels.cost import Cost
from fm_mlx.metal_kernels.route import route_dense_cost
from fm_mlx.metal_kernels.sparse_update import sparse_update_cost
from fm_mlx.metal_kernels.state_pass import state_pass_cost

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


def agrees(kernel, expected: Cost, unread: int = 0) -> None:
    """Against the last launch; `unread` bytes of the minimum are not needed after all."""
    sectors, unique = counted(kernel)
    assert unique == expected.least_bytes - unread
    assert sectors == pytest.approx(expected.bytes, rel=SECTORS)
    assert kernel.simulated.report.threadgroup_memory == expected.threadgroup_bytes
    assert expected.dispatches == 1


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_route(dtype):
    checks.route(rounded(checks.logits_with_ties(8, 96), dtype), 16)
    agrees(KERNELS["route_dense"], route_dense_cost(8, 96, dtype.size))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "num_active", "width"), [(64, 8, 256), (64, 16, 1024)])
def test_sparse_update(rows, num_active, width, dtype):
    checks.sparse_update((2, rows, width), num_active, dtype)
    agrees(KERNELS["sparse_update"], sparse_update_cost(2, rows, num_active, width, dtype.size))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_add_rms_norm(dtype):
    checks.add_rms_norm(2, 1024, dtype)
    agrees(KERNELS["add_rms_norm"], add_rms_norm_cost(2, 1024, dtype.size))
    cost = add_rms_norm_cost(2, 1024, dtype.size, in_float=True)
    agrees(KERNELS["add_rms_norm_in_float"], cost)


def test_state_pass():
    checks.state_pass((2, 5, 32, 64))
    agrees(KERNELS["state_pass"], state_pass_cost(2, 5, 32, 64))


@pytest.mark.parametrize("rows", [64, 200])
def test_chunk_scan(rows):
    tokens, upper = 32, 32 * 31 // 2
    checks.chunk_scan((1, 2, tokens, rows, 16), 8)
    agrees(KERNELS["chunk_scan"], chunk_scan_cost(2, tokens, rows), unread=2 * 4 * upper)
    checks.chunk_scan_vjp((1, 2, tokens, rows, 16), 8)
    agrees(
        KERNELS["chunk_scan_vjp"], chunk_scan_vjp_cost(2, tokens, rows), unread=2 * 2 * 4 * upper
    )


def test_costs_add_up():
    one, two = route_dense_cost(1, 64), chunk_scan_cost(1, 32, 64)
    both = one * 3 + two
    assert both.bytes == 3 * one.bytes + two.bytes
    assert both.dispatches == 4
    assert both.threadgroup_bytes == two.threadgroup_bytes
