"""What drafts the tokens to come: a smaller model, or the text itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import (
    ArraysCache,
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)

from fm_mlx.model import Model
from fm_mlx.prefill import prefill

# Options of plain decoding that drafts go with.
_OPTIONS = ("sampler", "logits_processors")


class Drafter(Protocol):
    """Guesses the tokens to come.

    Attributes:
        count: The most tokens to draft at a time.
    """

    count: int

    def read(self, tokens: list[int]) -> None:
        """Take in a piece of the prompt; the last token of all is left to `draft`."""
        ...

    def draft(self, tokens: list[int], count: int) -> mx.array:
        """Guess the tokens that follow.

        Args:
            tokens: the text since the last call of `draft` or `read`, at least one token. It
                begins with the drafts of the last call, as far as they were right.
            count: how many tokens to draft, from 1.

        Returns:
            (n,) uint32 with n <= count, not yet evaluated; random numbers are not used.
        """
        ...


class PromptLookup:
    """Drafts what followed the last three tokens, or two, where they last stood in the text.

    An index finds the place, so that a token costs the same time after any text. It reaches back
    over the last ``window`` tokens, or half as many.
    """

    _LENGTHS = (3, 2)

    def __init__(self, count: int = 8, window: int = 65_536):
        self.count = count
        self._window = window
        self._tokens: list[int] = []
        # where the token stands that followed an n-gram the last time
        self._after: dict[tuple[int, ...], int] = {}

    def read(self, tokens: Iterable[int]) -> None:
        """Take in text."""
        for token in tokens:
            place = len(self._tokens)
            for length in self._LENGTHS:
                if place >= length:
                    self._after[tuple(self._tokens[-length:])] = place
            self._tokens.append(token)
            if len(self._tokens) > self._window:
                self._forget(self._window // 2)

    def draft(self, tokens: list[int], count: int) -> mx.array:
        """Guess as `Drafter.draft` says; none if the last two tokens are new together."""
        self.read(tokens)
        for length in self._LENGTHS:
            place = self._after.get(tuple(self._tokens[-length:]))
            if place is not None:
                # what goes beyond the end repeats what is before it
                found = self._tokens[place : place + count]
                found *= -(-count // len(found))
                return mx.array(found[:count], mx.uint32)
        return mx.array([], mx.uint32)

    def _forget(self, count: int) -> None:
        """Drop the first tokens."""
        del self._tokens[:count]
        kept = ((ngram, place - count) for ngram, place in self._after.items())
        self._after = {ngram: place for ngram, place in kept if place >= 0}


class ModelDrafter:
    """Drafts with a smaller model, token by token, the likeliest each time.

    A Factorization Memory model goes back by the states that it had, which are kept for one call;
    any other by trimming its cache. A cache that keeps a window of the text cannot be trimmed once
    the window is full; nothing is drafted from then on.

    Raises:
        ValueError: the model is of another kind, or its vocabulary is not as large as wanted.
    """

    def __init__(self, model: nn.Module, vocab_size: int, count: int = 3):
        self.count = count
        self._model = model
        self._recurrent = isinstance(model, Model)
        # of one entry: nothing is written in place, so that a state is kept by holding it
        self._cache: list[Any] = (
            [ArraysCache(size=1) for _ in model.layers]
            if isinstance(model, Model)
            else make_prompt_cache(model)
        )
        fixed = [type(layer).__name__ for layer in self._cache if not layer.is_trimmable()]
        if fixed and not self._recurrent:
            raise ValueError(
                f"the draft model's cache cannot be trimmed ({fixed[0]}); allowed are models of "
                "Factorization Memory, and others whose cache can"
            )
        # the shape alone is computed
        found = model(mx.zeros((1, 1), mx.int32)).shape[-1]
        if found != vocab_size:
            raise ValueError(f"the draft model has {found} tokens; the model has {vocab_size}")
        self._drafts: list[mx.array] = []  # (1,) each
        self._states: list[list[mx.array]] = []  # before the drafts that were read, and after each

    def read(self, tokens: list[int]) -> None:
        """Take in text.

        Raises:
            NotFiniteError: names the first layer whose state is not finite.
        """
        prefill(self._model, tokens, self._cache, "the draft model stopped reading")

    def draft(self, tokens: list[int], count: int) -> mx.array:
        """Guess as `Drafter.draft` says."""
        if not self._recurrent and not can_trim_prompt_cache(self._cache):
            return mx.array([], mx.uint32)
        unread = tokens[self._go_back(tokens) :]
        token = mx.array(unread, mx.uint32)
        self._drafts, self._states = [], []
        for _ in range(count):
            logits = self._model(token[None], cache=self._cache)[:, -1]
            if self._recurrent:
                self._states.append([layer[0] for layer in self._cache])
            token = logits.argmax(axis=-1)
            mx.async_eval(token)
            self._drafts.append(token)
        return mx.concatenate(self._drafts)

    def _go_back(self, tokens: list[int]) -> int:
        """Go back to the last draft that was read and was right; the number of those."""
        read = [cast(int, token.item()) for token in self._drafts[:-1]]
        right = 0
        while right < len(read) and read[right] == tokens[right]:
            right += 1
        if not self._recurrent:
            trim_prompt_cache(self._cache, len(read) - right)
        elif self._states:
            for layer, state in zip(self._cache, self._states[right], strict=True):
                layer[0] = state
        return right


def make_drafter(
    model: nn.Module,
    draft_model: nn.Module | None,
    prompt_lookup: bool,
    num_draft_tokens: int | None,
    options: Iterable[str] = (),
) -> Drafter | None:
    """What drafts for a model, by the arguments of `fm_mlx.stream_generate`; None: nothing does.

    Args:
        model: the main model.
        draft_model, prompt_lookup, num_draft_tokens: as for `fm_mlx.stream_generate`.
        options: the names of its other options.

    Raises:
        ValueError: drafts cannot be had so; says what is allowed.
    """
    if draft_model is None and not prompt_lookup:
        return None
    if draft_model is not None and prompt_lookup:
        raise ValueError("there are a draft_model and prompt_lookup; allowed is one of them")
    if not isinstance(model, Model):
        raise ValueError(
            f"the model that checks the drafts is a {type(model).__module__}; allowed is one of "
            "Factorization Memory"
        )
    count = num_draft_tokens
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ValueError(f"num_draft_tokens is {count!r}; allowed are whole numbers from 1")
    for option in sorted(set(options).difference(_OPTIONS)):
        raise ValueError(
            f"{option} cannot be had with drafts; allowed are {' and '.join(_OPTIONS)}"
        )
    if draft_model is None:
        return PromptLookup(count or 8)
    return ModelDrafter(draft_model, model.args.vocab_size, count or 3)
