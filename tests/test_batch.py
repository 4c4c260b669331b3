"""Batches with a memory per row: each row is what it would be alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import fm_mlx
from fm_mlx.memory import Memory

BOOK = "".join(f"{i} In the beginning God created the heaven and the earth.\n" for i in range(200))
PROMPTS = ["And", "And the earth was without form, and void; and", "Then said", "The LORD"]


@pytest.fixture(scope="module")
def loaded():
    return fm_mlx.load()


@pytest.fixture(scope="module")
def memories(loaded) -> list[Memory | None]:
    first = fm_mlx.remember(*loaded, BOOK)
    return [first, None, first.append(*loaded, "And it came to pass."), Memory.empty(*loaded)]


def test_rows_with_memories_are_what_they_are_alone(loaded, memories):
    kept = [None if memory is None else np.array(memory.state) for memory in memories]
    together = fm_mlx.batch_generate(*loaded, PROMPTS, memories, max_tokens=25)
    alone = [
        fm_mlx.generate(*loaded, prompt, max_tokens=25, memory=memory)
        for prompt, memory in zip(PROMPTS, memories, strict=True)
    ]
    assert together.texts == alone
    assert len(set(alone)) == len(alone)
    for memory, state in zip(memories, kept, strict=True):
        assert memory is None or np.array_equal(np.array(memory.state), state)


def test_order_and_company_do_not_matter(loaded, memories):
    whole = fm_mlx.batch_generate(*loaded, PROMPTS, memories, max_tokens=12).texts
    for rows in ([2, 0], [3, 2, 1], [1]):
        part = fm_mlx.batch_generate(
            *loaded, [PROMPTS[i] for i in rows], [memories[i] for i in rows], max_tokens=12
        )
        assert part.texts == [whole[i] for i in rows]


def test_states_of_the_rows(loaded, memories):
    """The state of each row afterwards is that of the row alone, to rounding."""
    tokens = [loaded[1].encode(prompt) for prompt in PROMPTS]
    reply = fm_mlx.batch_generate(
        *loaded, tokens, memories, max_tokens=5, return_prompt_caches=True
    )
    for row, memory in enumerate(memories):
        cache = loaded[0].make_cache() if memory is None else memory.prompt_cache(loaded[0])
        fm_mlx.generate(*loaded, tokens[row], max_tokens=5, prompt_cache=cache)
        for own, alone in zip(reply.caches[row], cache, strict=True):
            own, alone = fm_mlx.cache.state_of(own), fm_mlx.cache.state_of(alone)
            assert mx.allclose(own, alone, atol=1e-5)


def test_bad_input(loaded, memories):
    with pytest.raises(ValueError, match="there are 2 prompts and 1 memories"):
        fm_mlx.batch_generate(*loaded, PROMPTS[:2], memories[:1])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        fm_mlx.batch_generate(*loaded, ["And", ""])
    other, tokenizer = fm_mlx.load()
    other.set_dtype(mx.bfloat16)
    with pytest.raises(ValueError, match="memory 0 is of another model"):
        fm_mlx.batch_generate(other, tokenizer, PROMPTS[:1], memories[:1])
