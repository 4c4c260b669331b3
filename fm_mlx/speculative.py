"""Speculative decoding: drafted tokens are checked together, in one pass of the main model.

The model reads the last token and n drafted ones at once, and chooses a token after each of them.
What it chose is the text; a draft saves time as long as it is what was chosen. Then the state goes
back to the last token that stands (`fm_mlx.cache.RewindableCache`), without another pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx_lm.generate import GenerationResponse, generation_stream, wired_limit
from mlx_lm.models.cache import ArraysCache
from mlx_lm.sample_utils import LogitsProcessor, Sampler, greedy_sampler

from fm_mlx import cache as caches
from fm_mlx.cache import RewindableCache
from fm_mlx.drafting import Drafter
from fm_mlx.model import Model
from fm_mlx.prefill import prefill
from fm_mlx.support.random_state import random_key, set_random_key

# Passes after which buffers that are not used go back to the system.
_CLEARED_EVERY = 256


def stream_generate_of_tokens(
    model: Model,
    tokenizer: Any,
    prompt: Sequence[int] | mx.array,
    max_tokens: int,
    *,
    drafter: Drafter,
    prompt_cache: Sequence[ArraysCache],
    prefill_step_size: int,
    prompt_progress_callback: Callable[[int, int], None],
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
) -> Generator[GenerationResponse, None, None]:
    """What `mlx_lm.stream_generate` makes of token ids, with drafts.

    Args:
        model: the model.
        tokenizer: its tokenizer, wrapped by mlx-lm.
        prompt: token ids, at least one.
        max_tokens: number of tokens to generate; -1: until the model ends the text.
        drafter: has read what comes before the prompt, as far as it is known.
        prompt_cache: the state to go on from. It holds the state after the prompt until the
            generator is left, and then that after the last token that was given.
        prefill_step_size: number of prompt tokens that are read at a time.
        prompt_progress_callback: called with the number of prompt tokens read and their total.
        sampler, logits_processors: as mlx-lm takes them; they see one position at a time, and
            random numbers are used up as if there were no drafts.

    Raises:
        NotFiniteError: a state is not finite after a piece of the prompt.
    """
    started = time.perf_counter()
    prompt = mx.array(cast(Any, prompt), mx.uint32)
    tokens = cast(list[int], prompt.tolist())
    total = len(tokens)
    with wired_limit(model, cast(Any, [generation_stream])):
        for start in range(0, total - 1, prefill_step_size):
            prompt_progress_callback(start, total)
            piece = tokens[start : min(start + prefill_step_size, total - 1)]
            where = f"reading stopped within the last {total - start:,} tokens of the prompt"
            with mx.stream(generation_stream):
                prefill(model, piece, prompt_cache, where)
                drafter.read(piece)
        prompt_progress_callback(total, total)
        chooser = _Chooser(sampler or greedy_sampler, logits_processors or (), prompt[:-1])
        decoded = _decode(model, prompt_cache, tokens[-1], drafter, chooser, max_tokens)
        with closing(decoded):
            yield from _responses(tokenizer, decoded, max_tokens, total, started)


def _responses(
    tokenizer: Any, decoded: Iterable[_Token], max_tokens: int, prompt_tokens: int, started: float
) -> Generator[GenerationResponse, None, None]:
    """A response for each token, until one ends the text or there are enough."""
    detokenizer = tokenizer.detokenizer
    prompt_seconds = 0.0
    for count, (token, logprobs, from_draft) in enumerate(decoded, 1):
        if count == 1:
            prompt_seconds = time.perf_counter() - started
            started += prompt_seconds
        finish_reason = "length" if count == max_tokens else None
        if token in tokenizer.eos_token_ids:
            finish_reason = "stop"
        else:
            detokenizer.add_token(token)
        if finish_reason is not None:
            detokenizer.finalize()
        yield GenerationResponse(
            text=detokenizer.last_segment,
            token=token,
            logprobs=logprobs,
            from_draft=from_draft,
            prompt_tokens=prompt_tokens,
            prompt_tps=prompt_tokens / prompt_seconds,
            generation_tokens=count,
            generation_tps=count / (time.perf_counter() - started),
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=finish_reason,
        )
        if finish_reason is not None:
            return


def _decode(
    model: Model,
    prompt_cache: Sequence[ArraysCache],
    last: int,
    drafter: Drafter,
    chooser: _Chooser,
    max_tokens: int,
) -> Generator[_Token, None, None]:
    """The tokens after the last of the prompt, which the model has not read.

    When the generator is left, the state after the last token that it gave is in prompt_cache.
    """
    rewindable = [RewindableCache(caches.state_of(layer)) for layer in prompt_cache]
    cache: list[ArraysCache] = [*rewindable]
    chosen, given = [last], 0
    left, passes = max_tokens, 0  # -1 left never comes down to 0
    try:
        while left != 0:
            count = drafter.count if left < 0 else min(drafter.count, left - 1)
            with mx.stream(generation_stream):
                drafts = drafter.draft(chosen, count) if count else mx.array([], mx.uint32)
                fed = mx.concatenate([mx.array(chosen[-1:], mx.uint32), drafts])
                chosen, logprobs = chooser.choose(model(fed[None], cache=cache)[0], fed)
                _rewind(rewindable, len(chosen))
            for given, token in enumerate(chosen, 1):
                yield _Token(token, logprobs[given - 1], given < len(chosen))
            left -= len(chosen)
            passes += 1
            if passes % _CLEARED_EVERY == 0:
                mx.clear_cache()
    finally:
        if given:
            with mx.stream(generation_stream):
                if given < len(chosen):
                    _rewind(rewindable, given + 1)
                else:  # what was chosen last was never read
                    model(mx.array([chosen[-1:]], mx.uint32), cache=cache)
                for theirs, ours in zip(prompt_cache, cache, strict=True):
                    caches.set_state(theirs, cast(mx.array, ours[0]), model.args.num_active_states)
                mx.eval([layer.state for layer in prompt_cache])


def _rewind(cache: Sequence[RewindableCache], tokens: int) -> None:
    for layer in cache:
        layer.rewind(tokens)


class _Token(NamedTuple):
    token: int
    logprobs: mx.array  # (vocab,)
    from_draft: bool


class _Chooser:
    """Chooses tokens by the sampler, and processes logits before that, as mlx-lm does."""

    def __init__(self, sampler: Sampler, processors: Sequence[LogitsProcessor], seen: mx.array):
        self._sampler = sampler
        self._processors = processors
        self._seen = seen  # tokens before those that are fed; kept for the processors alone

    def choose(self, logits: mx.array, fed: mx.array) -> tuple[list[int], mx.array]:
        """The tokens that follow, up to the first that is no draft.

        Args:
            logits: (T, vocab), after each token that was fed.
            fed: (T,) uint32, the last token of the text and then the drafts.

        Returns:
            Tokens, 1 to T of them: all but the last were drafted. And the log-probabilities
            (T, vocab) that they were chosen by.
        """
        rows: list[mx.array] = []
        tokens: list[mx.array] = []
        keys: list[mx.array] = []
        if self._sampler is greedy_sampler and not self._processors:
            rows = [logits - mx.logsumexp(logits, axis=-1, keepdims=True)]
            tokens = [greedy_sampler(rows[0])]
        else:
            for i in range(len(logits)):
                row = logits[i : i + 1]
                for processor in self._processors:
                    row = processor(mx.concatenate([self._seen, fed[: i + 1]]), row)
                rows.append(row - mx.logsumexp(row, axis=-1, keepdims=True))
                tokens.append(self._sampler(rows[-1]))
                keys.append(random_key())
        logprobs, chosen = mx.concatenate(rows), mx.concatenate(tokens)
        mx.eval(logprobs, chosen, fed)
        drafts, found = cast(list[int], fed[1:].tolist()), cast(list[int], chosen.tolist())
        count = 1
        while count <= len(drafts) and drafts[count - 1] == found[count - 1]:
            count += 1
        if keys:  # as if no token had been chosen after a draft that was wrong
            set_random_key(keys[count - 1])
        if self._processors:
            self._seen = mx.concatenate([self._seen, fed[:count]])
        return found[:count], logprobs
