"""Routing, swiglu and the edges of the ops: ties, half precision, NaN, misfit shapes."""

from __future__ import annotations

from contextlib import nullcontext

import mlx.core as mx
import numpy as np
import pytest
from cases import REAL, routed, same_bits
from laws.rows import not_on_the_cpu, routing_is_the_affinity, with_rates
from mlx_lm.models.activations import swiglu

from fm_mlx import ops

ROWS = 9


@pytest.fixture(params=["partition", "keys"])
def choice(request):
    """Both ways to choose the rows without the kernel."""
    with not_on_the_cpu(REAL) if request.param == "keys" else nullcontext():
        yield


@pytest.mark.usefixtures("choice")
class TestRouting:
    """`route` and `route_dense`."""

    @pytest.mark.parametrize("num_active", [1, 2, 8, ROWS])
    @pytest.mark.parametrize("temperature", [1.0, 0.5, 0.125])
    def test_is_the_affinity(self, num_active, temperature):
        logits = np.random.default_rng(0).normal(size=(50, ROWS)).astype(np.float32)
        routing_is_the_affinity(REAL, logits, num_active, temperature)

    @pytest.mark.parametrize("num_active", [1, 4, ROWS])
    @pytest.mark.parametrize("zero", [0.0, [0.0, -0.0] * 4 + [0.0]], ids=["equal", "signed"])
    def test_ties_go_to_the_lowest_index(self, num_active, zero):
        equal = np.zeros((2, ROWS), np.float32) + np.float32(zero)
        routing_is_the_affinity(REAL, equal, num_active)

    def test_ties_among_a_few_levels(self):
        levels = np.random.default_rng(1).normal(size=3).astype(np.float32)
        for rows in (3, ROWS, 21, 64, 4096):
            logits = np.random.default_rng(rows).choice(levels, (200 if rows < 100 else 3, rows))
            for num_active in range(1, rows + 1, max(5, rows // 7)):
                routing_is_the_affinity(REAL, logits, num_active)

    def test_affinities_that_underflow_to_zero(self):
        """Three rows share everything; the other two places go to the largest logits left."""
        logits = np.full((1, ROWS), -2000, np.float32)
        logits[0, [2, 5, 7]] = [0, 3, 1]
        logits[0, 8] = -1000
        indices, theta, _ = ops.route(mx.array(with_rates(logits)[0]), 5)
        assert np.array(indices).tolist() == [[0, 2, 5, 7, 8]]
        assert np.array(theta)[0, [0, 4]].tolist() == [0, 0]
        routing_is_the_affinity(REAL, logits[:, [2, 5, 7, 8]], 3)

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
    def test_half_precision_logits(self, dtype):
        """Computed in float32; bf16 logits tie often."""
        routing = mx.array(np.random.default_rng(2).normal(size=(100, ROWS + 2))).astype(dtype)
        for op in (ops.route, ops.route_dense):
            got, wanted = op(routing, 3), op(routing.astype(mx.float32), 3)
            assert got[-1].dtype == mx.float32
            for a, b in zip(got, wanted, strict=True):
                same_bits(a, b, "routing")
        logits = routing[:, :ROWS].astype(mx.float32)
        routing_is_the_affinity(REAL, np.array(logits), 3)

    @pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("num_active", [1, 4, ROWS])
    def test_nan_scores_still_give_rows_that_exist_once(self, bad, num_active):
        """Indices out of range would write outside the state (mlx-mfa)."""
        routing = np.zeros((3, ROWS + 2), np.float32)
        routing[0, 4] = routing[1, :ROWS] = bad
        indices = np.array(ops.route(mx.array(routing), num_active)[0])
        for row in indices:
            assert len(set(row.tolist())) == num_active
            assert row.min() >= 0 and row.max() < ROWS

    def test_any_leading_shape(self):
        routing = mx.random.normal((2, 3, 4, ROWS + 2))
        sparse = ops.route(routing, 2)
        assert {x.shape for x in sparse} == {(2, 3, 4, 2)}
        alone = ops.route(routing[1, 2, 3], 2)
        same_bits(sparse[0][1, 2, 3], alone[0], "indices")
        for dense in ops.route_dense(routing, 2):
            assert dense.shape == (2, 3, 4, ROWS)
            active = (np.array(dense) > 0).sum(axis=-1)
            assert active.tolist() == np.full((2, 3, 4), 2).tolist()

    @pytest.mark.parametrize("num_active", [0, -1, ROWS + 1])
    def test_number_of_rows_out_of_range(self, num_active):
        for op in (ops.route, ops.route_dense):
            with pytest.raises(ValueError, match=rf"num_active is {num_active}; .*1 to {ROWS}"):
                op(mx.zeros((1, ROWS + 2)), num_active)

    @pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
    def test_temperature_out_of_range(self, temperature):
        for op in (ops.route, ops.route_dense):
            with pytest.raises(ValueError, match=f"temperature is {temperature}"):
                op(mx.zeros((1, ROWS + 2)), 2, temperature)


class TestMemoryScanRefuses:
    @pytest.mark.parametrize("chunk_size", [0, -1, 33])
    def test_chunk_sizes(self, chunk_size):
        inputs = routed((1, 5, 3, 4), 1).arrays()[:3]
        with pytest.raises(ValueError, match=f"chunk_size is {chunk_size}; allowed are 1 to 32"):
            ops.memory_scan(*inputs, chunk_size=chunk_size)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("theta", (5, 3)),
            ("theta", (1, 0, 3)),
            ("phi", (1, 5, 4)),
            ("phi", (1, 4, 3)),
            ("values", (5, 4)),
            ("values", (1, 6, 4)),
            ("values", (2, 5, 4)),
            ("state", (1, 4, 3)),
            ("state", (3, 4)),
            ("state", (2, 3, 4)),
            ("mask", (1, 4)),
            ("mask", (5,)),
        ],
    )
    def test_misfit_shapes(self, name, shape):
        inputs = {
            "theta": mx.zeros((1, 5, 3)),
            "phi": mx.zeros((1, 5, 3)),
            "values": mx.zeros((1, 5, 4)),
            "state": mx.zeros((1, 3, 4)),
            "mask": mx.ones((1, 5), dtype=mx.bool_),
        }
        ops.memory_scan(**inputs)
        inputs[name] = mx.zeros(shape).astype(inputs[name].dtype)
        with pytest.raises(ValueError, match="shape"):
            ops.memory_scan(**inputs)


