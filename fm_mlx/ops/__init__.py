"""The recurrence of Factorization Memory as functions of MLX arrays.

Everything here is differentiable, runs on any MLX device, and keeps the state in float32.
"""

from fm_mlx.ops.activations import swiglu
from fm_mlx.ops.norm import add_rms_norm
from fm_mlx.ops.routing import route, route_dense
from fm_mlx.ops.scan import memory_scan
from fm_mlx.ops.step import (
    buffered_memory_step,
    columns,
    memory_step,
    sparse_memory_step,
    sparse_update,
    written,
)

__all__ = [
    "add_rms_norm",
    "buffered_memory_step",
    "columns",
    "memory_scan",
    "memory_step",
    "route",
    "route_dense",
    "sparse_memory_step",
    "sparse_update",
    "swiglu",
    "written",
]
