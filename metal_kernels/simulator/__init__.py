"""Execute and check Metal kernels on a CPU; README.md says what for and how.

`metal_kernel` takes the arguments of `mx.fast.metal_kernel`; what it gives is called like
MLX's kernels, and afterwards its ``report`` has the findings and the memory traffic.
"""

from .compiler import (
    CompileError,
    SimulatorUnavailable,
    unavailable,
)
from .kernel import (
    FATAL,
    KINDS,
    Kernel,
    SimulationError,
    metal_kernel,
    options,
    redirected,
)
from .lint import lint
from .report import Buffer, Finding, Report, Traffic

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
