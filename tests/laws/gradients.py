"""Law 6: gradients are those of the float64 loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import mlx.core as mx
import numpy as np
from cases import Case, Code, close, double, loop, routed
from mlx_lm.models.activations import swiglu as mlx_lm_swiglu
from mutant import Mutant

from fm_mlx import reference
from laws.rows import scattered, with_rates

# Central differences in float64 are good to 1e-9; what is left is the float32 of the
# gradient itself, relative to the largest of its input. Measured: 3e-7, 2e-6 at extremes.
GRADIENT_TOLERANCE = 5e-6
STEP = 1e-6
GRADIENT_INPUTS = ("theta", "phi", "values", "state")


def cotangents(case: Case, of_y: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Random weights of y and of the last state in a scalar loss; those of y 0 on request."""
    rng = np.random.default_rng(7)
    rows, width = case.theta.shape[2], case.values.shape[2]
    y = rng.normal(size=case.values.shape) * of_y
    return y.astype(np.float32), rng.normal(size=(len(y), rows, width)).astype(np.float32)


@cache
def finite_differences(case: Case, of_y: bool = True) -> list[np.ndarray]:
    """The gradient of the float64 loop with `cotangents`."""
    weights = cotangents(case, of_y)
    inputs = {name: double(getattr(case, name)) for name in GRADIENT_INPUTS}

    def loss() -> float:
        y, state = loop(replace(case, **inputs))
        return float((y * weights[0]).sum() + (state * weights[1]).sum())

    gradients = []
    for x in inputs.values():
        gradient = np.zeros_like(x)
        for at in np.ndindex(*x.shape):
            here = x[at]
            x[at] = here + STEP
            up = loss()
            x[at] = here - STEP
            gradient[at] = (up - loss()) / (2 * STEP)
            x[at] = here
        gradients.append(gradient)
    return gradients


def scan_gradient(
    code: Code,
    case: Case,
    weights: tuple[np.ndarray, np.ndarray],
    chunk_size: int | None = None,
    checkpoint: bool = False,
) -> list[np.ndarray]:
    """Gradients of all inputs through `memory_scan`."""
    *inputs, mask = case.arrays()
    wy, ws = map(mx.array, weights)

    def run(theta, phi, values, state):
        return code.ops.memory_scan(theta, phi, values, state, mask, chunk_size=chunk_size)

    run = mx.checkpoint(run) if checkpoint else run

    def loss(*inputs):
        y, state = run(*inputs)
        return (y * wy).sum() + (state * ws).sum()

    return [np.array(g) for g in mx.grad(loss, argnums=(0, 1, 2, 3))(*inputs)]


