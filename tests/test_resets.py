"""Packing without leaks, and memories that begin with what was learned."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import pytest
from cases import FORMS, REAL, tiny_model, tokens
from laws.resets import nothing_leaks, packed_is_separate
from mlx_lm import batch_generate

from fm_mlx import ops


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_packed_is_separate(form, chunk_size):
    packed_is_separate(REAL, form, chunk_size)


def test_nothing_leaks():
    nothing_leaks(REAL)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(reset_positions=mx.zeros((3, 1), mx.int32)), "reset_positions have shape"),
        (dict(reset_positions=mx.zeros((2,), mx.int32)), "reset_positions have shape"),
        (
            dict(reset_positions=mx.zeros((2, 1), mx.int32), reset_state=mx.zeros((4, 7))),
            "reset_state has shape",
        ),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    weights = mx.zeros((2, 10, 4))
    with pytest.raises(ValueError, match=message):
        ops.memory_scan(weights, weights, mx.zeros((2, 10, 6)), **change)


# of plain and of buffered caches
SIZES = [{}, dict(num_memory_states=260, num_active_states=8, memory_size=160)]


def learned_model(**config):
    model = tiny_model(REAL, **config)
    model.initial_memory = model.initial_memory.to_lora()
    for layer in model.initial_memory.layers:
        layer.m = mx.random.normal(layer.m.shape)
    return model


@pytest.mark.parametrize("config", SIZES)
class TestInitialMemory:
    def test_texts_of_a_row_begin_with_it(self, config):
        model = learned_model(**config)
        text = tokens((2, 90))
        packed = model(text, reset_positions=mx.array([[30, 90], [1, 64]]))
        for row, cuts in enumerate([[0, 30, 90], [0, 1, 64, 90]]):
            parts = [model(text[row : row + 1, a:b]) for a, b in pairwise(cuts)]
            wanted = mx.concatenate(parts, axis=1)
            assert mx.allclose(packed[row : row + 1], wanted, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("first", [1, 40])
    def test_caches_begin_with_it(self, config, first):
        """Of a batch whose size a fresh cache does not know, read in one piece or in steps."""
        model = learned_model(**config)
        text = tokens((3, 44))
        wanted = model(text)
        cache = model.make_cache()
        got = [model(text[:, :first], cache=cache)]
        got += [model(text[:, t : t + 1], cache=cache) for t in range(first, 44)]
        got = mx.concatenate(got, axis=1)
        assert mx.allclose(got, wanted, rtol=0, atol=5e-5)
        without = tiny_model(REAL, **config)
        assert not mx.allclose(without(text), wanted, rtol=0, atol=1e-2)

    def test_ragged_batches_begin_with_it(self, config, loaded):
        """mlx-lm's batches join fresh caches and used ones, and fill what is missing with zeros."""
        model = learned_model(**config)
        tokenizer = loaded[1]
        prompts = [tokens((length,), seed=length).tolist() for length in (3, 40, 17)]
        used = model.make_cache()
        model(tokens((1, 20), seed=9), cache=used)
        alone = [batch_generate(model, tokenizer, [p], max_tokens=8) for p in prompts]
        together = batch_generate(model, tokenizer, prompts, max_tokens=8)
        assert together.texts == [reply.texts[0] for reply in alone]

        def joined(caches):
            batch = [
                caches[0][i].merge([cache[i] for cache in caches]) for i in range(len(caches[0]))
            ]
            return model(tokens((2, 1), seed=4), cache=batch)

        fresh = model(tokens((2, 1), seed=4)[1:])
        assert mx.allclose(joined([used, model.make_cache()])[1:], fresh, rtol=0, atol=2e-5)


def test_weights_bring_their_place():
    """A checkpoint with a learned memory loads into a model that had none, in float32."""
    model = tiny_model(REAL)
    assert not model.initial_memory.is_learned
    assert not model.parameters()["initial_memory"]
    shape = model.args.num_memory_states, model.args.memory_size
    weights = {
        f"initial_memory.layers.{i}.m": mx.ones(shape, mx.bfloat16)
        for i in range(model.args.num_hidden_layers)
    }
    weights = model.sanitize(weights)
    model.load_weights(list(weights.items()), strict=False)
    assert [state.dtype for state in model.initial_memory.states()] == [mx.float32] * len(weights)
    assert all(cache[0].shape == (1, *shape) for cache in model.make_cache())
