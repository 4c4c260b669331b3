"""The loss of a step, and the memories that streams carry from step to step."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from fm_mlx.model import Model

# Where a model keeps the memories its last batch of streams ended with: part of
# `model.state`, which a compiled step reads and writes, and no parameter.
_CARRIED = "_carried"


def next_token_loss(
    model: Model,
    tokens: mx.array,
    mask: mx.array,
    starts: mx.array | None = None,
    fresh: mx.array | None = None,
    carried: list[mx.array] | None = None,
) -> tuple[mx.array, mx.array]:
    """Cross-entropy of the targets that count, in nats, and how many they are.

    Among several processes the sum is divided by their mean number of targets, so that
    the mean of the processes' losses and gradients is that of one batch with all rows.

    Args:
        model: with streams, is left with the memories after the last token (`carried`).
        tokens: (B, T + 1) integers; token t + 1 is the target of token t.
        mask: (B, T) bool: the targets that count.
        starts: of rows with several texts (`Model.__call__`).
        fresh: (B,) bool: the rows that begin a text; the others go on from ``carried``.
        carried: memories (B, m, d) of each layer; no gradient flows into them.
    """
    inputs = tokens[:, :-1]
    if carried is None:
        logits = model(inputs, starts=starts)
    else:
        begin = [
            mx.where(fresh[:, None, None], 0 if initial is None else initial, state)
            for initial, state in zip(model.initial_memory.states(), carried, strict=True)
        ]
        last = [_Last() for _ in begin]
        logits = model.logits(model.model(inputs, last, initial=begin))
        model[_CARRIED] = [layer.taken for layer in last]
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), tokens[:, 1:])
    count = mask.sum()
    world = mx.distributed.init()
    if world.size() > 1:
        count = mx.distributed.all_sum(count, stream=mx.cpu) / world.size()
    return (losses * mask).sum() / mx.maximum(count, 1), count


def carried(model: Model, rows: int) -> list[mx.array]:
    """The memories that the model's last batch of streams ended with; zeros if there is none."""
    found = model.get(_CARRIED)
    if found is None or len(found[0]) != rows:
        args = model.args
        shape = rows, args.num_memory_states, args.memory_size
        found = [mx.zeros(shape, mx.float32) for _ in model.layers]
    return list(found)


def set_carried(model: Model, states: list[mx.array]) -> None:
    """Put memories (B, m, d) of each layer where `carried` finds them."""
    model[_CARRIED] = states


def forget_carried(model: Model) -> None:
    """Leave the model as it was before it was trained on streams."""
    model.pop(_CARRIED, None)


class _Last(ArraysCache):
    """Takes a layer's last state and reads as empty.

    A layer that is run again for its gradient (mlx-lm's ``grad_checkpoint``) must not begin
    with what it left.
    """

    def __init__(self):
        super().__init__(size=1)
        self.taken: mx.array | None = None

    def __setitem__(self, index: int, state: mx.array) -> None:
        self.taken = state
