"""How fast a device moves bytes and multiplies: what bounds are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import mlx.core as mx

from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.perf.timing import medians_in_turns, seconds_of

# Rows and columns of the matrices of a product.
_SQUARE = 512


@dataclass(frozen=True)
class Speeds:
    """Of a device: bytes and operations a second."""

    bandwidth: float
    arithmetic: float

    def bound(self, work: Cost) -> float:
        """The least seconds for it."""
        return max(work.least_bytes / self.bandwidth, work.flops / self.arithmetic)


def measure_speeds(size: int, dtype: mx.Dtype) -> Speeds:
    """What a copy of `size` bytes and a matrix product reach on this device."""
    numbers = mx.zeros((size // FLOAT_BYTES,))
    square = mx.ones((_SQUARE, _SQUARE), dtype)
    mx.eval(numbers, square)
    runs = {
        "copy": partial(seconds_of, lambda: mx.eval(-numbers)),
        "product": partial(seconds_of, lambda: mx.eval(square @ square)),
    }
    seconds = medians_in_turns(runs, 9)
    return Speeds(2 * numbers.nbytes / seconds["copy"], 2 * _SQUARE**3 / seconds["product"])
