"""What facts are hidden in: a repeated noise, or pieces of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fm_mlx.evaluation.texts import encode_inside

# RULER's noise (arXiv:2404.06654).
_NOISE = (
    " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)

# What the last token of a sentence or line ends with.
_ENDS = (".", "!", "?", "\n")


@dataclass(frozen=True)
class Ends:
    """Where the sentences and lines of some hay end.

    Attributes:
        length: The tokens of the hay.
        after: Numbers of tokens, rising, after which a sentence ends; with 0 and the length.
    """

    length: int
    after: np.ndarray

    def at(self, depth: float) -> int:
        """The last end of a sentence within a part of the hay, 0 to 1, as a number of tokens."""
        wanted = round(depth * self.length)
        return int(self.after[np.searchsorted(self.after, wanted, side="right") - 1])


class Hay:
    """A text as tokens, of which pieces are drawn.

    Args:
        tokenizer: the tokenizer of the tokens.
        tokens: (n,) integers; None: noise without an end.
    """

    def __init__(self, tokenizer: Any, tokens: np.ndarray | None = None):
        self._noise = tokens is None
        self._tokens = np.array(encode_inside(tokenizer, _NOISE)) if tokens is None else tokens
        kinds, which = np.unique(self._tokens, return_inverse=True)
        ends = [tokenizer.decode([int(kind)]).rstrip(" ").endswith(_ENDS) for kind in kinds]
        self._is_end = np.array(ends, bool)[which]

    def draw(self, rng: np.random.Generator, length: int) -> tuple[np.ndarray, Ends]:
        """A piece of some length, and where its sentences end; noise always begins alike.

        Raises:
            ValueError: the text is shorter.
        """
        if self._noise:
            tokens, is_end = np.resize(self._tokens, length), np.resize(self._is_end, length)
        else:
            if length > len(self._tokens):
                raise ValueError(
                    f"a length of {length:,} tokens is too long: the text has {len(self._tokens):,}"
                )
            start = int(rng.integers(len(self._tokens) - length + 1))
            tokens = self._tokens[start : start + length]
            is_end = self._is_end[start : start + length]
        after = np.unique(np.concatenate([[0], np.flatnonzero(is_end) + 1, [length]]))
        return tokens, Ends(length, after)
