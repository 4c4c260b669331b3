"""Product keys: rows that are chosen by the sums of two halves of logits (`router: "product"`)."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from json import dumps

import mlx.core as mx
import numpy as np
import pytest
from cases import LOGITS_TOLERANCE, REAL, TINY, close, same_bits, tiny_model, tokens
from laws.decoding import BUFFERED, buffered_decode_is_the_dense
from laws.padding import model_of_left_padded_rows, model_of_right_padded_rows
from laws.product_keys import choice_is_that_among_all_rows, of_rows, scores_of_halves
from laws.recurrence import model_is_the_reference
from laws.rows import AFFINITY_TOLERANCE, not_on_the_cpu
from laws.splits import model_may_be_split

from fm_mlx import ops
from fm_mlx.layer import FactorizationMemory
from fm_mlx.memory.identity import identity_of
from fm_mlx.metal_kernels import launch
from fm_mlx.metal_kernels.catalogue import KERNELS
from fm_mlx.model import ModelArgs

PRODUCT = dict(router="product")
FEW = PRODUCT | dict(num_memory_states=9, num_active_states=4)
# scanned on the active rows
MANY = PRODUCT | dict(num_memory_states=400, num_active_states=3)
# decoded on two buffers
PRODUCT_BUFFERED = BUFFERED | PRODUCT | dict(num_memory_states=256)


class TestChoice:
    @pytest.mark.parametrize(
        ("half", "num_active"),
        [(1, 1), (2, 4), (5, 3), (5, 6), (5, 25), (40, 1), (40, 7), (600, 5)],
    )
    @pytest.mark.parametrize("keys", [False, True])
    def test_is_that_among_all_rows(self, half, num_active, keys):
        if keys:
            with not_on_the_cpu(REAL):
                choice_is_that_among_all_rows(REAL, half, num_active)
        else:
            choice_is_that_among_all_rows(REAL, half, num_active)

    def test_dense_form(self):
        scores = mx.array(scores_of_halves(5))
        sparse = ops.route(scores, 3, product_keys=True).on_all_rows(25)
        for got, wanted in zip(ops.route_dense(scores, 3, 1.0, True), sparse, strict=True):
            same_bits(got, wanted, "weights of all rows")

    def test_gradients_are_those_of_the_sums(self):
        scores, weights = scores_of_halves(6), np.random.default_rng(3).normal(size=(2, 40, 4))

        def loss(routing, product_keys):
            _, theta, phi = ops.route(routing, 4, 0.5, product_keys)
            return (theta * mx.array(weights[0]) + phi * mx.array(weights[1])).sum()

        got = mx.grad(loss)(mx.array(scores), True)
        of_all = np.array(mx.grad(loss)(mx.array(of_rows(scores)), False))
        of_sums = of_all[:, :-2].reshape(-1, 6, 6)
        wanted = np.concatenate([of_sums.sum(2), of_sums.sum(1), of_all[:, -2:]], axis=1)
        close(got, wanted, AFFINITY_TOLERANCE, "gradient")

    def test_refuses_uneven_halves(self):
        with pytest.raises(ValueError, match="there are 7 logits; product keys have two halves"):
            ops.route(mx.zeros((1, 9)), 1, product_keys=True)

    def test_refuses_more_active_rows_than_rows(self):
        with pytest.raises(ValueError, match="num_active is 10; allowed are 1 to 9"):
            ops.route(mx.zeros((1, 8)), 10, product_keys=True)


@pytest.mark.parametrize("config", [FEW, MANY], ids=["few rows", "many rows"])
class TestModels:
    def test_reference(self, config):
        model_is_the_reference(REAL, **config)

    def test_may_be_split(self, config):
        model_may_be_split(REAL, [25, 1, 7, 28], **config)

    def test_right_padding(self, config):
        model_of_right_padded_rows(REAL, **config)

    def test_left_padding(self, config):
        model_of_left_padded_rows(REAL, **config)

    def test_router_has_two_halves(self, config):
        model = tiny_model(REAL, **config)
        logits = 2 * int(config["num_memory_states"] ** 0.5)
        assert model.layers[0].memory.router.weight.shape == (logits + 2, TINY["hidden_size"])


@pytest.mark.parametrize("masked", [False, True])
def test_decoding_on_two_buffers(masked):
    buffered_decode_is_the_dense(REAL, masked=masked, **PRODUCT_BUFFERED)


@pytest.mark.parametrize(
    ("config", "launches"), [(FEW, 0), (PRODUCT_BUFFERED, 12)], ids=["one state", "two buffers"]
)
def test_decoding_by_the_kernels(config, launches):
    """The simulator decodes as the CPU does, to the rounding of two orders of sums."""
    model = tiny_model(REAL, **config)
    ids = tokens((2, 12))
    caches = model.make_cache(), model.make_cache()
    before = KERNELS["sparse_update_product"].launches
    for piece in (ids[:, :6], *mx.split(ids[:, 6:], 6, axis=1)):
        wanted = model(piece, caches[0])
        with launch.using("simulator"):
            got = model(piece, caches[1])
            mx.eval(got)
        close(got, wanted, LOGITS_TOLERANCE, "logits")
    # six tokens of two layers
    assert KERNELS["sparse_update_product"].launches == before + launches


def test_a_million_rows_are_chosen_from_two_thousand_logits():
    """No array has m numbers: the largest of the graph are the logits and the candidates."""
    scores = mx.array(scores_of_halves(1024, count=2))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(ops.route(scores, 8, product_keys=True))
    assert mx.get_peak_memory() - before < 1024**2 * 4 / 4


class TestConfig:
    def test_the_papers_router_is_the_default(self):
        assert ModelArgs.from_dict(TINY).router == "linear"

    def test_unknown_router(self):
        with pytest.raises(ValueError, match="router is 'pkm'; allowed are 'linear' and 'product'"):
            ModelArgs.from_dict(TINY | dict(router="pkm"))

    def test_rows_that_are_no_square(self):
        with pytest.raises(ValueError, match="num_memory_states is 6; with router 'product'"):
            ModelArgs.from_dict(TINY | PRODUCT)

    def test_a_layer_of_rows_that_are_no_square(self):
        with pytest.raises(ValueError, match="there are 6 rows"):
            FactorizationMemory(8, 4, 6, 2, router="product")

    def test_memories_of_before_stay_valid(self):
        """The config of a memory's model is what it was when there was one router."""
        args = asdict(tiny_model(REAL).args)
        del args["router"]
        digest = sha256(dumps(args, sort_keys=True).encode()).hexdigest()
        assert identity_of(tiny_model(REAL)).config == digest

    def test_another_router_is_another_model(self):
        of_linear = tiny_model(REAL, num_memory_states=4)
        of_product = tiny_model(REAL, num_memory_states=4, **PRODUCT)
        with pytest.raises(ValueError, match="config"):
            identity_of(of_linear).check(identity_of(of_product), "the memory")
