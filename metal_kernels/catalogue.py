"""All kernels by name, for those who look at each of them: the doctor and the tests."""

from __future__ import annotations

from fm_mlx.metal_kernels.add_rms_norm import ADD_RMS_NORM, ADD_RMS_NORM_IN_FLOAT
from fm_mlx.metal_kernels.chunk_scan import CHUNK_SCAN, CHUNK_SCAN_VJP
from fm_mlx.metal_kernels.launch import MetalKernel
from fm_mlx.metal_kernels.route import ROUTE_DENSE
from fm_mlx.metal_kernels.sparse_update import SPARSE_UPDATE_KERNELS
from fm_mlx.metal_kernels.state_pass import STATE_PASS

KERNELS: dict[str, MetalKernel] = {
    kernel.name: kernel
    for kernel in (
        ROUTE_DENSE,
        *SPARSE_UPDATE_KERNELS.values(),
        ADD_RMS_NORM,
        ADD_RMS_NORM_IN_FLOAT,
        STATE_PASS,
        CHUNK_SCAN,
        CHUNK_SCAN_VJP,
    )
}
