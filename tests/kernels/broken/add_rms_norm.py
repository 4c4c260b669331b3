"""Broken copies of add_rms_norm.metal."""

from __future__ import annotations

import checks
import mlx.core as mx
from kernel_mutant import Mutant


def norm() -> None:
    checks.add_rms_norm(2, 1030)


def norm_bf16() -> None:
    """Half a unit of the last place is allowed: a whole one has to come up."""
    checks.add_rms_norm(4, 1030, mx.bfloat16)


MUTANTS = [
    Mutant(
        "add_rms_norm",
        "dropped barrier",
        norm,
        "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);",
        "",
    ),
    Mutant(
        "add_rms_norm",
        "off-by-one tail: the column past the last one is read",
        norm,
        "if (column < hidden) { const T rounded",
        "if (column <= hidden) { const T rounded",
    ),
    Mutant(
        "add_rms_norm",
        "off-by-one tail: the last column is not written",
        norm,
        "if (column < hidden) {\n      const T number",
        "if (column < hidden - 1) {\n      const T number",
    ),
    Mutant(
        "add_rms_norm",
        "the norm of x without the update",
        norm,
        "sum[c] = float(rounded);",
        "sum[c] = float(x[column]);",
    ),
    Mutant(
        "add_rms_norm",
        "the norm of a sum that was not rounded",
        norm_bf16,
        "sum[c] = float(rounded);",
        "sum[c] = float(x[column]) + float(update[column]);",
    ),
    Mutant(
        "add_rms_norm_in_float",
        "the norm in float32 is not the rounded one",
        norm_bf16,
        "put(in_float, size_t(token) * hidden + column, float(number));",
        "put(in_float, size_t(token) * hidden + column, sum[c] * inverse_rms * weight[column]);",
    ),
    Mutant(
        "add_rms_norm",
        "eps is forgotten",
        norm,
        "float(hidden) + eps",
        "float(hidden)",
    ),
    Mutant(
        "add_rms_norm",
        "weight is forgotten",
        norm,
        "inverse_rms * weight[column]",
        "inverse_rms",
    ),
    Mutant(
        "add_rms_norm",
        "every thread's second column is its first",
        norm,
        "const int column = thread_index + c * threads; if (column < hidden) { const T rounded",
        "const int column = thread_index; if (column < hidden) { const T rounded",
    ),
]
