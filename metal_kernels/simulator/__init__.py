"""Execute and check Metal kernels on a CPU; README.md says what for and how.

`metal_kernel` takes the arguments of `mx.fast.metal_kernel`; what it gives is called like
MLX's kernels, and afterwards its ``report`` has the findings and the memory traffic.
"""

from fm_mlx.metal_kernels.simulator.compiler import (
    CompileError,
    SimulatorUnavailable,
    unavailable,
)
from fm_mlx.metal_kernels.simulator.kernel import (
    FATAL,
    KINDS,
    Kernel,
    SimulationError,
    metal_kernel,
    options,
    redirected,
)
from fm_mlx.metal_kernels.simulator.lint import lint
from fm_mlx.metal_kernels.simulator.report import Buffer, Finding, Report, Traffic

__all__ = [
    "FATAL",
    "KINDS",
    "Buffer",
    "CompileError",
    "Finding",
    "Kernel",
    "Report",
    "SimulationError",
    "SimulatorUnavailable",
    "Traffic",
    "lint",
    "metal_kernel",
    "options",
    "redirected",
    "unavailable",
]
