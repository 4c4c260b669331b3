"""The norm of a row of the memory, from the sum of its squares."""

from __future__ import annotations

import mlx.core as mx


def inverse_rms(squares: mx.array, width: int, eps: float) -> mx.array:
    """1 / sqrt(squares / d + eps), what a row is multiplied by when it is read.

    Args:
        squares: the sum of the squares of a row's d numbers, not below 0.
        width: d.
        eps: added to the mean square.
    """
    return mx.rsqrt(squares / width + eps)


def inverse_rms_slope(inverse: mx.array, width: int) -> mx.array:
    """The derivative of `inverse_rms` by the sum of squares, divided by `inverse_rms`."""
    return inverse * inverse * (-0.5 / width)
