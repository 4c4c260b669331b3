"""Text generation: mlx-lm's, and prompts of any length that are read as they are consumed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TextIO, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse, generation_stream, wired_limit
from mlx_lm.generate import stream_generate as stream_generate_of_tokens
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from fm_mlx.finite import check_states, logits_are_not_finite

# Characters that are tokenized at a time.
_BLOCK = 16384

Progress = Callable[[int, int | None], None]


def stream_generate(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | mx.array | Sequence[int] | Iterable[str] | TextIO,
    max_tokens: int = 256,
    *,
    prompt_cache: list[Any] | None = None,
    prefill_step_size: int = 2048,
    prompt_progress_callback: Progress | None = None,
    add_special_tokens: bool | None = None,
    **options: Any,
) -> Generator[GenerationResponse, None, None]:
    """Generate text from a prompt, a `GenerationResponse` per token, as mlx-lm does.

    The prompt may also be pieces of text (an iterable of str) or an open text file. These are
    tokenized and fed to the model as they come: memory does not grow with their length. The
    tokens are those of the whole text (see `encode_pieces`), so the output is the same.

    Args:
        model: the model, from `load`.
        tokenizer: its tokenizer, from `load`.
        prompt: text, token ids, pieces of text or an open text file.
        max_tokens: number of tokens to generate; -1: until the model ends the text.
        prompt_cache: the state to go on from, one cache per layer; updated in place.
        prefill_step_size: number of prompt tokens that are read at a time.
        prompt_progress_callback: called with the number of prompt tokens read and their total;
            the total is None as long as the end of a prompt in pieces has not been seen.
        add_special_tokens: put the tokenizer's special tokens around the prompt; None: unless
            the text begins with the token for the beginning of a text.
        options: ``sampler``, ``logits_processors`` and what else `mlx_lm.generate.generate_step`
            takes. Of a prompt in pieces a logits processor sees the last ``prefill_step_size``
            tokens at most.

    Raises:
        ValueError: the prompt is empty, or ``max_tokens`` is 0.
        NotFiniteError: the model computes NaN; names the first layer that does.
    """
    if max_tokens == 0:
        raise ValueError("max_tokens is 0; allowed are whole numbers from 1, and -1 for no limit")
    if not isinstance(tokenizer, TokenizerWrapper):
        tokenizer = TokenizerWrapper(tokenizer)
    progress = prompt_progress_callback or (lambda read, total: None)
    if prompt_cache is None:
        prompt_cache = make_prompt_cache(model)

    pieces = _pieces_of_text(prompt)
    started = time.perf_counter()
    read = 0
    if pieces is not None:
        token_lists = encode_pieces(tokenizer, pieces, add_special_tokens)
        tokens, read = _read_all_but_last(
            model, token_lists, prompt_cache, prefill_step_size, progress
        )
    elif isinstance(prompt, str):
        special = _wants_special_tokens(tokenizer, prompt, add_special_tokens)
        tokens = tokenizer.encode(prompt, add_special_tokens=special)
    else:
        tokens = cast(Any, prompt)
    reading_time = time.perf_counter() - started
    if len(tokens) == 0 and options.get("input_embeddings") is None:
        raise ValueError("the prompt is empty")

    for count, response in enumerate(
        stream_generate_of_tokens(
            model,
            tokenizer,
            tokens,
            max_tokens,
            prompt_cache=prompt_cache,
            prefill_step_size=prefill_step_size,
            prompt_progress_callback=lambda done, total: progress(read + done, read + total),
            **options,
        )
    ):
        token = response.token
        if not math.isfinite(cast(float, response.logprobs[token].item())):
            where = f"generation stopped before token {count + 1}"
            raise logits_are_not_finite(model, prompt_cache, token, where)
        if read:
            prompt_time = reading_time + response.prompt_tokens / response.prompt_tps
            tokens_read = read + response.prompt_tokens
            response = dataclasses.replace(
                response, prompt_tokens=tokens_read, prompt_tps=tokens_read / prompt_time
            )
        yield response


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


def encode_pieces(
    tokenizer: Any, texts: Iterable[str], add_special_tokens: bool | None = None
) -> Iterator[list[int]]:
    """Token ids of a text that comes in pieces, block by block.

    However the text is cut into pieces, the ids are those of the whole text: it is tokenized in
    blocks that end between two words or lines, where tokenizers split text anyway. Only if
    16,384 characters have no such place they are cut elsewhere, before whitespace if there is
    any; that may change the tokens at the cut.

    Args:
        tokenizer: a tokenizer from `load`, or one of transformers.
        texts: the text, in pieces of any length.
        add_special_tokens: as for `stream_generate`.

    Yields:
        Token ids, never an empty list.
    """
    prefixing = _is_prefixing(tokenizer)
    after: list[int] = []
    for count, block in enumerate(_blocks(texts)):
        if count == 0:
            ids = tokenizer.encode(block, add_special_tokens=False)
            if _wants_special_tokens(tokenizer, block, add_special_tokens):
                before, after = _special_tokens(tokenizer)
                ids = before + ids
        else:
            ids = _encode_inside(tokenizer, block, prefixing)
        if ids:
            yield ids
    if after:
        yield after


def _wants_special_tokens(tokenizer: Any, text: str, wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    first = tokenizer.bos_token
    return first is None or not text.startswith(first)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after a text."""
    ids = tokenizer.encode("a", add_special_tokens=False)
    marked = tokenizer.encode("a", add_special_tokens=True)
    for n in range(len(marked) - len(ids) + 1):
        if marked[n : n + len(ids)] == ids:
            return marked[:n], marked[n + len(ids) :]
    return [], []


