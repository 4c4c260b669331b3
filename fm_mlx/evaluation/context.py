"""What longer contexts are worth: the loss of the same tokens, read after more or fewer others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from fm_mlx.evaluation.losses import losses_in_windows

# Contexts that are measured as far as the text reaches.
CONTEXTS = (256, 1024, 4096, 16384)

HEADER = (
    "model",
    "context",
    "first position",
    "last position",
    "tokens",
    "nats per token",
    "bits per byte",
)


@dataclass(frozen=True)
class Reading:
    """The losses of a text that was read in windows of one length.

    Attributes:
        windows: How many windows were read.
        sums: (context,) float64, nats: for each place in a window the sum over the windows.
        bytes_per_token: Of the text.
    """

    windows: int
    sums: np.ndarray
    bytes_per_token: float

    @property
    def context(self) -> int:
        return len(self.sums)

    def nats(self, first: int = 1, last: int | None = None) -> float:
        """Mean nats per token of the positions from first to last, counted from 1."""
        part = self.sums[first - 1 : last]
        return float(part.sum()) / (len(part) * self.windows)

    def bits_per_byte(self, first: int = 1, last: int | None = None) -> float:
        """The same in bits per byte, with the bytes per token of the whole text."""
        return self.nats(first, last) / math.log(2) / self.bytes_per_token


@dataclass(frozen=True)
class Measured:
    """A model's readings of one text, by rising context; all predict the same tokens."""

    name: str
    readings: list[Reading]

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Lines for `HEADER`: for each context all positions together, then part by part."""
        for reading in self.readings:
            for first, last in [(1, reading.context), *position_buckets(reading.context)]:
                tokens = (last - first + 1) * reading.windows
                losses = (
                    f"{reading.nats(first, last):.6f}",
                    f"{reading.bits_per_byte(first, last):.6f}",
                )
                yield self.name, reading.context, first, last, tokens, *losses


def contexts_that_fit(tokens: int, asked: Sequence[int] | None) -> list[int]:
    """The contexts to measure with a text, rising.

    Args:
        tokens: how many tokens of the text can be predicted.
        asked: contexts that are wanted; None: those of `CONTEXTS` that the text fills.

    Raises:
        ValueError: the text is too short, or windows of these contexts do not cover the same
            tokens.
    """
    if asked is None:
        found = [context for context in CONTEXTS if context <= tokens]
        if not found:
            raise ValueError(
                f"the text has {tokens:,} tokens to predict; the shortest context is {CONTEXTS[0]} "
                "unless --contexts says otherwise"
            )
        return found
    found = sorted(set(asked))
    if found[-1] > tokens:
        raise ValueError(
            f"a context of {found[-1]:,} tokens is too long: the text, as far as it is read, has "
            f"{tokens:,} tokens to predict"
        )
    for context in found:
        if found[-1] % context:
            raise ValueError(
                f"the context {context:,} does not divide the longest, {found[-1]:,}: windows of "
                "both would not cover the same tokens"
            )
    return found


def measure(
    model: nn.Module,
    tokens: np.ndarray,
    bytes_per_token: float,
    contexts: Sequence[int],
    before: Sequence[int] = (),
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[Reading]:
    """Read the same tokens with several contexts.

    Args:
        model: any model of mlx-lm.
        tokens: (n,) integers. The first tokens but one that fill windows of the longest context
            are predicted, by all contexts the same.
        bytes_per_token: of the text.
        contexts: lengths of windows, rising, each a divisor of the longest.
        before: special tokens that begin each window.
        progress: told how many more tokens were read.

    Raises:
        NotFiniteError: the model computes NaN; names the first layer that does.
    """
    longest = contexts[-1]
    tokens = tokens[: (len(tokens) - 1) // longest * longest + 1]
    readings = []
    for context in contexts:
        sums = np.zeros(context)
        for place, losses in losses_in_windows(model, tokens, context, before):
            sums[place : place + losses.shape[1]] += losses.sum(axis=0, dtype=np.float64)
            progress(losses.size)
        readings.append(Reading((len(tokens) - 1) // context, sums, bytes_per_token))
    return readings


def position_buckets(context: int) -> list[tuple[int, int]]:
    """The positions 1 to context in parts, about two for each doubling, as (first, last)."""
    firsts = sorted({round(2 ** (step / 2)) for step in range(2 * context.bit_length() + 1)})
    firsts = [first for first in firsts if first < context] or [1]
    return list(zip(firsts, [*(first - 1 for first in firsts[1:]), context], strict=True))


def by_position(readings: Sequence[Reading]) -> list[tuple[int, int, float]]:
    """The loss by position, each from the shortest windows that have it: there are most of those.

    Returns:
        (first position, last position, bits per byte) of parts, rising.
    """
    found, done = [], 0
    for reading in readings:
        for first, last in position_buckets(reading.context):
            if last > done:
                first = max(first, done + 1)
                found.append((first, last, reading.bits_per_byte(first, last)))
        done = reading.context
    return found
