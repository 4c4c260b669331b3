"""Gate and up as one product: the same numbers, the same names, and nothing stale."""

from __future__ import annotations

from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from cases import LOGITS_TOLERANCE, REAL, close, same_bits, tiny_model, tokens
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from fm_mlx import model as model_module
from fm_mlx.mlp import MLP
from fm_mlx.perf.bench import training_step

SIZES = dict(hidden_size=64, memory_size=64, intermediate_size=96)


def loaded(quantised: bool = False):
    """A model that was loaded on a GPU."""
    model = tiny_model(REAL, **SIZES)
    if quantised:
        nn.quantize(model, 32, 4, class_predicate=model.quant_predicate)
    with patch.object(model_module, "on_cpu", return_value=False):
        model.load_weights(tree_flatten(model.parameters()))
    return model


def apart(model) -> mx.array:
    """Logits by two products."""
    with patch.object(MLP, "__call__", two_products):
        return model(tokens((2, 9)))


def two_products(mlp, x):
    return mlp.down_proj(model_module.ops.swiglu(mlp.gate_proj(x), mlp.up_proj(x)))


def loss_of(model, ids: mx.array) -> mx.array:
    return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:], reduction="mean")


def joined(model) -> list[bool]:
    return [layer.mlp._joint is not None for layer in model.layers]


@pytest.mark.parametrize("quantised", [False, True], ids=["float32", "4bit"])
def test_the_same_numbers_and_names(quantised):
    plain = tiny_model(REAL, **SIZES)
    if quantised:
        nn.quantize(plain, 32, 4, class_predicate=plain.quant_predicate)
    model = loaded(quantised)
    assert joined(model) == [True, True]
    close(model(tokens((2, 9))), apart(model), LOGITS_TOLERANCE, "logits")
    assert joined(model) == [True, True]
    weights, wanted = (dict(tree_flatten(m.parameters())) for m in (model, plain))
    assert list(weights) == list(wanted)
    for name, weight in wanted.items():
        same_bits(weights[name], weight, name)


def test_the_weights_are_there_once():
    model = loaded()
    mx.eval(model.parameters(), [layer.mlp._joint.projection.weight for layer in model.layers])
    before = mx.get_active_memory()
    for layer in model.layers:
        layer.mlp._joint = None
    assert mx.get_active_memory() == before


def test_files_are_those_of_a_model_apart(tmp_path):
    model = loaded()
    model.save_weights(str(tmp_path / "joint.safetensors"))
    back = tiny_model(REAL, **SIZES, seed=1)
    back.load_weights(str(tmp_path / "joint.safetensors"))
    assert joined(back) == [False, False]  # this is the CPU
    close(back(tokens((2, 9))), model(tokens((2, 9))), LOGITS_TOLERANCE, "logits")


@pytest.mark.parametrize("change", ["weight", "adapters", "dtype", "quantising"])
def test_nothing_is_stale(change):
    model = loaded()
    before = model(tokens((2, 9)))
    if change == "weight":
        for layer in model.layers:
            layer.mlp.up_proj.weight = layer.mlp.up_proj.weight * 3
    elif change == "adapters":
        linear_to_lora_layers(model, -1, dict(rank=2, scale=10.0, dropout=0.0))
        for layer in model.layers:
            layer.mlp.up_proj.lora_b = mx.ones_like(layer.mlp.up_proj.lora_b)
    elif change == "dtype":
        model.set_dtype(mx.bfloat16)
    else:
        nn.quantize(model, 32, 4, class_predicate=lambda path, _: path.endswith("up_proj"))
    got = model(tokens((2, 9)))
    same_bits(got.astype(mx.float32), apart(model).astype(mx.float32), "logits")
    assert not mx.array_equal(got, before)
    assert joined(model) == [False, False]


def test_training_takes_the_weights_of_both():
    model = loaded().train()
    optimizer = optim.SGD(learning_rate=0.1)
    ids = tokens((2, 9))

    losses = []
    for _ in range(3):
        value, gradients = nn.value_and_grad(model, loss_of)(model, ids)
        assert mx.abs(gradients["model"]["layers"][0]["mlp"]["up_proj"]["weight"]).max() > 0
        optimizer.update(model, gradients)
        losses.append(value.item())
    assert losses[2] < losses[1] < losses[0]


def test_unlike_projections_stay_apart():
    mlp = MLP(32, 64)
    mlp.up_proj = nn.Linear(32, 64, bias=True)
    mlp.join()
    assert mlp._joint is None
    mlp.up_proj = nn.QuantizedLinear.from_linear(nn.Linear(32, 64, bias=False), 32, 4)
    mlp.join()
    assert mlp._joint is None


@pytest.mark.parametrize("adapters", [False, True], ids=["all weights", "adapters"])
def test_gradients_are_those_of_a_product_that_was_kept(adapters):
    model = tiny_model(REAL, **SIZES).train()
    if adapters:
        model.freeze()
        linear_to_lora_layers(model, -1, dict(rank=2, scale=10.0, dropout=0.0))
        for layer in model.layers:
            layer.mlp.down_proj.lora_b = mx.ones_like(layer.mlp.down_proj.lora_b)
    ids = tokens((2, 9))

    value, gradients = nn.value_and_grad(model, loss_of)(model, ids)
    with patch.object(MLP, "__call__", two_products):
        wanted_value, wanted = nn.value_and_grad(model, loss_of)(model, ids)
    same_bits(value, wanted_value, "loss")
    gradients, wanted = dict(tree_flatten(gradients)), dict(tree_flatten(wanted))
    assert any("down_proj" in name for name in wanted) and list(gradients) == list(wanted)
    for name, gradient in wanted.items():
        same_bits(gradients[name], gradient, name)


def test_training_keeps_no_product():
    wide, count, layers = 1024, 512, 4
    sizes = dict(intermediate_size=wide, num_hidden_layers=layers)
    model = tiny_model(REAL, **SIZES | sizes).train()
    ids = tokens((1, count))

    def peak() -> int:
        step = training_step(model, optim.SGD(1e-3))
        step(ids)  # compiles
        mx.clear_cache()
        mx.reset_peak_memory()
        step(ids)
        return mx.get_peak_memory()

    with patch.object(MLP, "__call__", two_products):
        kept = peak()
    assert kept - peak() > (layers - 2) * wide * count * 4
