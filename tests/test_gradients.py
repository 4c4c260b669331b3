"""Law 6: gradients against finite differences of the float64 loop and the step's autodiff."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from cases import EXTREMES, FORMS, REAL, extreme, routed
from laws.gradients import (
    GRADIENT_TOLERANCE,
    cotangents,
    final_state_gradient_is_kept,
    gradients_agree,
    gradients_are_the_loops,
    routing_gradient_is_the_affinitys,
    scan_gradient,
    step_gradient,
    swiglu_is_mlx_lms,
)
from laws.padding import ragged

# The same float32 expressions, fused in another way.
TRANSFORM_TOLERANCE = 1e-6

forms = pytest.mark.parametrize("form", FORMS)


class TestScanAgainstFiniteDifferences:
    @forms
    @pytest.mark.parametrize("num_active", [1, 2, 4])
    @pytest.mark.parametrize("chunk_size", [1, 4, 9, None])
    def test_sparse_and_dense(self, form, num_active, chunk_size):
        gradients_are_the_loops(REAL, routed((2, 10, 4, 3), num_active), form, chunk_size)

    @forms
    def test_chunks_of_the_longest_size(self, form):
        gradients_are_the_loops(REAL, routed((1, 67, 2, 2), 1), form, 32)

    @forms
    @pytest.mark.parametrize("kind", EXTREMES)
    def test_extreme_write_weights(self, form, kind):
        """No gradient is lost, or NaN, where a row is overwritten (theta = 1)."""
        gradients_are_the_loops(REAL, extreme(kind, (1, 20, 2, 6)), form)

    @forms
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_masked_tokens_have_none(self, form, side):
        case = ragged([18, 7], side, garbage=np.nan)
        weights = cotangents(case)
        with REAL.form(form):
            got = scan_gradient(REAL, case, weights, chunk_size=4)
        for gradient in got[:3]:
            assert not gradient[~case.mask].any()
        clean = [np.where(case.mask[..., None], x, 0) for x in (case.theta, case.phi, case.values)]
        clean = replace(case, theta=clean[0], phi=clean[1], values=clean[2])
        wanted = step_gradient(REAL, clean, weights)
        gradients_agree(got, wanted, GRADIENT_TOLERANCE)

    @forms
    def test_of_the_last_state_alone(self, form):
        final_state_gradient_is_kept(REAL, form)


class TestScanAgainstTheStepLoop:
    @forms
    @pytest.mark.parametrize("kind", ["routed", *EXTREMES])
    def test_autodiff(self, form, kind):
        shape = (2, 70, 4, 6)
        case = routed(shape, 2) if kind == "routed" else extreme(kind, shape)
        weights = cotangents(case)
        with REAL.form(form):
            got = scan_gradient(REAL, case, weights)
        gradients_agree(got, step_gradient(REAL, case, weights), GRADIENT_TOLERANCE)

    @forms
    def test_more_chunks_than_one_pass_of_the_state_takes(self, form):
        case = routed((1, 70, 3, 4), 1)
        weights = cotangents(case)
        with REAL.form(form):
            got = scan_gradient(REAL, case, weights, chunk_size=1)
        gradients_agree(got, step_gradient(REAL, case, weights), GRADIENT_TOLERANCE)


class TestTransforms:
    """The gradients are the same under what trainers wrap around them."""

    @forms
    def test_checkpoint(self, form):
        case = routed((2, 40, 3, 4), 2)
        weights = cotangents(case)
        with REAL.form(form):
            plain = scan_gradient(REAL, case, weights)
            got = scan_gradient(REAL, case, weights, checkpoint=True)
        gradients_agree(got, plain, TRANSFORM_TOLERANCE)

    def test_compile(self):
        """One function, compiled for one length and then, again, for others.

        Only the form of this device: on a CPU compiling runs the C++ compiler, for half a
        minute in all if nothing is in its cache yet.
        """

        def loss(theta, phi, values, state):
            y, last = REAL.ops.memory_scan(theta, phi, values, state)
            return y.square().sum() + last.square().sum()

        plain = mx.grad(loss, argnums=(0, 1, 2, 3))
        compiled = mx.compile(plain)
        for length in (40, 33, 40):
            inputs = routed((1, length, 3, 6), 2).arrays()[:4]
            got, wanted = ([np.array(x) for x in f(*inputs)] for f in (compiled, plain))
            gradients_agree(got, wanted, TRANSFORM_TOLERANCE)


@pytest.mark.parametrize("num_active", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_routing(num_active, temperature):
    routing_gradient_is_the_affinitys(REAL, num_active, temperature)


def test_swiglu():
    swiglu_is_mlx_lms(REAL)
