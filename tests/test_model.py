"""Law 10 (precision), the config, and mlx-lm's contract for weights and caches."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest
from cases import REAL, TINY, close, same_bits, tiny_model, tokens
from laws.precision import (
    bf16_decode_does_not_drift,
    casting_keeps_precision,
    lora_leaves_the_router_alone,
    quantising_keeps_precision,
)
from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.models.cache import ArraysCache

from fm_mlx import Model, ModelArgs

REQUIRED = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "vocab_size": 11,
}


class TestLaw10PrecisionOfRouterNormsAndState:
    """Gates that were cast or quantised: mlx-vlm #2053."""

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
    def test_casting(self, dtype):
        casting_keeps_precision(REAL, dtype)

    @pytest.mark.parametrize("group_size", [32, 64])
    def test_quantising(self, group_size):
        quantising_keeps_precision(REAL, group_size=group_size, bits=4)

    @pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_4_6"])
    def test_recipes_that_ignore_the_models_predicate(self, recipe):
        quantising_keeps_precision(
            REAL,
            lambda model: mixed_quant_predicate_builder(recipe, model, 32),
            group_size=32,
            bits=4,
        )

    def test_default_lora(self):
        lora_leaves_the_router_alone(REAL)

    def test_bf16_decode_does_not_drift(self):
        bf16_decode_does_not_drift(REAL)

    def test_sanitize_restores_a_checkpoint_that_was_cast(self):
        model = tiny_model(REAL)
        cast = {n: w.astype(mx.bfloat16) for n, w in tree_flatten(model.parameters())}
        for name, weight in model.sanitize(cast).items():
            precise = "router" in name or "norm" in name
            assert weight.dtype == (mx.float32 if precise else mx.bfloat16), name