def step_gradient(
    code: Code, case: Case, weights: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """The same by MLX's autodiff through a loop of `memory_step`."""
    *inputs, mask = case.arrays()
    wy, ws = map(mx.array, weights)

    def loss(theta, phi, values, state):
        total = mx.array(0.0)
        for t in range(case.length):
            now = slice(t, t + 1)
            keep = None if mask is None else mask[:, now]
            token = theta[:, now], phi[:, now], values[:, now]
            y, state = code.ops.memory_step(*token, state, keep)
            total = total + (y * wy[:, now]).sum()
        return total + (state * ws).sum()

    return [np.array(g) for g in mx.grad(loss, argnums=(0, 1, 2, 3))(*inputs)]


def gradients_agree(
    got: Sequence[np.ndarray], wanted: Sequence[np.ndarray], tolerance: float
) -> float:
    """Each gradient to `tolerance` of its largest entry."""
    errors = [0.0]
    for name, a, b in zip(GRADIENT_INPUTS, got, wanted, strict=True):
        scale = max(np.abs(b).max(), 1e-3)
        errors.append(close(a / scale, b / scale, tolerance, f"gradient of {name}"))
    return max(errors)


def gradients_are_the_loops(
    code: Code, case: Case, form: str = "factored", chunk_size: int | None = None
) -> float:
    """Gradients of every input and of the state, for cotangents of y and of the last state."""
    weights = cotangents(case)
    with code.form(form):
        got = scan_gradient(code, case, weights, chunk_size)
    return gradients_agree(got, finite_differences(case), GRADIENT_TOLERANCE)


def final_state_gradient_is_kept(code: Code, form: str = "factored") -> float:
    """A loss of the last state alone reaches every input that made it (mlx-recurrence: none)."""
    case = routed((1, 20, 3, 4), 3)
    with code.form(form):
        got = scan_gradient(code, case, cotangents(case, of_y=False), chunk_size=4)
    wanted = finite_differences(case, of_y=False)
    assert all(np.abs(g).max() > 0.01 for g in (wanted[0], wanted[2], wanted[3]))
    return gradients_agree(got, wanted, GRADIENT_TOLERANCE)


def routing_gradient_is_the_affinitys(code: Code, num_active: int, temperature: float) -> float:
    """d<theta, c> + <phi, e>/d routing, sparse and dense = differences of the float64 form."""
    rng = np.random.default_rng(3)
    routing, _, _ = with_rates(rng.normal(size=(6, 5)))
    weights = rng.normal(size=(2, 6, 5)).astype(np.float32)

    def loss(x: np.ndarray) -> float:
        alpha = reference.affinity(x[:, :-2], num_active, temperature)
        update, merge = reference.sigmoid(x[:, -2:, None]).swapaxes(0, 1)
        return float((update * alpha * weights[0] + merge * alpha * weights[1]).sum())

    x = double(routing)
    wanted = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        for sign in (1, -1):
            shifted = x.copy()
            shifted[at] += sign * STEP
            wanted[at] += sign * loss(shifted) / (2 * STEP)

    def of_route(routing):
        indices, *sparse = code.ops.route(routing, num_active, temperature)
        return sum(
            (scattered(indices, x, 5) * mx.array(w)).sum()
            for x, w in zip(sparse, weights, strict=True)
        )

    def of_route_dense(routing):
        dense = code.ops.route_dense(routing, num_active, temperature)
        return sum((x * mx.array(w)).sum() for x, w in zip(dense, weights, strict=True))

    return max(
        close(mx.grad(form)(mx.array(routing)), wanted, GRADIENT_TOLERANCE, form.__name__)
        for form in (of_route, of_route_dense)
    )


# Of the largest slope, 1.1; the rational sigmoid is within 2e-7 of the exponential.
SWIGLU_TOLERANCE = 1e-6


def swiglu_is_mlx_lms(code: Code) -> float:
    """Value and gradients, from where silu vanishes to where it is the identity.

    Of so many numbers that the rational form is taken.
    """
    rng = np.random.default_rng(0)
    gate = mx.concatenate([mx.linspace(-30, 30, 3001), mx.array([-1e4, -100.0, 0.0, 100.0, 1e4])])
    up = mx.array(rng.normal(size=gate.shape).astype(np.float32))
    weight = mx.array(rng.normal(size=gate.shape).astype(np.float32))

    def both(function):
        gradient = mx.grad(lambda g, u: (function(g, u) * weight).sum(), argnums=(0, 1))
        # relative to the gate, so that the value and its slope are of unit scale
        size = mx.maximum(mx.abs(gate), 1)
        d_gate, d_up = gradient(gate, up)
        return function(gate, up) / size, d_gate, d_up / size

    names = ("value", "gradient of gate", "gradient of up")
    got, want = both(code.ops.swiglu), both(mlx_lm_swiglu)
    return max(map(close, got, want, [SWIGLU_TOLERANCE] * 3, names))


def gradient_law(form="factored"):
    return lambda code: gradients_are_the_loops(code, routed((2, 10, 4, 3), 2), form, 4)


MUTANTS = [
    Mutant(
        "law 6",
        "no gradient through the decay of what is read",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_read * read + d_inner * inner - d_weight * weight",
        "d_inner * inner - d_weight * weight",
    ),
    Mutant(
        "law 6",
        "no gradient through the decay inside the norms",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_read * read + d_inner * inner - d_weight * weight",
        "d_read * read - d_weight * weight",
    ),
    Mutant(
        "law 6",
        "no gradient through what the norms keep",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_keep + 2 * keep * d_gain * norm_before",
        "d_keep",
    ),
    Mutant(
        "law 6",
        "no gradient of the norms at the chunk's start",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "d_norm0.squeeze(2)",
        "0 * d_norm0.squeeze(2)",
    ),
    Mutant(
        "law 6",
        "no gradient through the diagonal of G",
        gradient_law(),
        "ops.chunk_map",
        "_factored_backward",
        "mx.eye(size) * diagonal",
        "0 * diagonal",
    ),
    Mutant(
        "law 6",
        "no gradient through the norms (portable)",
        gradient_law("portable"),
        "ops.chunk_map",
        "_portable_forward",
        "phi * inverse_rms(mx.maximum(norm, 0), width, eps)",
        "phi * mx.stop_gradient(inverse_rms(mx.maximum(norm, 0), width, eps))",
    ),
    Mutant(
        "law 6",
        "the gradient of the last state is dropped",
        final_state_gradient_is_kept,
        "ops.state_pass",
        "_state_pass_vjp",
        "_pass(decay, d_starts, d_last, reverse=True)",
        "_pass(decay, d_starts, mx.zeros_like(d_last), reverse=True)",
    ),
    Mutant(
        "law 6",
        "no gradient through the decay of chunks",
        gradient_law(),
        "ops.state_pass",
        "_state_pass_vjp",
        "(d_increment * starts).sum(axis=-1)",
        "0 * (d_increment * starts).sum(axis=-1)",
    ),
    Mutant(
        "law 6",
        "the sum of the k best is a constant",
        lambda code: routing_gradient_is_the_affinitys(code, 2, 1.0),
        "ops.routing",
        "_by_logits",
        "_softmax(mx.take_along_axis(logits, indices, axis=-1), temperature)",
        "(lambda e: e / mx.stop_gradient(e.sum(axis=-1, keepdims=True)))"
        "(mx.exp(mx.take_along_axis(logits, indices, axis=-1) / temperature))",
    ),
    Mutant(
        "law 6",
        "silu's slope is the sigmoid",
        swiglu_is_mlx_lms,
        "ops.block",
        "_swiglu_vjp",
        "sigmoid + silu * (1 - sigmoid)",
        "sigmoid",
    ),
]
