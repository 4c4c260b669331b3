"""A decoded token as one compiled graph: the same logits and states, and nothing stale."""

from __future__ import annotations

import copy
import gc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import LOGITS_TOLERANCE, REAL, close, same_bits, tiny_model, tokens
from laws.decoding import token_by_token, token_step_is_the_forward_pass
from mlx_lm.tuner.utils import linear_to_lora_layers

from fm_mlx import cache as caches
from fm_mlx import model as model_module
from fm_mlx.memory.identity import identity_of
from fm_mlx.metal_kernels.launch import using

PROMPT = 12
BUFFERED = dict(num_memory_states=700, memory_size=64)


@pytest.fixture
def model():
    return tiny_model(REAL)


def started(model, batch: int = 1):
    """Caches after a prompt."""
    cache = model.make_cache()
    mx.eval(model(tokens((batch, PROMPT)), cache), [c.state for c in cache])
    return cache


def passes(model, run) -> int:
    """How often the blocks are gone through while something runs."""
    with patch.object(
        model_module.Backbone, "blocks", autospec=True, side_effect=model_module.Backbone.blocks
    ) as blocks:
        run()
    return blocks.call_count


class TestLogitsAndStates:
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("config", [{}, BUFFERED, dict(tie_word_embeddings=False)], ids=str)
    def test_are_those_of_the_forward_pass(self, config, batch):
        token_step_is_the_forward_pass(REAL, batch, **config)

    @pytest.mark.parametrize("config", [{}, BUFFERED], ids=["dense", "buffered"])
    def test_with_padding(self, config):
        token_step_is_the_forward_pass(REAL, 3, left_padding=[0, 14, 13], **config)

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
    def test_in_half_precision(self, dtype):
        token_step_is_the_forward_pass(REAL, 2, lambda model: model.set_dtype(dtype))

    def test_quantised(self):
        def quantise(model):
            nn.quantize(model, 32, 4, class_predicate=model.quant_predicate)

        sizes = dict(hidden_size=64, memory_size=64, intermediate_size=64)
        token_step_is_the_forward_pass(REAL, 2, quantise, **sizes)


class TestNothingIsStale:
    """What is changed after the first token is seen by the second."""

    @pytest.mark.parametrize("change", ["weights", "adapters", "quantising"])
    def test_changes_of_a_model(self, change):
        model = tiny_model(REAL, hidden_size=64, memory_size=64, intermediate_size=64)
        before = model(tokens((1, 1)), started(model))
        if change == "weights":
            model.layers[0].mlp.up_proj.weight = model.layers[0].mlp.up_proj.weight * 2
        elif change == "adapters":
            linear_to_lora_layers(model, -1, dict(rank=2, scale=10.0, dropout=0.5))
            model.eval()
            adapter = model.layers[0].memory.in_proj
            adapter.lora_b = mx.ones_like(adapter.lora_b)
        else:
            nn.quantize(model, 32, 4, class_predicate=lambda path, _: path.endswith("up_proj"))
        cache = started(model)
        with token_by_token(REAL):
            wanted = model(tokens((1, 1)), started(model))
        got = model(tokens((1, 1)), cache)
        close(got, wanted, LOGITS_TOLERANCE, "logits")
        assert not mx.array_equal(got, before)

    def test_branches_do_not_touch_each_other(self, model):
        cache, branch = started(model), started(model)
        for to, held in zip(branch, cache, strict=True):
            to.cache = list(held.cache)
        held = [mx.array(c[0]) for c in cache]
        for t in range(3):
            mx.eval(model(tokens((1, 1), seed=t), branch))
        for c, state in zip(cache, held, strict=True):
            same_bits(c[0], state, "state of the trunk")

    def test_a_failed_token_leaves_the_cache(self, model):
        cache = started(model)
        held = [c[0] for c in cache]
        with (
            patch.object(model.model, "embed_tokens", side_effect=RuntimeError("no memory")),
            pytest.raises(RuntimeError, match="no memory"),
        ):
            model(tokens((1, 1)), cache)
        for c, state in zip(cache, held, strict=True):
            assert c[0] is state


class TestOtherThreads:
    """May use the model while a token is compiled."""

    def test_read_the_weights(self, model):
        cache = started(model)
        blocks, wanted, read = model_module.Backbone.blocks, identity_of(model), []

        def read_elsewhere(backbone, *args):
            reader = Thread(target=lambda: read.append(identity_of(model)))
            reader.start()
            reader.join()
            return blocks(backbone, *args)

        with patch.object(model_module.Backbone, "blocks", read_elsewhere):
            mx.eval(model(tokens((1, 1)), cache))
        assert read == [wanted]

    def test_compile_their_own(self, model):
        caches_of_threads = [started(model), started(model)]
        blocks, wanted = model_module.Backbone.blocks, identity_of(model)
        both = Barrier(2, timeout=60)

        def together(backbone, *args):
            both.wait()
            outputs = blocks(backbone, *args)
            both.wait()
            return outputs

        def decode(cache):
            logits = model(tokens((1, 1)), cache)
            return np.array(logits)

        with (
            patch.object(model_module.Backbone, "blocks", together),
            ThreadPoolExecutor(2) as pool,
        ):
            first, second = pool.map(decode, caches_of_threads)
        assert identity_of(model) == wanted
        assert np.array_equal(first, second)


class TestWhenItIsTaken:
    def test_once_for_every_batch_size(self, model):
        alone, many = started(model), started(model, batch=3)

        def run():
            for t in range(4):
                mx.eval(model(tokens((1, 1), seed=t), alone))
                mx.eval(model(tokens((3, 1), seed=t), many))

        assert passes(model, run) == 2

    @pytest.mark.parametrize(
        "why", ["training", "two tokens", "no state yet", "watched", "embeddings", "kernels"]
    )
    def test_plain_passes(self, model, why):
        cache = started(model)
        ids = tokens((1, 2 if why == "two tokens" else 1))
        rest = {}
        if why == "training":
            model.train()
        if why == "embeddings":
            rest["input_embeddings"] = model.model.embed_tokens(ids)
        backend = "simulator" if why == "kernels" else "ops"

        def run():
            for _ in range(3):
                if why == "no state yet":
                    used = model.make_cache()
                elif why == "watched":
                    used = [caches.RewindableCache(c[0]) for c in cache]
                else:
                    used = cache
                mx.eval(model(ids, used, **rest))

        with using(backend):
            assert passes(model, run) == 3

    def test_ends_with_its_model(self):
        """As soon as nobody refers to the model, without the collector of cycles."""
        gc.collect()
        before = mx.get_active_memory()
        model = tiny_model(REAL, num_memory_states=64, memory_size=64)
        cache = started(model)
        mx.eval(model(tokens((1, 1)), cache), [c.state for c in cache])
        assert mx.get_active_memory() > before + 50_000
        gc.disable()
        try:
            del model, cache
            assert mx.get_active_memory() < before + 1000
        finally:
            gc.enable()

    def test_a_copy_of_the_model_has_its_own(self, model):
        mx.eval(model(tokens((1, 1)), started(model)))
        copied = copy.deepcopy(model)
        copied.layers[0].mlp.up_proj.weight = 2 * copied.layers[0].mlp.up_proj.weight
        for of in (model, copied):
            with token_by_token(REAL):
                wanted = of(tokens((1, 1)), started(of))
            close(of(tokens((1, 1)), started(of)), wanted, LOGITS_TOLERANCE, "logits")
