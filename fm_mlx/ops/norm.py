"""The residual stream's sum and its RMS norm."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from fm_mlx.metal_kernels import kernels
from fm_mlx.metal_kernels.launch import runs


def add_rms_norm(
    x: mx.array, update: mx.array, weight: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    """x + update and the RMS norm of that sum, in one launch on a GPU.

    Args:
        x, update: (..., hidden), float; of one shape and dtype for the kernel.
        weight: (hidden,) float32.
        eps: added to the mean square.

    Returns:
        The sum and its norm, both in the dtype of the sum; the norm is computed in float32
        from the sum as it is rounded.
    """
    alike = (x.shape, x.dtype) == (update.shape, update.dtype)
    if not alike or not runs("add_rms_norm"):
        return _add_rms_norm(x, update, weight, eps)
    hidden = x.shape[-1]
    outputs = _kernel_form(eps)(x.reshape(-1, hidden), update.reshape(-1, hidden), weight)
    total, normed = (output.reshape(x.shape) for output in outputs)
    return total, normed


def _add_rms_norm(x, update, weight, eps):
    total = x + update
    return total, mx.fast.rms_norm(total, weight, eps).astype(total.dtype)


@cache
def _kernel_form(eps: float):
    """The kernel with the gradient of its twin."""

    @mx.custom_function
    def form(x, update, weight):
        return kernels.add_rms_norm(x, update, weight, eps)

    @form.vjp
    def form_vjp(primals, cotangents, _):
        def twin(x, update, weight):
            return _add_rms_norm(x, update, weight, eps)

        return tuple(mx.vjp(twin, list(primals), list(cotangents))[1])

    return form
