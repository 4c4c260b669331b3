"""What mlx-lm's trainer asks for batches, and so hears of when a step is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx

from fm_mlx.lora.batches import KINDS, Streams
from fm_mlx.lora.data import Example
from fm_mlx.lora.loss import carried, set_carried
from fm_mlx.model import Model


class Feeder:
    """The ``iterate_batches`` of mlx-lm's trainer and of its evaluation.

    The trainer comes back for the next batch when it has taken a step whole, with its update:
    `after_step` is called then, but for the last step.

    Args:
        model: whose memories streams carry.
        batching: a key of `fm_mlx.lora.batches.KINDS`.
        seed: of the order.
        done: steps taken before.
    """

    def __init__(self, model: Model, batching: str, seed: int = 0, done: int = 0):
        self.model = model
        self.done = done
        self._kind = KINDS[batching]
        self._seed = seed

    @property
    def carries(self) -> bool:
        """Whether memories are carried from batch to batch."""
        return self._kind is Streams

    def before_step(self, tokens: int) -> None:
        """A step is to be taken in which `tokens` targets of this process count."""

    def after_step(self) -> None:
        """A step is taken; `done` counts it."""

    def __call__(
        self,
        dataset: Sequence[Example],
        batch_size: int,
        max_seq_length: int,
        loop: bool = False,
        comm_group: mx.distributed.Group | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Batches for `next_token_loss`: all of the data once, or with `loop` for training."""
        world = comm_group or mx.distributed.init()
        batches = self._kind(dataset, batch_size, max_seq_length, world.rank(), world.size())
        if not loop:
            yield from map(self._complete, batches.once())
            return
        if self.carries:
            # there from the first step on: a step is compiled for what it finds
            rows = batch_size // world.size()
            set_carried(self.model, carried(self.model, rows))
        for batch in batches.forever(self._seed, skip=self.done):
            self.before_step(int(batch[1].sum().item()))
            yield self._complete(batch)
            self.done += 1
            self.after_step()

    def _complete(self, batch: tuple[mx.array, ...]) -> tuple[Any, ...]:
        """A batch with the memories that the one before ended with, if it goes on from them."""
        if not self.carries:
            return batch
        tokens, mask, fresh = batch
        return tokens, mask, None, fresh, carried(self.model, len(tokens))