def _is_prefixing(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before every text it is given, as Llama 2's does."""
    first, second, both = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("a", " a", "a a")
    )
    return first + second != both


def _encode_inside(tokenizer: Any, block: str, prefixing: bool) -> list[int]:
    """Ids of a block that is not the first."""
    if prefixing:
        # a word in front takes the space that does not belong here; its tokens are dropped
        lead = "a" if block[0].isspace() else "a\n"
        drop = tokenizer.encode(lead, add_special_tokens=False)
        ids = tokenizer.encode(lead + block, add_special_tokens=False)
        if ids[: len(drop)] == drop:
            return ids[len(drop) :]
    return tokenizer.encode(block, add_special_tokens=False)


def _blocks(texts: Iterable[str], size: int | None = None) -> Iterator[str]:
    """Re-cut a text into blocks of at most ``size`` characters, whatever its pieces were."""
    size = size or _BLOCK
    waiting: list[str] = []
    length = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a piece of the prompt is a {type(text).__name__}; allowed is str")
        waiting.append(text)
        length += len(text)
        if length <= size + 1:
            continue
        text = "".join(waiting)
        start = 0
        while len(text) - start > size + 1:  # one more than a block: the cut looks ahead
            cut = _cut(text, start, start + size)
            yield text[start:cut]
            start = cut
        waiting, length = [text[start:]], len(text) - start
    text = "".join(waiting)
    if len(text) > size:
        cut = _cut(text, 0, size)
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


def _cut(text: str, start: int, stop: int) -> int:
    """The last place in text[start : stop + 1] to cut at; at or before ``stop``.

    Tokenizers split text before the space between two words and after a line break in front of
    a word. They do not all do so at other whitespace: some join punctuation and line breaks.
    """
    spare = stop
    for place in range(stop, start, -1):
        before, after, next_after = text[place - 1], text[place], text[place + 1 : place + 2]
        if before == "\n" and after.isalpha():
            return place
        if before.isalnum() and after == " " and next_after.isalpha():
            return place
        if spare == stop and after.isspace() and not before.isspace():
            spare = place
    return spare


def _pieces_of_text(prompt: Any) -> Iterable[str] | None:
    """The pieces of a prompt in pieces; None for text and for token ids."""
    if isinstance(prompt, (str, mx.array)):
        return None
    if hasattr(prompt, "read"):
        return iter(lambda: prompt.read(_BLOCK), "")
    if isinstance(prompt, Iterator) or not isinstance(prompt, Sequence):
        return None if hasattr(prompt, "shape") else prompt
    return prompt if len(prompt) and isinstance(prompt[0], str) else None


def _read_all_but_last(
    model: nn.Module,
    token_lists: Iterable[list[int]],
    cache: list[Any],
    size: int,
    progress: Progress,
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
                model(mx.array(waiting[start : start + size])[None], cache=cache)
                # only the state is evaluated: the logits of a prompt are never computed
                mx.eval([entry.state for entry in cache])
                mx.clear_cache()
                start += size
                read += size
                check_states(model, cache, f"reading stopped within the first {read:,} tokens")
                progress(read, None)
            waiting = waiting[start:]
    return waiting, read
