"""What a block computes beside its matrix products and its memory.

These are the residual stream's sum with its RMS norm, and SwiGLU. MLX's exponential takes 20
to 30 ns a number on a Linux CPU, so that SwiGLU has a form of its own there.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
from mlx_lm.models.activations import swiglu as exponential_swiglu

from fm_mlx.metal_kernels import add_rms_norm as kernels
from fm_mlx.metal_kernels.launch import differentiable, on_cpu, runs
from fm_mlx.support.arrays import compiled, with_vjp

# Numbers up to which an exponential each is faster than the rational form's four passes:
# 31 against 69 us for 768, 72 against 70 for 3,072.
_FEW = 2048


def add_rms_norm(
    x: mx.array, update: mx.array, weight: mx.array, eps: float, in_float: bool = False
) -> tuple[mx.array, ...]:
    """x + update and the RMS norm of that sum, in one launch on a GPU.

    Args:
        x, update: (..., hidden), float; of one shape and dtype for the kernel.
        weight: (hidden,) float32.
        eps: added to the mean square.
        in_float: whether the norm is wanted in float32 as well.

    Returns:
        The sum and its norm, both in the dtype of the sum; the norm is computed in float32
        from the sum as it is rounded. With ``in_float``, the norm's numbers in float32 too.
    """
    alike = (x.shape, x.dtype) == (update.shape, update.dtype)
    # in float32 the norm is that already
    third = in_float and x.dtype != mx.float32
    if not alike or not runs("add_rms_norm"):
        outputs = _add_rms_norm(x, update, weight, eps, third)
    else:
        hidden = x.shape[-1]
        rows = x.reshape(-1, hidden), update.reshape(-1, hidden)
        outputs = [y.reshape(x.shape) for y in _kernel_add_rms_norm(eps, third)(*rows, weight)]
    return (*outputs, outputs[1]) if in_float and not third else tuple(outputs)


def _add_rms_norm(x, update, weight, eps, in_float):
    total = x + update
    normed = mx.fast.rms_norm(total, weight, eps).astype(total.dtype)
    return (total, normed, normed.astype(mx.float32)) if in_float else (total, normed)


@cache
def _kernel_add_rms_norm(eps: float, in_float: bool):
    return differentiable(
        lambda x, update, weight: kernels.add_rms_norm(x, update, weight, eps, in_float),
        lambda x, update, weight: _add_rms_norm(x, update, weight, eps, in_float),
    )


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, elementwise; both (..., n) of one dtype.

    On a GPU this is mlx-lm's. For many numbers on the CPU the sigmoid is a rational function
    within 2e-7 of the exponential form and 6 times as fast (4 against 27 ns an element).
    """
    rational = on_cpu() and gate.dtype == mx.float32 and gate.size > _FEW
    return (_rational_swiglu if rational else exponential_swiglu)(gate, up)


@compiled
def _swiglu(gate, up):
    return gate * _sigmoid(gate) * up


@compiled
def _swiglu_vjp(gate, up, cotangent):
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


# keeps only its inputs for the backward
_rational_swiglu = with_vjp(
    lambda gate, up: _swiglu(gate, up),
    lambda primals, cotangent, _: _swiglu_vjp(primals[0], primals[1], cotangent),
)


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
