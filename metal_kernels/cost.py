"""What a launch of each kernel costs, by its shape; tests hold it against the simulator.

``least_bytes`` is the minimum: every input read once, every output written once.
``bytes`` is what the kernel moves in 32-byte sectors when no SIMD-group's data stays in a
cache for another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from fm_mlx.metal_kernels.kernels import (
    LANES,
    SCAN_GROUPS,
    SCAN_VJP_GROUPS,
    column_threads,
)

_FLOAT = 4  # bytes of theta, phi, norms and state
_SECTOR = 32


@dataclass(frozen=True)
class Cost:
    """Of one launch, or of several together.

    Attributes:
        bytes: of device memory, loaded and stored.
        least_bytes: the minimum.
        flops: additions, multiplications, comparisons and functions, one each.
        dispatches: launches.
        threadgroup_bytes: threadgroup memory of the launch that wants most.
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


def route_dense(tokens: int, rows: int, item_size: int = _FLOAT) -> Cost:
    """Of `kernels.route_dense`; ``item_size`` is that of the logits."""
    least = tokens * ((rows + 2) * item_size + 2 * rows * _FLOAT)
    return Cost(least, least, tokens * _routing_flops(rows))


def route(tokens: int, rows: int, num_active: int, item_size: int = _FLOAT) -> Cost:
    """Of `kernels.route`. The active ones of every 32 rows begin in a sector of their own."""
    least = tokens * ((rows + 2) * item_size + 3 * num_active * _FLOAT)
    shared = tokens * 3 * (-(-rows // LANES) - 1) * _SECTOR
    return Cost(least + shared, least, tokens * _routing_flops(rows))


def _routing_flops(rows: int) -> int:
    """A count for each of 32 bits, and the softmax."""
    return rows * (32 + 8)


def sparse_update(batch: int, num_active: int, width: int, item_size: int = _FLOAT) -> Cost:
    """Of `kernels.sparse_update`; ``item_size`` is that of value and y."""
    rows = 2 * num_active * width * _FLOAT
    scalars = 3 * num_active * _FLOAT
    simdgroups = column_threads(width) // LANES
    least = rows + 2 * width * item_size + scalars
    return Cost(
        batch * (least + (simdgroups - 1) * scalars),
        batch * least,
        batch * num_active * width * 7,
        threadgroup_bytes=8 * LANES * _FLOAT,
    )


def add_rms_norm(tokens: int, hidden: int, item_size: int = _FLOAT) -> Cost:
    """Of `kernels.add_rms_norm`: every token reads the weight."""
    numbers = 4 * hidden * item_size
    return Cost(
        tokens * (numbers + hidden * _FLOAT),
        tokens * numbers + hidden * _FLOAT,
        tokens * hidden * 5,
        threadgroup_bytes=LANES * _FLOAT,
    )


def state_pass(batch: int, chunks: int, rows: int, width: int) -> Cost:
    """Of `kernels.state_pass`. Every 32 threads read the sector that holds their decay."""
    numbers = batch * chunks * rows * width
    states = 2 * batch * rows * width
    least = _FLOAT * (batch * chunks * rows + 2 * numbers + states)
    return Cost(least + numbers, least, 10 * numbers)


def chunk_scan(chunks: int, tokens: int, rows: int) -> Cost:
    """Of `kernels.chunk_scan` on B N ``chunks`` of C ``tokens``."""
    per_row = 4 * tokens * rows + rows
    square = tokens * tokens
    upper = tokens * (tokens - 1) // 2
    return Cost(
        _FLOAT * chunks * (per_row + 2 * square - upper),
        _FLOAT * chunks * (per_row + 2 * square),
        chunks * rows * tokens * (5 * tokens + 16),
        threadgroup_bytes=(1 + SCAN_GROUPS) * LANES * LANES * _FLOAT,
    )


def chunk_scan_vjp(chunks: int, tokens: int, rows: int) -> Cost:
    """Of `kernels.chunk_scan_vjp`: theta and the projection are read twice."""
    per_row = 7 * tokens * rows + 2 * rows
    square = tokens * tokens
    upper = tokens * (tokens - 1) // 2
    return Cost(
        _FLOAT * chunks * (per_row + 2 * tokens * rows + 3 * square - 2 * upper),
        _FLOAT * chunks * (per_row + 3 * square),
        chunks * rows * tokens * (20 * tokens + 40),
        threadgroup_bytes=2 * (1 + SCAN_VJP_GROUPS) * LANES * LANES * _FLOAT,
    )
