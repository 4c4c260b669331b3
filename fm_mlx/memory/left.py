"""How much of what was read is left: the products of 1 - theta since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from fm_mlx.memory.memory import Memory


@dataclass(frozen=True, eq=False)
class Part:
    """Tokens that were read one after the other, and what is left of them.

    Attributes:
        first: The number of the first token, from 1; 0 stands for what was there before.
        last: The number of the last token.
        share: (layers, m): the weight of the values of these tokens in each row. A row is a
            weighted mean of all that was written to it, so that the shares of all parts add up
            to 1.
    """

    first: int
    last: int
    share: np.ndarray


def parts_left(memory: Memory) -> list[Part]:
    """What is left of the tokens between two snapshots, from the first token to the last.

    The first part is what the rows held before anything was read.
    """
    return _parts(memory, [(one.tokens, one.text.log_kept) for one in memory.snapshots])


def texts_left(memory: Memory) -> list[Part]:
    """What is left of each text, in their order; before them, of what the rows held at first."""
    ends = accumulate(text.tokens for text in memory.texts)
    return _parts(memory, list(zip(ends, (text.log_kept for text in memory.texts), strict=True)))


def _parts(memory: Memory, cuts: Sequence[tuple[int, np.ndarray]]) -> list[Part]:
    """The parts between the tokens after which the sum of log(1 - theta) is known.

    With A(t) the product of 1 - theta over the tokens after t, the tokens from s to t have the
    weight A(t) - A(s) (the recurrence of arXiv:2511.00315 written out).
    """
    kept = [(0, np.zeros_like(memory.log_kept)), *cuts]
    if kept[-1][0] < memory.tokens_seen:
        kept.append((memory.tokens_seen, memory.log_kept))
    left = [(tokens, np.exp(memory.log_kept - log_kept)) for tokens, log_kept in kept]
    parts = [Part(0, 0, left[0][1])]
    for (before, old), (tokens, new) in pairwise(left):
        parts.append(Part(before + 1, tokens, new - old))
    return parts
