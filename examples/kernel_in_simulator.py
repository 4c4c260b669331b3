"""A Metal kernel, written, run and found wanting on a machine without a GPU.

    python examples/kernel_in_simulator.py      # needs pip install 'fm-mlx[simulator]'

The kernel computes the recurrence at the heart of the model for single numbers: h becomes
(1 - theta) h + theta x, a thread a sequence. The simulator compiles the Metal text that MLX would
give to Apple's compiler and runs it thread by thread. What one sees: the result agrees with NumPy,
with the memory traffic of each buffer; then the same kernel with a loop that goes one token too
far, which a GPU may well run without a word: the simulator stops, and names line, buffer and
thread.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from fm_mlx.metal_kernels import simulator

SOURCE = """
    uint sequence = thread_position_in_grid.x;
    uint length = x_shape[1];
    float h = 0.0f;
    for (uint t = 0; t < length; ++t) {
        float theta = rate[sequence];
        h = (1.0f - theta) * h + theta * x[sequence * length + t];
        y[sequence * length + t] = h;
    }
"""
TOO_FAR = SOURCE.replace("t < length", "t <= length")


def run(source: str, x: mx.array, rate: mx.array) -> tuple[mx.array, simulator.Report]:
    """Launch the kernel with a thread a sequence: x (sequences, length), rate (sequences,)."""
    with simulator.redirected():  # without this line, the same kernel runs on the GPU of a Mac
        kernel = mx.fast.metal_kernel(
            name="recurrence", input_names=["x", "rate"], output_names=["y"], source=source
        )
        (y,) = kernel(
            inputs=[x, rate],
            grid=(x.shape[0], 1, 1),
            threadgroup=(x.shape[0], 1, 1),
            output_shapes=[x.shape],
            output_dtypes=[x.dtype],
        )
    return y, kernel.report


def main() -> None:
    if reason := simulator.unavailable():
        raise SystemExit(reason)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    rate = np.linspace(0.1, 0.9, 8, dtype=np.float32)
    expected, h = np.empty_like(x), np.zeros(8, np.float32)
    for t in range(x.shape[1]):
        h = (1 - rate) * h + rate * x[:, t]
        expected[:, t] = h

    y, report = run(SOURCE, mx.array(x), mx.array(rate))
    print(f"Largest difference from NumPy: {np.abs(np.array(y) - expected).max():.1e}")
    print(report)

    print("\nOne token too far:")
    try:
        run(TOO_FAR, mx.array(x), mx.array(rate))
    except simulator.SimulationError as error:
        for finding in error.report.findings:
            print(finding)
            print(f"  the line: {TOO_FAR.splitlines()[finding.line - 1].strip()}")


if __name__ == "__main__":
    main()
