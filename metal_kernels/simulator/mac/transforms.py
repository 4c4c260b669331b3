"""Kernels inside of MLX's function transformations, where MLX's own have no rules either."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import mlx.core as mx

# MLX's own, also while `redirected` puts something else in its place.
_compile = mx.compile


def missing(rule: str) -> ValueError:
    """What MLX raises where a custom kernel meets "vjp", "jvp" or "vmap"."""
    return ValueError(f"[Primitive::{rule}] Not implemented for CustomKernel.")


def without_rules(outputs: list[mx.array], inputs: Sequence[mx.array]) -> list[mx.array]:
    """The outputs, as functions of the inputs that cannot be differentiated.

    A kernel is executed when it is called, and MLX would take what it gives for constants,
    whose gradient is zero.
    """
    if not inputs:
        return outputs

    @mx.custom_function
    def launch(*inputs):
        return outputs

    for rule in ("vjp", "jvp", "vmap"):
        getattr(launch, rule)(partial(_refuse, rule))
    return cast(list[mx.array], launch(*inputs))


def _refuse(rule: str, *_: Any) -> None:
    raise missing(rule)


def are_placeholders(arrays: Sequence[mx.array]) -> bool:
    """Evaluate arrays; whether they have no values, because MLX traces a function."""
    try:
        mx.eval(arrays)
    except ValueError as error:
        if "function transformations" not in str(error):
            raise
        return True
    return False


def compiles() -> bool:
    """Whether `mx.compile` compiles, and has not been switched off."""
    calls = []

    def probe(x: mx.array) -> mx.array:
        calls.append(x)
        return x

    compiled, x = _compile(probe), mx.array(0)
    compiled(x)
    compiled(x)
    return len(calls) == 1
