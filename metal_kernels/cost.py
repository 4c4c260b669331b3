"""What a launch of a kernel costs: memory traffic, operations, launches.

Each kernel's module states its own cost by shape, as `<kernel>_cost`; the tests compare these
figures with what the simulator counts.
"""

from __future__ import annotations

from dataclasses import dataclass

# Bytes of the smallest piece of device memory that a GPU fetches.
SECTOR_BYTES = 32

# Bytes of one float32: theta, phi, norms and the state are always kept in that dtype.
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """The cost of one launch, or of several launches added up.

    Attributes:
        bytes: Bytes of device memory that are loaded and stored, counted in sectors of 32
            bytes, if no SIMD-group finds another one's data in a cache.
        least_bytes: The minimum: every input is read once and every output is written once.
        flops: Additions, multiplications, comparisons and functions, each counted as one.
        dispatches: The number of launches.
        threadgroup_bytes: Threadgroup memory of the launch that needs the most.
    """

    bytes: int
    least_bytes: int
    flops: int
    dispatches: int = 1
    threadgroup_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.bytes + other.bytes,
            self.least_bytes + other.least_bytes,
            self.flops + other.flops,
            self.dispatches + other.dispatches,
            max(self.threadgroup_bytes, other.threadgroup_bytes),
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            self.bytes * times,
            self.least_bytes * times,
            self.flops * times,
            self.dispatches * times,
            self.threadgroup_bytes,
        )
