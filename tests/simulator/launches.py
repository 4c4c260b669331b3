"""Short ways to launch a kernel."""

from __future__ import annotations

import mlx.core as mx
import pytest

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator import Report

X = mx.arange(256).astype(mx.float32)

# Every kernel here counts its threads.
INDEX = "uint i = thread_position_in_grid.x; "


def launch(
    source: str,
    threads: int = 64,
    group: int = 64,
    count: int = 64,
    inputs: dict[str, object] | None = None,
    dtype: mx.Dtype = mx.float32,
    make: dict | None = None,
    call: dict | None = None,
    **options,
) -> tuple[mx.array, Report]:
    """Run a kernel that reads x (256 floats 0, 1, ..) and writes o; its output and report."""
    inputs = {"x": X} if inputs is None else inputs
    kernel = simulator.metal_kernel("k", list(inputs), ["o"], source, **(make or {}))
    with simulator.options(**options):
        (o,) = kernel(
            inputs=list(inputs.values()),
            output_shapes=[(count,)],
            output_dtypes=[dtype],
            grid=(threads, 1, 1),
            threadgroup=(group, 1, 1),
            **(call or {}),
        )
    return o, kernel.report


def fails(kind: str, source: str, **kwargs) -> Report:
    """Run a kernel that must have a finding of a fatal kind; its report."""
    with pytest.raises(simulator.SimulationError) as error:
        launch(source, **kwargs)
    report = error.value.report
    assert kind in report.kinds, str(report)
    assert kind in str(error.value)
    return report
