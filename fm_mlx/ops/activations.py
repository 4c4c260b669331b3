"""SwiGLU. MLX's exponential is slow on a Linux CPU: 20 to 30 ns a number."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.models.activations import swiglu as exponential_swiglu

from fm_mlx.ops.device import on_cpu


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, elementwise; both (..., n) of one dtype.

    On a GPU this is mlx-lm's. On the CPU the sigmoid is a rational function within
    2e-7 of the exponential form and 6 times as fast (4 against 27 ns an element).
    """
    rational = on_cpu() and gate.dtype == mx.float32
    return (rational_swiglu if rational else exponential_swiglu)(gate, up)


@mx.custom_function
def rational_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up in float32 with `_sigmoid`; keeps only its inputs for the backward."""
    return _swiglu(gate, up)


@rational_swiglu.vjp
def _rational_swiglu_vjp(primals, cotangent, _):
    return _swiglu_vjp(*primals, cotangent)


@mx.compile
def _swiglu(gate, up):
    return gate * _sigmoid(gate) * up


@mx.compile
def _swiglu_vjp(gate, up, cotangent):
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


def _sigmoid(x: mx.array) -> mx.array:
    """(1 + tanh(x / 2)) / 2: Lambert's continued fraction for tanh(x / 8), doubled twice."""
    z = mx.clip(x, -18.0, 18.0) * 0.125
    z2 = z * z
    numerator = z * (135135 + z2 * (17325 + z2 * (378 + z2)))
    denominator = 135135 + z2 * (62370 + z2 * (3150 + 28 * z2))
    tanh = numerator / denominator
    tanh = 2 * tanh / (1 + tanh * tanh)
    tanh = 2 * tanh / (1 + tanh * tanh)
    return 0.5 + 0.5 * tanh
