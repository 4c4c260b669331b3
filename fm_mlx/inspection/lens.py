"""Which tokens a row of the memory points to: the model's own head, as a lens."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from fm_mlx.layer import FactorizationMemory
from fm_mlx.model import Model
from fm_mlx.ops.memory_norm import inverse_rms

# Rows whose logits are computed together.
_ROWS = 64


class RowTokens(NamedTuple):
    """The tokens that rows point to.

    Attributes:
        ids: the token ids, the nearest first, (m, n) int64.
        strength: how far their logits are above the mean of the row's logits, in standard
            deviations of these, (m, n) float64. It is 0 for a row that holds nothing.
    """

    ids: np.ndarray
    strength: np.ndarray


def row_tokens(
    model: Model,
    memory: FactorizationMemory,
    state: mx.array,
    count: int,
    vocabulary: int | None = None,
) -> RowTokens:
    """The tokens nearest to each row, through the model's own head.

    A read adds phi[i] W_o h[i] / rms(h[i]) to the residual stream for each row i. This is what
    the last norm and the head make of W_o h[i] / rms(h[i]) alone: the tokens that the read of the
    row would favour if nothing came after it. The norm divides by one positive number, so that
    neither phi[i] nor the rest of the residual stream changes their order. What later layers
    make of the read is left out: it is a lens, and no account of what the row does.

    Args:
        model: the model.
        memory: one of its layers.
        state: the rows of the layer, (m, d) float32.
        count: how many tokens to find for each row.
        vocabulary: tokens from this id on are passed over; None: there are none such.
    """
    squares = mx.square(state).sum(axis=-1, keepdims=True)
    normed = state * inverse_rms(squares, state.shape[-1], memory.eps)
    ids, strength = [], []
    for start in range(0, len(state), _ROWS):
        read = memory.out_proj(normed[start : start + _ROWS])
        logits = model.logits(model.model.norm(read)[1])[:, :vocabulary]
        logits = np.array(logits.astype(mx.float32), np.float64)
        best = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
        spread = logits.std(axis=-1, keepdims=True)
        above = np.take_along_axis(logits, best, axis=-1) - logits.mean(axis=-1, keepdims=True)
        ids.append(best)
        strength.append(np.divide(above, spread, out=np.zeros_like(above), where=spread > 0))
    return RowTokens(np.concatenate(ids), np.concatenate(strength))
