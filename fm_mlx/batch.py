"""Several texts at once, each from a memory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_lm.generate import BatchResponse
from mlx_lm.generate import batch_generate as batch_generate_of_tokens

from fm_mlx.memory import Memory
from fm_mlx.memory.identity import identity_of
from fm_mlx.memory.states import cache_from, first_states
from fm_mlx.model import Model
from fm_mlx.support.random_state import restored_after_errors
from fm_mlx.text import encode_text


def batch_generate(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    memories: Sequence[Memory | None] | None = None,
    max_tokens: int | list[int] = 128,
    **options: Any,
) -> BatchResponse:
    """Generate a text from each prompt, all of them in one batch.

    Args:
        model: the model, from `fm_mlx.load`.
        tokenizer: its tokenizer.
        prompts: texts or token ids, of any lengths.
        memories: what was read before each prompt, None for nothing; they stay as they are.
        max_tokens: number of tokens to generate, of all or of each.
        options: those of `mlx_lm.generate.batch_generate`.

    Raises:
        ValueError: a prompt is empty, there are not as many memories as prompts, or another
            model read one of them; names its place in the list.
    """
    if memories is not None and len(memories) != len(prompts):
        raise ValueError(f"there are {len(prompts)} prompts and {len(memories)} memories")
    tokens, caches = [], []
    identity = None if memories is None else identity_of(model, tokenizer)
    # caches that hold nothing would be masked in every step by mlx-lm's batch
    nothing = first_states(model)
    for i, prompt in enumerate(prompts):
        memory = memories[i] if memories is not None else None
        if isinstance(prompt, str):
            special = None if memory is None or not memory.tokens_seen else False
            prompt = encode_text(tokenizer, prompt, special)
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        tokens.append(list(prompt))
        if memory is not None and identity is not None:
            memory.identity.check(identity, f"memory {i}")
        caches.append(cache_from(model, nothing if memory is None else memory.state))
    with restored_after_errors():
        return batch_generate_of_tokens(model, tokenizer, tokens, caches, max_tokens, **options)
