"""The recurrence of Factorization Memory as functions of MLX arrays.

Everything here is differentiable, runs on any MLX device, and keeps the state in float32.
"""

from fm_mlx.ops.block import add_rms_norm, swiglu
from fm_mlx.ops.routing import DenseRouting, SparseRouting, num_logits, route, route_dense
from fm_mlx.ops.scan import memory_scan
from fm_mlx.ops.sparse_scan import sparse_memory_scan, sparse_scan_is_faster
from fm_mlx.ops.step import (
    Write,
    buffered_memory_step,
    memory_step,
    sparse_memory_step,
    sparse_step_is_faster,
    sparse_update,
)

__all__ = [
    "DenseRouting",
    "SparseRouting",
    "Write",
    "add_rms_norm",
    "buffered_memory_step",
    "memory_scan",
    "memory_step",
    "num_logits",
    "route",
    "route_dense",
    "sparse_memory_scan",
    "sparse_memory_step",
    "sparse_scan_is_faster",
    "sparse_step_is_faster",
    "sparse_update",
    "swiglu",
]