class TestSwiglu:
    """Value and gradient: test_gradients.py."""

    @pytest.mark.parametrize("times", [1, 1000], ids=["few", "many"])
    def test_infinite_and_nan_inputs_as_mlx_lms(self, times):
        gate = mx.tile(mx.array([-1e30, 1e30, np.nan, 1.0]), times)
        up = mx.tile(mx.array([1.0, 1.0, 1.0, np.nan]), times)
        np.testing.assert_allclose(
            np.array(ops.swiglu(gate, up)), np.array(swiglu(gate, up)), rtol=1e-6, atol=1e-6
        )

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
    def test_half_precision_stays(self, dtype):
        x = mx.linspace(-4, 4, 9).astype(dtype)
        assert ops.swiglu(x, x).dtype == dtype
        same_bits(ops.swiglu(x, x).astype(mx.float32), swiglu(x, x).astype(mx.float32), "swiglu")

    def test_zero_tokens(self):
        assert ops.swiglu(mx.zeros((0, 4)), mx.zeros((0, 4))).shape == (0, 4)


class TestSparseMemoryStep:
    @pytest.mark.parametrize("garbage", [np.inf, np.nan])
    def test_mask(self, garbage):
        """Padding neither writes nor reads, whatever its value is."""
        theta, phi, values, state, _ = routed((2, 1, 6, 4), 6).arrays()
        indices = mx.array([[[4, 1]], [[0, 5]]], dtype=mx.int32)
        weights = [mx.take_along_axis(x, indices, axis=-1) for x in (theta, phi)]
        wanted = ops.sparse_memory_step(indices, *weights, values, state)
        mask = mx.array([[True], [False]])
        padded = mx.where(mask[..., None], values, garbage)
        y, last = ops.sparse_memory_step(indices, *weights, padded, state, mask)
        same_bits(np.array(y[0]), np.array(wanted[0][0]), "y")
        same_bits(np.array(last[0]), np.array(wanted[1][0]), "state")
        assert not np.array(y[1]).any()
        same_bits(np.array(last[1]), np.array(state[1]), "state of the padded row")
