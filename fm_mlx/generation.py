"""Text generation: mlx-lm's, and prompts of any length that are read as they are consumed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TextIO, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse, generation_stream, wired_limit
from mlx_lm.generate import stream_generate as stream_generate_of_tokens
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from fm_mlx import speculative
from fm_mlx.drafting import Drafter, make_drafter
from fm_mlx.finite import logits_are_not_finite
from fm_mlx.memory import Memory, PrefixStore
from fm_mlx.memory.reuse import ReusedPrompt
from fm_mlx.model import Model
from fm_mlx.prefill import prefill
from fm_mlx.support.random_state import restored_after_errors
from fm_mlx.text import encode_pieces, pieces_of_text, wants_special_tokens

Progress = Callable[[int, int | None], None]


def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | mx.array | Sequence[int] | Iterable[str] | TextIO,
    max_tokens: int = 256,
    *,
    prompt_cache: list[Any] | None = None,
    memory: Memory | None = None,
    prefixes: PrefixStore | None = None,
    draft_model: nn.Module | None = None,
    prompt_lookup: bool = False,
    num_draft_tokens: int | None = None,
    prefill_step_size: int = 2048,
    prompt_progress_callback: Progress | None = None,
    add_special_tokens: bool | None = None,
    **options: Any,
) -> Generator[GenerationResponse, None, None]:
    """Generate text from a prompt, a `GenerationResponse` per token, as mlx-lm does.

    The prompt may also be pieces of text (an iterable of str) or an open text file. These are
    tokenized and fed to the model as they come: memory does not grow with their length. The
    tokens are those of the whole text (see `encode_pieces`), so the output is the same.

    With a draft model or prompt look-up, decoding is speculative (`fm_mlx.speculative`): several
    tokens are drafted, and the model checks them in one pass. The text is that of decoding token
    by token, sampled or not, except that logits which differ by less than the rounding of the
    two ways to compute them may change places.

    Args:
        model: the model, from `load`.
        tokenizer: its tokenizer, from `load`.
        prompt: text, token ids, pieces of text or an open text file.
        max_tokens: number of tokens to generate; -1: until the model ends the text.
        prompt_cache: the state to go on from, one cache per layer; updated in place, with drafts
            when the generator ends or is closed. Then it is that after the last token given.
        memory: what was read before the prompt; it stays as it is.
        prefixes: states after earlier prompts, from which this one goes on where they are alike;
            the states along this prompt and after the answer are kept in it. It takes a prompt of
            text or token ids, and no prompt_cache. Where a prompt is cut shows in the last bits,
            and a logits processor sees the last of its tokens alone.
        draft_model: a smaller model of the same tokenizer that drafts tokens: of Factorization
            Memory, or of mlx-lm with a cache that can be trimmed. It reads the prompt, but not
            what a memory or a prompt_cache holds, so that fewer of its drafts are right then.
        prompt_lookup: draft what followed the last tokens where they stood before, in the prompt
            or in what was generated; of what a memory or a prompt_cache holds nothing is known.
        num_draft_tokens: the most tokens to draft at a time; None: 3 with a draft model, 8 with
            prompt look-up. Ignored without drafts.
        prefill_step_size: number of prompt tokens that are read at a time.
        prompt_progress_callback: called with the number of prompt tokens read and their total;
            the total is None as long as the end of a prompt in pieces has not been seen.
        add_special_tokens: put the tokenizer's special tokens around the prompt; None: unless
            the text begins with the token for the beginning of a text.
        options: ``sampler``, ``logits_processors`` and what else `mlx_lm.generate.generate_step`
            takes; with drafts only those two. Of a prompt in pieces a logits processor sees the
            last ``prefill_step_size`` tokens at most.

    Raises:
        ValueError: the prompt is empty, ``max_tokens`` is 0, there are both a memory and a
            prompt_cache, another model read the memory, there are prefixes with what they do
            not take, or drafts cannot be had so: the draft model has another vocabulary or
            cannot go back, or an option is not for drafts.
        NotFiniteError: the model computes NaN; names the first layer that does.
    """
    if max_tokens == 0:
        raise ValueError("max_tokens is 0; allowed are whole numbers from 1, and -1 for no limit")
    if not isinstance(tokenizer, TokenizerWrapper):
        tokenizer = TokenizerWrapper(tokenizer)
    drafter = make_drafter(model, draft_model, prompt_lookup, num_draft_tokens, options)
    progress = prompt_progress_callback or (lambda read, total: None)
    if memory is not None:
        if prompt_cache is not None:
            raise ValueError("there are a memory and a prompt_cache; allowed is one of them")
        prompt_cache = memory.prompt_cache(cast(Model, model), tokenizer)
        if memory.tokens_seen and add_special_tokens is None:
            add_special_tokens = False  # the text began with the memory
    pieces = pieces_of_text(prompt)
    if prefixes is not None and (
        pieces is not None or (prompt_cache is not None and memory is None)
    ):
        raise ValueError("prefixes take a prompt of text or token ids, and no prompt_cache")
    if prompt_cache is None:
        prompt_cache = make_prompt_cache(model)

    started = time.perf_counter()
    read = 0
    if pieces is not None:
        token_lists = encode_pieces(tokenizer, pieces, add_special_tokens)
        tokens, read = _read_all_but_last(
            model, token_lists, prompt_cache, prefill_step_size, progress, drafter
        )
    elif isinstance(prompt, str):
        special = wants_special_tokens(tokenizer, prompt, add_special_tokens)
        tokens = tokenizer.encode(prompt, add_special_tokens=special)
    else:
        tokens = cast(Any, prompt)
    reused, answer = None, []
    if prefixes is not None and len(tokens) > 0:
        whole = cast(list[int], mx.array(cast(Any, tokens)).tolist())
        reused = ReusedPrompt(prefixes, cast(Model, model), whole, prompt_cache, memory)
        reused.read(prefill_step_size, progress)
        if drafter is not None:
            drafter.read(whole[:-1])
        tokens, read = whole[-1:], len(whole) - 1
    reading_time = time.perf_counter() - started
    if len(tokens) == 0 and options.get("input_embeddings") is None:
        raise ValueError("the prompt is empty")

    decoding = stream_generate_of_tokens
    if drafter is not None:
        decoding = cast(Any, partial(speculative.stream_generate_of_tokens, drafter=drafter))
    responses = decoding(
        model,
        tokenizer,
        tokens,
        max_tokens,
        prompt_cache=prompt_cache,
        prefill_step_size=prefill_step_size,
        prompt_progress_callback=lambda done, total: progress(read + done, read + total),
        **options,
    )
    with restored_after_errors(), closing(responses):
        for count, response in enumerate(responses):
            token = response.token
            if not math.isfinite(cast(float, response.logprobs[token].item())):
                responses.close()  # the last state is in the cache then
                where = f"generation stopped before token {count + 1}"
                raise logits_are_not_finite(model, prompt_cache, token, where)
            if read:
                prompt_time = reading_time + response.prompt_tokens / response.prompt_tps
                tokens_read = read + response.prompt_tokens
                response = dataclasses.replace(
                    response, prompt_tokens=tokens_read, prompt_tps=tokens_read / prompt_time
                )
            if reused is not None:
                answer.append(token)
            yield response
    if reused is not None:
        reused.answered(answer)


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | mx.array | Sequence[int] | Iterable[str] | TextIO,
    verbose: bool = False,
    **options: Any,
) -> str:
    """The whole text that `stream_generate` makes of a prompt.

    Args:
        model: the model, from `load`.
        tokenizer: its tokenizer, from `load`.
        prompt: as for `stream_generate`.
        verbose: print the text as it comes, then the speeds and the peak memory.
        options: those of `stream_generate`.
    """
    responses = stream_generate(model, tokenizer, prompt, **options)
    if not verbose:
        return "".join(response.text for response in responses)
    text = []
    print("=" * 10)
    for response in responses:
        print(response.text, end="", flush=True)
        text.append(response.text)
    print()
    print("=" * 10)
    print("\n".join(summary(response)))
    return "".join(text)


def summary(response: GenerationResponse) -> list[str]:
    """Lines with the speeds and the peak memory of a run, of its last response."""
    prompt = f"{response.prompt_tps:.3f} tokens-per-sec"
    generation = f"{response.generation_tps:.3f} tokens-per-sec"
    return [
        f"Prompt: {response.prompt_tokens} tokens, {prompt}",
        f"Generation: {response.generation_tokens} tokens, {generation}",
        f"Peak memory: {response.peak_memory:.3f} GB",
    ]


def _read_all_but_last(
    model: nn.Module,
    token_lists: Iterable[list[int]],
    cache: list[Any],
    size: int,
    progress: Progress,
    drafter: Drafter | None,
) -> tuple[list[int], int]:
    """Feed tokens to the model, ``size`` at a time, but for the last ones, at least one.

    Returns:
        The tokens that are left (at most ``size``) and the number of those fed. As mlx-lm cuts
        a prompt at the same places, its results are the same to the last bit.
    """
    waiting: list[int] = []
    read = 0
    progress(0, None)
    with wired_limit(model, cast(Any, [generation_stream])), mx.stream(generation_stream):
        for tokens in token_lists:
            waiting += tokens
            start = 0
            while len(waiting) - start > size:
                read += size
                where = f"reading stopped within the first {read:,} tokens"
                piece = waiting[start : start + size]
                prefill(model, piece, cache, where)
                if drafter is not None:
                    drafter.read(piece)
                start += size
                progress(read, None)
            waiting = waiting[start:]
    return waiting, read
