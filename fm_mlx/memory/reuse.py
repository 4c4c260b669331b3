"""Reading of a prompt only what earlier prompts did not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import generation_stream, wired_limit
from mlx_lm.models.cache import ArraysCache

from fm_mlx.memory.memory import Memory
from fm_mlx.memory.prefixes import PrefixStore, stops
from fm_mlx.memory.states import put_states, states_of
from fm_mlx.model import Model
from fm_mlx.prefill import prefill


class ReusedPrompt:
    """A prompt that goes on from the longest beginning whose state was kept.

    Args:
        prefixes: the states of earlier prompts; those along this one are kept in it.
        model: the model.
        tokens: the prompt, not empty.
        cache: the state before the prompt, one cache per layer; updated in place.
        memory: what was read before the prompt.
    """

    def __init__(
        self,
        prefixes: PrefixStore,
        model: Model,
        tokens: Sequence[int],
        cache: Sequence[ArraysCache],
        memory: Memory | None = None,
    ):
        self._prefixes = prefixes
        self._model = model
        self._tokens = list(tokens)
        self._cache = cache
        self._root = b"" if memory is None else memory.digest

    def read(self, size: int, progress: Callable[[int, int | None], None]) -> int:
        """Read all tokens of the prompt but the last.

        Args:
            size: how many tokens are read at a time.
            progress: called with the number of tokens read and their total.

        Returns:
            How many tokens need not be read, for an earlier prompt began with them.

        Raises:
            NotFiniteError: names the first layer whose state is not finite.
        """
        start, states = self._prefixes.find(self._root, self._tokens)
        if states is not None:
            put_states(self._cache, states, self._model.args.num_active_states)
        known, total = start, len(self._tokens)
        with wired_limit(self._model, cast(Any, [generation_stream])), mx.stream(generation_stream):
            for stop in stops(start, total - 1):
                while start < stop:
                    end = min(start + size, stop)
                    where = f"reading stopped within the first {end:,} tokens"
                    prefill(self._model, self._tokens[start:end], self._cache, where)
                    progress(end, total)
                    start = end
                if stop:
                    self._keep(self._tokens[:stop])
        return known

    def answered(self, answer: Sequence[int]) -> None:
        """Keep the state after the prompt and the tokens of its answer, which were read."""
        with mx.stream(generation_stream):
            self._keep([*self._tokens, *answer])

    def _keep(self, tokens: Sequence[int]) -> None:
        self._prefixes.put(self._root, tokens, states_of(self._cache))
