"""Law 10: quantising or casting leaves the router, the norms and the state in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from cases import Code, tiny_model, tokens
from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import quantize_model
from mutant import Mutant


def precise_parts_stay(model: nn.Module, dtype: mx.Dtype, length: int = 40) -> None:
    """Router, norms, state float32; logits of `dtype`; after a prompt and after one token."""
    parameters = dict(tree_flatten(model.parameters()))
    precise = [n for n in parameters if "router" in n or "norm" in n]
    # per block a router and two norms, and the last norm
    assert len(precise) >= 3 * len(model.layers) + 1
    for name in precise:
        assert parameters[name].dtype == mx.float32, f"{name} is {parameters[name].dtype}"
        assert name.endswith(("router.weight", "norm.weight")), f"{name}: not a plain weight"
    cache = model.make_cache()
    for count in (length, 1):
        logits = model(tokens((2, count)), cache)
        assert logits.dtype == dtype, f"logits are {logits.dtype}"
        assert bool(mx.isfinite(logits).all())
        for layer in cache:
            assert layer[0].dtype == mx.float32, f"the state is {layer[0].dtype}"


def cast_model(code: Code, dtype: mx.Dtype, **config) -> nn.Module:
    """A model cast as mlx-lm's convert casts it, asking `cast_predicate`."""
    model = tiny_model(code, **config)
    parameters = tree_flatten(model.parameters())
    cast = [(n, w.astype(dtype) if model.cast_predicate(n) else w) for n, w in parameters]
    model.load_weights(cast)
    return model


def casting_keeps_precision(code: Code, dtype: mx.Dtype) -> None:
    precise_parts_stay(cast_model(code, dtype), dtype)


def quantising_keeps_precision(code: Code, predicate: Callable | None = None, **how) -> None:
    """mlx_lm's quantize_model; `predicate` makes a recipe from the model, as its convert does."""
    model = tiny_model(code, hidden_size=64, memory_size=64, tie_word_embeddings=False)
    recipe = None if predicate is None else predicate(model)
    model, _ = quantize_model(model, {}, quant_predicate=recipe, **how)
    parameters = dict(tree_flatten(model.parameters()))
    for name in ("in_proj", "out_proj"):
        assert f"model.layers.0.memory.{name}.scales" in parameters, "nothing was quantised"
    precise_parts_stay(model, mx.float32)


def lora_leaves_the_router_alone(code: Code) -> None:
    """mlx-lm's default LoRA (no keys): adapters on the projections, none on the router."""
    model = tiny_model(code)
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 2, "scale": 1.0, "dropout": 0.0})
    trained = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert trained and all("lora" in name for name in trained)
    routers = [name for name in trained if "router" in name]
    assert not routers, f"{routers[0]} is trained"
    assert [name for name in trained if "in_proj" in name]


# Largest difference of the bf16 model to a float32 model of the same weights, in standard
# deviations. The logits have the 8 bits of bf16 (measured: 0.020 at worst, 0.01 on average,
# at token 10 as at token 200). The states sum float32 writes of bf16 values (measured:
# 0.012); a bf16 state, in which a write of 1/128 is lost, is off by 0.09.
BF16_LOGITS = 0.05
BF16_STATE = 0.03


def bf16_decode_does_not_drift(code: Code, length: int = 200) -> tuple[float, float]:
    """200 tokens, one at a time (mlx-lm #988: a bf16 state wrote gibberish after 20)."""
    # many rows, all active: the smallest writes
    config = {"num_memory_states": 64, "num_active_states": 64}
    half, full = cast_model(code, mx.bfloat16, **config), tiny_model(code, **config)
    full.load_weights([(n, w.astype(mx.float32)) for n, w in tree_flatten(half.parameters())])
    ids = tokens((1, length), seed=5)
    caches = [half.make_cache(), full.make_cache()]

    def off(got: mx.array, wanted: mx.array) -> float:
        return (mx.abs(got.astype(mx.float32) - wanted).max() / wanted.std()).item()

    of_logits = []
    for t in range(length):
        one = ids[:, t : t + 1]
        of_logits.append(off(half(one, caches[0]), full(one, caches[1])))
    of_states = [off(got[0], wanted[0]) for got, wanted in zip(*caches, strict=True)]
    assert max(of_logits) <= BF16_LOGITS, f"logits are {max(of_logits):.3f} deviations off"
    assert max(of_states) <= BF16_STATE, f"states are {max(of_states):.3f} deviations off"
    return max(of_logits), max(of_states)


def mixed_recipe(code):
    recipe = partial(mixed_quant_predicate_builder, "mixed_3_6", group_size=32)
    quantising_keeps_precision(code, recipe, group_size=32, bits=4)


def casting(code):
    casting_keeps_precision(code, mx.bfloat16)


MUTANTS = [
    Mutant(
        "law 10",
        "the router is a linear layer (quantised)",
        mixed_recipe,
        "layer",
        "FactorizationMemory.__init__",
        "Router(hidden_size, num_logits)",
        "nn.Linear(hidden_size, num_logits + 2, bias=False)",
    ),
    Mutant(
        "law 10",
        "the router is a linear layer (LoRA)",
        lora_leaves_the_router_alone,
        "layer",
        "FactorizationMemory.__init__",
        "Router(hidden_size, num_logits)",
        "nn.Linear(hidden_size, num_logits + 2, bias=False)",
    ),
    Mutant(
        "law 10",
        "the router may be cast",
        casting,
        "precision",
        "stays_float32",
        '("router.weight", "norm.weight")',
        '("norm.weight",)',
    ),
    Mutant(
        "law 10",
        "the state is kept in the dtype of the weights",
        casting,
        "cache",
        "set_state",
        None,
        "state = state.astype(mx.bfloat16)",
    ),
    Mutant(
        "law 10",
        "the state is kept in the dtype of the weights (drift)",
        bf16_decode_does_not_drift,
        "layer",
        "FactorizationMemory._on_whole_state",
        "ops.memory_step(theta, phi, values, state, mask, eps=self.eps)",
        "(lambda y, last: (y, last.astype(values.dtype)))"
        "(*ops.memory_step(theta, phi, values, state, mask, eps=self.eps))",
    ),
    Mutant(
        "law 10",
        "float32 norms widen the logits",
        casting,
        "model",
        "RMSNorm.__call__",
        "super().__call__(x).astype(x.dtype)",
        "super().__call__(x)",
    ),
]
