"""The loss of each token of a long text, read in pieces with the model's own cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from fm_mlx.finite import logits_are_not_finite

# Tokens whose logits are computed at a time; they take 4 bytes for each entry of the vocabulary.
PIECE = 512


def losses_after(
    model: nn.Module, tokens: np.ndarray, cache: Sequence[Any], where: str
) -> np.ndarray:
    """Negative log-probabilities, in nats, of tokens that follow what a cache holds.

    Args:
        model: any model of mlx-lm.
        tokens: (B, T + 1) integers; the first of a row is given, the others are predicted.
        cache: the state of each layer, which goes on to the last token but one.
        where: begins the sentence of the error: "reading stopped within the first 512 tokens".

    Returns:
        (B, T) float32.

    Raises:
        NotFiniteError: a loss is no number; names the layer of an FM model that makes it so.
    """
    logits = model(mx.array(tokens[:, :-1]), cache=cache).astype(mx.float32)
    losses = nn.losses.cross_entropy(logits, mx.array(tokens[:, 1:]))
    mx.eval(losses, [entry.state for entry in cache])
    found = np.array(losses)
    mx.clear_cache()
    if not np.isfinite(found).all():
        raise logits_are_not_finite(model, cache, int(tokens[0, 0]), where)
    return found


def losses_in_windows(
    model: nn.Module, tokens: np.ndarray, context: int, before: Sequence[int] = ()
) -> Iterator[tuple[int, np.ndarray]]:
    """Losses of a text that is read in windows, each from an empty memory.

    The windows cover the tokens from the second on once, as far as they fill whole windows: the
    tokens i * context + 1 .. (i + 1) * context are predicted from those since i * context.

    Args:
        model: any model of mlx-lm.
        tokens: (n,) integers.
        context: the tokens of a window.
        before: special tokens that are read before each window, and not predicted.

    Yields:
        The place in its window of the first token of a piece, from 0, and the losses of the piece
        in several windows, (windows, T) float32 in nats. Memory for a model whose cache does not
        grow is that of one piece.

    Raises:
        NotFiniteError: as for `losses_after`.
    """
    count = (len(tokens) - 1) // context
    together = max(1, PIECE // context)
    for start in range(0, count, together):
        first = np.arange(start, min(start + together, count))[:, None] * context
        windows = tokens[first + np.arange(context + 1)]
        cache = make_prompt_cache(model)
        if before:
            model(mx.array([list(before)] * len(windows)), cache=cache)
        for place in range(0, context, PIECE):
            piece = windows[:, place : place + PIECE + 1]
            read = start * context + place + piece[:, 1:].size
            where = f"reading stopped within the first {read:,} tokens"
            yield place, losses_after(model, piece, cache, where)
