"""Execute and check Metal kernels on a CPU; README.md says what for and how.

`metal_kernel` takes the arguments of `mx.fast.metal_kernel`; what it gives is called like
MLX's kernels, and afterwards its ``report`` has the findings and the memory traffic.

The names are imported when first used: pytest imports this package in every run for its plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compilation.clang import CompileError, SimulatorUnavailable, unavailable
    from .debugging import debug, trace
    from .kernel import Kernel, SimulationError, metal_kernel
    from .kinds import FATAL, KINDS
    from .language.linter import lint
    from .listeners import listen
    from .mac.redirection import redirected
    from .pictures import draw_traffic
    from .report import Buffer, Finding, Note, Report, Traffic
    from .settings import options

__all__ = [
    "FATAL",
    "KINDS",
    "Buffer",
    "CompileError",
    "Finding",
    "Kernel",
    "Note",
    "Report",
    "SimulationError",
    "SimulatorUnavailable",
    "Traffic",
    "debug",
    "draw_traffic",
    "lint",
    "listen",
    "metal_kernel",
    "options",
    "redirected",
    "trace",
    "unavailable",
]

_HOME = {
    **dict.fromkeys(("CompileError", "SimulatorUnavailable", "unavailable"), "compilation.clang"),
    **dict.fromkeys(("Kernel", "SimulationError", "metal_kernel"), "kernel"),
    **dict.fromkeys(("FATAL", "KINDS"), "kinds"),
    **dict.fromkeys(("Buffer", "Finding", "Note", "Report", "Traffic"), "report"),
    "draw_traffic": "pictures",
    "lint": "language.linter",
    "listen": "listeners",
    "options": "settings",
    "redirected": "mac.redirection",
    **dict.fromkeys(("debug", "trace"), "debugging"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
