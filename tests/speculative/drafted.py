"""Models that draft, and what generating with their drafts must leave as it was."""

from __future__ import annotations

import mlx.core as mx
from cases import REAL, close, tiny_model
from mlx.utils import tree_map
from mlx_lm.models import llama

VOCAB = 512

LLAMA = dict(
    model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=32,
    num_attention_heads=2, rms_norm_eps=1e-6, vocab_size=VOCAB, tie_word_embeddings=False,
)  # fmt: skip


def llama_model(**config):
    mx.random.seed(3)
    model = llama.Model(llama.ModelArgs.from_dict(LLAMA | config))
    # attention to earlier tokens decides what comes next
    for layer in model.layers:
        layer.self_attn.update(tree_map(lambda x: 4 * x, layer.self_attn.parameters()))
    return model


def noisy(model, amount: float):
    """A copy of a model with noise in its weights."""
    copy = type(model)(model.args)
    mx.random.seed(5)
    copy.update(
        tree_map(lambda x: x + amount * x.std() * mx.random.normal(x.shape), model.parameters())
    )
    return copy


def model_with_a_head(**config):
    """Whose text does not repeat its last token, as that of a tied random model does."""
    config = {"vocab_size": VOCAB, "tie_word_embeddings": False, **config}
    model = tiny_model(REAL, **config)
    # far apart enough that rounding does not change which token is the likeliest
    model.lm_head.weight = mx.random.normal(model.lm_head.weight.shape)
    return model


def assert_same(found, plain):
    """The same responses, but for their times and where they come from."""
    assert [r.token for r in found] == [r.token for r in plain]
    assert "".join(r.text for r in found) == "".join(r.text for r in plain)
    for ours, theirs in zip(found, plain, strict=True):
        close(ours.logprobs, theirs.logprobs, 1e-5, "log-probabilities")
        assert ours.finish_reason == theirs.finish_reason
        assert ours.prompt_tokens == theirs.prompt_tokens
        assert ours.generation_tokens == theirs.generation_tokens


def drafted(responses) -> int:
    return sum(r.from_draft for r in responses)
