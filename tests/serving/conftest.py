"""A small model whose tokens are words, and a client of a server that serves it."""

from __future__ import annotations

import mlx.core as mx
import pytest
from served import PLAIN, client_of, word_model

import fm_mlx


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """(model, tokenizer) whose tokens are words."""
    model, tokenizer = fm_mlx.load(word_model(tmp_path_factory.mktemp("words")))
    mx.eval(model.parameters())
    return model, tokenizer


@pytest.fixture(scope="module")
def client(words):
    with client_of(words, chat_template=PLAIN, max_body=1 << 20, max_prompt_tokens=5000) as client:
        yield client
