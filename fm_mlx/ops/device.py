"""Where the arrays live: some forms of an op suit a CPU, others a GPU."""

from __future__ import annotations

import mlx.core as mx


def on_cpu() -> bool:
    """Whether MLX's default device is the CPU."""
    return mx.default_device() == mx.Device(mx.cpu)
