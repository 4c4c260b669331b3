"""Models and generation, for the tests of drafts."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import tokens
from drafted import model_with_a_head
from laws.decoding import BUFFERED

import fm_mlx


@pytest.fixture(scope="module")
def models():
    return {
        "one state": model_with_a_head(num_memory_states=16),
        "two buffers": model_with_a_head(**BUFFERED),
    }


@pytest.fixture(params=["one state", "two buffers"])
def model(request, models):
    return models[request.param]


@pytest.fixture(scope="module")
def small(models):
    return models["one state"]


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1]


@pytest.fixture
def generated(tokenizer):
    """The responses to a prompt of random tokens, or to the one that is given."""

    def run(model, max_tokens=24, *, prompt=None, seed=0, **options):
        prompt = tokens((40,), seed) if prompt is None else prompt
        mx.random.seed(seed)
        responses = fm_mlx.stream_generate(model, tokenizer, prompt, max_tokens, **options)
        return list(responses)

    return run
