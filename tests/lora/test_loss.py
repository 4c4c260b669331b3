"""However texts are laid out, the loss and its gradients are those of the texts alone."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from in_step import in_step
from mlx.utils import tree_flatten
from some_data import some_examples

from fm_mlx.lora import Options
from fm_mlx.lora.batches import Buckets, Packed, Streams
from fm_mlx.lora.loss import empty_states, next_token_loss
from fm_mlx.lora.tuned import prepare

EXAMPLES = some_examples([5, 40, 33, 120, 64, 17, 90, 2])


@pytest.fixture
def tuned(model):
    """A model in which everything learns: low ranks, routers, first memories."""
    mx.random.seed(2)
    model.initial_memory = model.initial_memory.to_lora()
    prepare(model, Options(data="none", train_router=True))
    for layer in model.initial_memory.layers:
        layer.m = mx.random.normal(layer.m.shape)
    model.initial_memory.unfreeze()
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            model.load_weights([(name, 0.02 * mx.random.normal(value.shape))], strict=False)
    return model


def alone(examples):
    for example in examples:
        yield mx.array(example.tokens[None]), mx.ones((1, len(example.tokens) - 1), mx.bool_)


def streamed(length, rows=3):
    return Streams(EXAMPLES, rows, length).once()


def gradient(model, batches):
    """Loss and gradients over all batches, by target."""
    value_and_grad = nn.value_and_grad(model, next_token_loss)
    loss, count, gradients, carried = 0.0, 0, {}, None
    for batch in batches:
        if getattr(batch, "fresh", None) is not None and carried is None:
            carried = empty_states(model, len(batch.tokens))
        (value, n, carried), found = value_and_grad(model, *batch, carried=carried)
        n = n.item()
        loss, count = loss + value.item() * n, count + n
        for name, g in tree_flatten(found):
            gradients[name] = gradients.get(name, 0) + np.array(g, np.float64) * n
    return loss / count, {name: g / count for name, g in gradients.items()}


def agree(got, wanted, tolerance):
    assert abs(got[0] - wanted[0]) < 1e-6 * wanted[0]
    for name, value in wanted[1].items():
        error = np.abs(got[1][name] - value).max() / np.abs(value).max()
        assert error < tolerance, f"gradient of {name} is off by {error:.1e}"


def test_rows_side_by_side_are_the_texts_alone(tuned):
    agree(gradient(tuned, Buckets(EXAMPLES, 3, 256).once()), gradient(tuned, alone(EXAMPLES)), 1e-5)


def test_packed_is_separate(tuned):
    packed = list(Packed(EXAMPLES, 2, 256).once())
    assert max(int((starts < 256).sum(axis=1).max()) for _, _, starts, _ in packed) > 3
    wanted = gradient(tuned, alone(EXAMPLES))
    agree(gradient(tuned, packed), wanted, 1e-5)
    leaking = [(tokens, mask) for tokens, mask, *_ in packed]
    assert abs(gradient(tuned, leaking)[0] - wanted[0]) > 1e-3


def test_packed_logits_are_the_texts_own(tuned):
    (packed,) = Packed(EXAMPLES, 1, 512).once()
    logits = tuned(packed[0][:, :-1], reset_positions=packed[2])
    at = 0
    for example in EXAMPLES:
        wanted = tuned(mx.array(example.tokens[None]))
        got = logits[:, at : at + wanted.shape[1]]
        at += wanted.shape[1]
        assert mx.abs(got - wanted).max() < 1e-6 * mx.abs(wanted).max()


def test_streams_in_whole_pieces_are_plain(tuned):
    agree(gradient(tuned, streamed(256)), gradient(tuned, alone(EXAMPLES)), 1e-5)


def test_streams_in_small_pieces_have_the_same_loss(tuned):
    """The memory is carried; only the gradient ends at a piece's border."""
    wanted, got = gradient(tuned, alone(EXAMPLES)), gradient(tuned, streamed(16))
    assert abs(got[0] - wanted[0]) < 1e-6 * wanted[0]
    first = "initial_memory.layers.0.m"
    assert np.abs(got[1][first] - wanted[1][first]).max() > 1e-3 * np.abs(wanted[1][first]).max()


def test_training_evaluation_and_decoding_agree(tuned):
    example = EXAMPLES[3]
    tokens, mask = mx.array(example.tokens[None]), mx.ones((1, 119), mx.bool_)
    tuned.train()
    training = next_token_loss(tuned, tokens, mask)[0].item()
    tuned.eval()
    evaluation = next_token_loss(tuned, tokens, mask)[0].item()
    cache = tuned.make_cache()
    steps = [tuned(tokens[:, t : t + 1], cache=cache) for t in range(119)]
    logits = mx.concatenate(steps, axis=1)
    decoding = nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean").item()
    assert max(abs(training - evaluation), abs(training - decoding)) < 1e-5


def test_documents_of_any_length_take_the_same_memory(model):
    """A step reads one piece: what the document has beside it is not in the graph."""

    def peak(length):
        model.freeze()
        model.layers[0].memory.out_proj.unfreeze()
        value_and_grad = nn.value_and_grad(model, next_token_loss)
        examples = some_examples([length])
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        carried = empty_states(model, 1)
        with in_step():
            for batch in Streams(examples, 1, 64).once():
                (loss, _, carried), gradients = value_and_grad(model, *batch, carried)
                mx.eval(loss, carried, gradients)
        return mx.get_peak_memory() - before

    peak(640)
    # twenty times as long
    assert peak(12_000) < 1.2 * peak(640)