class TestWeights:
    def test_names(self):
        """The names converters and other tools rely on."""
        block = (
            "memory_norm",
            "memory.in_proj",
            "memory.router",
            "memory.out_proj",
            "mlp_norm",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
        names = {f"model.layers.{i}.{name}.weight" for i in range(2) for name in block}
        names |= {"model.embed_tokens.weight", "model.norm.weight"}
        tied = dict(tree_flatten(tiny_model(REAL).parameters()))
        untied = tree_flatten(tiny_model(REAL, tie_word_embeddings=False).parameters())
        assert set(tied) == names
        assert {name for name, _ in untied} == names | {"lm_head.weight"}
        rows, hidden = TINY["num_memory_states"], TINY["hidden_size"]
        assert tied["model.layers.0.memory.router.weight"].shape == (rows + 2, hidden)

    @pytest.mark.parametrize("tied", [True, False])
    def test_sanitize_is_idempotent(self, tied):
        model = tiny_model(REAL, tie_word_embeddings=tied)
        weights = dict(tree_flatten(model.parameters()))
        weights["lm_head.weight"] = mx.zeros((50, 32))
        once = model.sanitize(dict(weights))
        twice = model.sanitize(dict(once))
        assert ("lm_head.weight" in once) is not tied
        assert once.keys() == twice.keys()
        for name, weight in once.items():
            same_bits(twice[name], weight, name)
        model.load_weights(list(once.items()))  # strict: all are there, none is foreign


class TestCache:
    def test_is_one_plain_arrays_cache_per_layer(self):
        model = tiny_model(REAL)
        cache = model.make_cache()
        assert [type(layer) for layer in cache] == [ArraysCache] * len(model.layers)
        model(tokens((3, 40)), cache)
        assert [layer[0].shape for layer in cache] == [(3, 6, 12)] * 2

    def test_holds_states_not_the_buffers_they_were_cut_from(self):
        """A slice can keep alive the states of all chunks it was one of."""
        model = tiny_model(REAL, num_hidden_layers=1, num_memory_states=64, memory_size=64)
        ids = tokens((1, 1024))
        mx.eval(model(ids, model.make_cache()))
        mx.clear_cache()
        before = mx.get_active_memory()
        cache = model.make_cache()
        mx.eval(model(ids, cache)[:, -1], cache[0][0])
        held = mx.get_active_memory() - before
        # the 32 chunks' states would be 32 times as much
        assert held <= 4 * cache[0][0].nbytes

    def test_branches_do_not_touch_each_other(self):
        model = tiny_model(REAL)
        cache, branch, alone = (model.make_cache() for _ in range(3))
        model(tokens((1, 40)), cache)
        for to, held in zip(branch, cache, strict=True):
            to[0] = held[0]
        for t in range(3):
            model(tokens((1, 1), seed=t), branch)
        model(tokens((1, 40)), alone)
        for a, b in zip(cache, alone, strict=True):
            same_bits(a[0], b[0], "state of the trunk")

    def test_embeddings_in_place_of_tokens(self):
        model = tiny_model(REAL)
        ids = tokens((2, 9))
        embedded = model(ids, input_embeddings=model.model.embed_tokens(ids) * 2)
        assert not mx.array_equal(embedded, model(ids))
        same_bits(model(ids * 0, input_embeddings=model.model.embed_tokens(ids)), model(ids), "y")

    def test_training_forward_needs_no_cache(self):
        model = tiny_model(REAL)
        ids = tokens((2, 40))
        close(model(ids), model(ids, model.make_cache()), 0, "logits")


class TestModelArgs:
    def test_absent_keys_take_the_papers_choices(self):
        args = ModelArgs.from_dict(REQUIRED)
        assert (args.memory_size, args.num_memory_states, args.num_active_states) == (8, 64, 16)
        assert (args.affinity_temperature, args.tie_word_embeddings) == (1.0, True)

    def test_foreign_keys_are_ignored(self):
        assert ModelArgs.from_dict({**REQUIRED, "architectures": ["x"]}).hidden_size == 8

    def test_all_rows_active(self):
        args = ModelArgs.from_dict({**REQUIRED, "num_memory_states": 5, "num_active_states": 5})
        assert Model(args)(mx.zeros((1, 3), mx.int32)).shape == (1, 3, 11)

    @pytest.mark.parametrize(
        "key",
        [
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "vocab_size",
            "memory_size",
            "num_memory_states",
            "num_active_states",
        ],
    )
    @pytest.mark.parametrize("value", [0, -3, 1.5, "8", True, float("nan"), 2**31, 2**63])
    def test_nonsense_sizes(self, key, value):
        self.refuses(key, value, allowed="1")

    def test_numbers_that_python_does_not_print(self):
        for digits, shown in ((400, "(401 characters)"), (5000, "a number of thousands of digits")):
            with pytest.raises(ValueError, match=f"hidden_size is .*{re.escape(shown)}; allowed"):
                ModelArgs.from_dict({**REQUIRED, "hidden_size": 10**digits})

    @pytest.mark.parametrize("key", ["hidden_size", "num_memory_states"])
    def test_null_sizes(self, key):
        self.refuses(key, None, allowed="1")

    def test_more_active_rows_than_rows(self):
        self.refuses("num_active_states", 65, allowed="1 to 64")

    @pytest.mark.parametrize("key", ["affinity_temperature", "rms_norm_eps", "memory_norm_eps"])
    @pytest.mark.parametrize(
        "value", [0, -1.0, 1e-308, 1e308, float("inf"), float("nan"), "1", None, False]
    )
    def test_nonsense_numbers(self, key, value):
        self.refuses(key, value, allowed="allowed are numbers from 1e-")

    @pytest.mark.parametrize("value", [1, "true", None])
    def test_nonsense_flags(self, value):
        self.refuses("tie_word_embeddings", value, allowed="true and false")

    def test_foreign_model_type(self):
        self.refuses("model_type", "mamba2", allowed="factorization_memory")

    @pytest.mark.parametrize("key", REQUIRED)
    def test_missing_keys(self, key):
        config = {k: v for k, v in REQUIRED.items() if k != key}
        with pytest.raises(ValueError, match=key):
            ModelArgs.from_dict(config)

    @staticmethod
    def refuses(key, value, allowed):
        with pytest.raises(ValueError) as error:
            ModelArgs.from_dict({**REQUIRED, key: value})
        for part in (key, repr(value), allowed):
            assert part in str(error.value)
