"""Many rows: the scan on the active rows alone, the choice of rows by blocks, and models."""

from __future__ import annotations

from unittest.mock import patch

import mlx.core as mx
import numpy as np
import pytest
from cases import (
    EXTREMES,
    FORMS,
    LOGITS_TOLERANCE,
    REAL,
    close,
    extreme,
    routed,
    tiny_model,
    tokens,
)
from laws.padding import model_of_left_padded_rows, model_of_right_padded_rows
from laws.recurrence import model_is_the_reference
from laws.rows import not_on_the_cpu
from laws.sparse_scan import (
    few_values,
    gradients_of_many_groups,
    many_groups,
    masked,
    routing_by_blocks,
    sparse_gradients_are_the_scans,
    sparse_scan_is_the_loop,
)
from laws.splits import model_may_be_split

from fm_mlx import layer, ops
from fm_mlx.cache import RewindableCache

MANY = dict(num_memory_states=140, num_active_states=2)


class TestScan:
    @pytest.mark.parametrize("chunk_size", [1, 2, 7, 16, 32, None])
    def test_chunk_sizes(self, chunk_size):
        sparse_scan_is_the_loop(REAL, routed((2, 70, 30, 6), 3), 3, chunk_size)

    @pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 67])
    def test_tails(self, length):
        sparse_scan_is_the_loop(REAL, routed((2, length, 40, 4), 1), 1)

    @pytest.mark.parametrize("kind", EXTREMES)
    def test_extreme_write_weights(self, kind):
        sparse_scan_is_the_loop(REAL, extreme(kind, (2, 100, 3, 4)), 3)

    @pytest.mark.parametrize("form", FORMS)
    def test_forms_of_a_chunk(self, form):
        """The kernels too, as the simulator runs them."""
        with REAL.form(form):
            sparse_scan_is_the_loop(REAL, routed((2, 40, 12, 4), 2), 2)

    def test_groups_of_groups(self):
        many_groups(REAL)

    def test_mask(self):
        masked(REAL)

    def test_dtype_of_values(self):
        theta, phi, values, state, _ = routed((1, 5, 6, 4), 6).arrays()
        indices = mx.broadcast_to(mx.arange(6, dtype=mx.int32), theta.shape)
        routing = ops.SparseRouting(indices, theta, phi)
        y, last = ops.sparse_memory_scan(routing, values.astype(mx.bfloat16), state)
        assert (y.dtype, last.dtype) == (mx.bfloat16, mx.float32)

    @pytest.mark.parametrize("chunk_size", [0, 33])
    def test_refuses_chunk_sizes(self, chunk_size):
        theta, phi, values, state, _ = routed((1, 5, 6, 4), 6).arrays()
        indices = mx.broadcast_to(mx.arange(6, dtype=mx.int32), theta.shape)
        routing = ops.SparseRouting(indices, theta, phi)
        with pytest.raises(ValueError, match="chunk_size is"):
            ops.sparse_memory_scan(routing, values, state, chunk_size=chunk_size)


class TestGradients:
    @pytest.mark.parametrize("num_active", [1, 2, 5])
    def test_are_those_of_the_scan(self, num_active):
        case = routed((2, 40, 20, 4), num_active)
        sparse_gradients_are_the_scans(REAL, case, num_active)

    def test_of_groups_of_groups(self):
        gradients_of_many_groups(REAL)


class TestChoiceByBlocks:
    @pytest.mark.parametrize(("rows", "num_active"), [(512, 2), (513, 8), (700, 1), (1000, 7)])
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("keys", [False, True])
    def test_is_that_of_a_stable_sort(self, rows, num_active, ties, keys):
        logits = few_values((40, rows))
        if not ties:
            logits = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
        if keys:
            with not_on_the_cpu(REAL):
                routing_by_blocks(REAL, logits, num_active)
        else:
            routing_by_blocks(REAL, logits, num_active)

    def test_of_equal_and_infinite_logits(self):
        routing_by_blocks(REAL, np.zeros((40, 513), np.float32), 3)
        logits = few_values((40, 513))
        logits[:, 3:] = -np.inf
        routing_by_blocks(REAL, logits, 3)


class TestModelsOfManyRows:
    """They scan the active rows; every law of a model holds."""

    def test_take_the_sparse_scan(self):
        model = tiny_model(REAL, **MANY)
        with patch.object(
            layer.ops, "sparse_memory_scan", side_effect=ops.sparse_memory_scan
        ) as scan:
            model(tokens((1, 9)))
        assert scan.call_count == 2

    def test_reference(self):
        model_is_the_reference(REAL, **MANY)

    def test_may_be_split(self):
        model_may_be_split(REAL, [25, 1, 7, 28], **MANY)

    def test_right_padding(self):
        model_of_right_padded_rows(REAL, **MANY)

    def test_left_padding(self):
        model_of_left_padded_rows(REAL, **MANY)

    def test_packed_texts(self):
        model = tiny_model(REAL, **MANY)
        ids = tokens((1, 40))
        got = model(ids, reset_positions=mx.array([[13]]))
        wanted = mx.concatenate([model(ids[:, :13]), model(ids[:, 13:])], axis=1)
        close(got, wanted, LOGITS_TOLERANCE, "logits")

    def test_rewinding(self):
        model = tiny_model(REAL, **MANY)
        ids = tokens((1, 12))
        cache = [RewindableCache(None) for _ in model.layers]
        model(ids[:, :4], cache)
        model(ids[:, 4:10], cache)
        for layer_cache in cache:
            layer_cache.rewind(3)
        wanted = model.make_cache()
        model(ids[:, :7], wanted)
        for a, b in zip(cache, wanted, strict=True):
            close(a[0], REAL.cache.state_of(b), LOGITS_TOLERANCE, "state")
