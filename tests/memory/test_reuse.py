"""Prompts that begin like earlier ones: the same text, and only what is new is read."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import fm_mlx
from fm_mlx.memory import PrefixStore
from fm_mlx.memory.reuse import ReusedPrompt

BOOK = "".join(f"{i} In the beginning God created the heaven and the earth.\n" for i in range(200))


@pytest.fixture(scope="module")
def loaded(reader):
    return fm_mlx.load(reader)


@pytest.fixture(scope="module")
def tokens(loaded) -> list[int]:
    return loaded[1].encode(BOOK)


def known(store, loaded, prompt, memory=None) -> int:
    """How many tokens of a prompt need not be read."""
    model = loaded[0]
    cache = model.make_cache() if memory is None else memory.prompt_cache(model)
    return ReusedPrompt(store, model, prompt, cache, memory).read(512, lambda read, total: None)


@pytest.mark.parametrize("lookup", [False, True])
def test_a_conversation(loaded, tokens, lookup):
    """Each turn is read from the end of the answer before, to the same text."""
    store = PrefixStore(1 << 30)
    said = list(tokens)
    for turn in ("And Moses", "Then said", "The LORD"):
        reply = list(
            fm_mlx.stream_generate(*loaded, said, 12, prefixes=store, prompt_lookup=lookup)
        )
        alone = list(fm_mlx.stream_generate(*loaded, said, 12))
        assert [one.token for one in reply] == [one.token for one in alone]
        assert reply[-1].prompt_tokens == len(said)
        answered = said + [one.token for one in reply]
        said = answered + loaded[1].encode(turn)
        assert store.find(b"", said)[0] == len(answered)


@pytest.mark.parametrize("place", [10, 100, 1000, 3000])
def test_an_edited_prompt(loaded, tokens, place):
    """One that parts from an earlier prompt somewhere is read from the state before."""
    store = PrefixStore(1 << 30)
    assert known(store, loaded, tokens) == 0
    edited = [*tokens[:-place], *loaded[1].encode("And it came to pass"), *tokens[-place:]]
    shared = len(tokens) - place
    assert shared - max(place, 64) <= known(store, loaded, edited) <= shared
    text = fm_mlx.generate(*loaded, edited, max_tokens=12, prefixes=store)
    assert text == fm_mlx.generate(*loaded, edited, max_tokens=12)


def test_states_are_those_of_reading_all(loaded, tokens):
    store = PrefixStore(1 << 30)
    known(store, loaded, tokens[:2000])
    model = loaded[0]
    cache, whole = model.make_cache(), model.make_cache()
    assert ReusedPrompt(store, model, tokens[:2500], cache).read(512, print) == 1999
    model(mx.array(tokens[:2499])[None], cache=whole)
    for own, other in zip(cache, whole, strict=True):
        assert mx.allclose(fm_mlx.cache.state_of(own), fm_mlx.cache.state_of(other), atol=1e-5)


def test_memories_are_kept_apart(loaded, tokens):
    store = PrefixStore(1 << 30)
    memory = fm_mlx.remember(*loaded, "And it came to pass.")
    state = np.array(memory.state)
    assert known(store, loaded, tokens[:300]) == 0
    assert known(store, loaded, tokens[:300], memory) == 0
    assert known(store, loaded, tokens[:300], memory.branch()) == 299
    options = {"max_tokens": 8, "memory": memory}
    text = fm_mlx.generate(*loaded, tokens[:300], prefixes=store, **options)
    assert text == fm_mlx.generate(*loaded, tokens[:300], **options)
    assert np.array_equal(np.array(memory.state), state)


def test_of_one_token(loaded):
    store = PrefixStore(1 << 30)
    for _ in range(2):
        text = fm_mlx.generate(*loaded, "A", max_tokens=5, prefixes=store)
        assert text == fm_mlx.generate(*loaded, "A", max_tokens=5)


def test_what_prefixes_do_not_take(loaded):
    store = PrefixStore(1 << 30)
    for prompt, options in (
        (["And ", "Moses"], {}),
        ("And", {"prompt_cache": loaded[0].make_cache()}),
    ):
        with pytest.raises(ValueError, match="prefixes take a prompt of text or token ids"):
            fm_mlx.generate(*loaded, prompt, prefixes=store, **options)
