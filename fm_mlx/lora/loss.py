"""The loss of a batch, with the states that streams carry from batch to batch."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from fm_mlx.model import Model


def next_token_loss(
    model: Model,
    tokens: mx.array,
    mask: mx.array,
    reset_positions: mx.array | None = None,
    fresh: mx.array | None = None,
    carried: list[mx.array] | None = None,
) -> tuple[mx.array, mx.array, list[mx.array] | None]:
    """Cross-entropy of the targets that count, in nats, and how many they are.

    Among several processes the sum is divided by their mean number of targets, so that
    the mean of the processes' losses and gradients is that of one batch with all rows.

    Args:
        model: the model.
        tokens: (B, T + 1) integers; token t + 1 is the target of token t.
        mask: (B, T) bool: the targets that count.
        reset_positions: where texts begin in rows with several (`Model.__call__`).
        fresh: (B,) bool: the rows that begin a text; the others go on from ``carried``.
        carried: the state (B, m, d) of each layer after the batch before; no gradient flows
            into it. None for rows that are not pieces of streams.

    Returns:
        The loss, the number of targets, and the states after the last token; None for rows
        that are not pieces of streams.
    """
    inputs, last = tokens[:, :-1], None
    if carried is None:
        logits = model(inputs, reset_positions=reset_positions)
    else:
        assert fresh is not None
        initial_states = [
            mx.where(fresh[:, None, None], 0 if initial is None else initial, state)
            for initial, state in zip(model.initial_memory.states(), carried, strict=True)
        ]
        caches = [_Last() for _ in initial_states]
        logits = model.logits(model.model(inputs, list(caches), initial_states=initial_states))
        last = [cache.taken for cache in caches]
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), tokens[:, 1:])
    count = mask.sum()
    world = mx.distributed.init()
    if world.size() > 1:
        count = mx.distributed.all_sum(count, stream=mx.cpu) / world.size()
    return (losses * mask).sum() / mx.maximum(count, 1), count, last


def empty_states(model: Model, rows: int) -> list[mx.array]:
    """States (rows, m, d) of zeros for each layer: what streams carry before their first batch."""
    args = model.args
    shape = rows, args.num_memory_states, args.memory_size
    return [mx.zeros(shape, mx.float32) for _ in model.layers]


class _Last(ArraysCache):
    """Takes a layer's last state and reads as empty.

    A layer that is run again for its gradient (`Backbone.gradient_checkpointing`) must not
    begin with what it left.
    """

    taken: mx.array

    def __init__(self):
        super().__init__(size=1)

    def __setitem__(self, index: int, state: mx.array) -> None:
        self.taken = state
