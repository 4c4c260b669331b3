"""How fast the simulator of Metal kernels is: watched and not, on one core and on all.

    python evidence/simulator_speed.py

The ways take turns in one process; figures are medians, in millions a second of what each kernel
does most of, and launches a second of a small one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from figures import record

from fm_mlx.metal_kernels import simulator
from fm_mlx.metal_kernels.simulator.settings import current
from fm_mlx.perf.timing import medians_in_turns, seconds_of

CORES = current().workers
WAYS: dict[str, dict[str, Any]] = {
    "checked, one core": {"workers": 1},
    f"checked, {CORES} cores": {"workers": CORES},
    "unchecked, one core": {"workers": 1, "checked": False},
    f"unchecked, {CORES} cores": {"workers": CORES, "checked": False},
}

INDEX = "uint i = thread_position_in_grid.x; "
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup); "


@dataclass(frozen=True)
class Measured:
    """A kernel of 4,096 floats x, what it does, and how often a thread does it."""

    source: str
    threads: int
    each: int
    launches: int = 1


KERNELS = {
    "threads of an elementwise kernel": Measured("o[i] = x[i % 4096] * 2;", 1 << 22, 1),
    "loads": Measured(
        "float s = 0; for (int j = 0; j < 256; ++j) s += x[(i * 7 + j) % 4096]; o[i] = s;",
        1 << 17,
        256,
    ),
    "lanes of simd_sum": Measured(
        "float s = 0; for (int j = 0; j < 64; ++j) s += simd_sum(x[i % 4096]); o[i] = s;",
        1 << 17,
        64,
    ),
    "threads at a barrier": Measured(
        "threadgroup float t[256]; uint l = i % 256; float s = 0; for (int j = 0; j < 32; ++j) { "
        f"t[l] = x[l] + j; {BARRIER} s += t[255 - l]; {BARRIER} }} o[i] = s;",
        1 << 17,
        64,
    ),
    "launches of 64 threads": Measured("o[i] = x[i];", 64, 1, launches=300),
}


def runs(measured: Measured) -> dict[str, Callable[[], float]]:
    """A function for every way, which gives seconds."""
    kernel = simulator.metal_kernel("measured", ["x"], ["o"], INDEX + measured.source)
    x = mx.arange(4096).astype(mx.float32)
    threads = measured.threads

    def launch(options: dict[str, Any]) -> None:
        with simulator.options(**options):
            for _ in range(measured.launches):
                kernel(
                    inputs=[x],
                    grid=(threads, 1, 1),
                    threadgroup=(min(threads, 256), 1, 1),
                    output_shapes=[(threads,)],
                    output_dtypes=[mx.float32],
                )

    for options in WAYS.values():
        launch(options)  # compiles
    return {way: partial(seconds_of, partial(launch, options)) for way, options in WAYS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way (7)")
    args = parser.parse_args()
    lines = []
    for what, measured in KERNELS.items():
        small = measured.launches > 1
        done = measured.launches if small else measured.threads * measured.each / 1e6
        medians = medians_in_turns(runs(measured), args.rounds)
        rates = {way: round(done / seconds, 0 if small else 2) for way, seconds in medians.items()}
        lines.append({"what": what, "unit": "" if small else "million", **rates})
    record("simulator_speed", {"rounds": args.rounds, "rates": lines})


if __name__ == "__main__":
    main()
