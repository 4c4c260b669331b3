"""The training loop: a batch, a step, a report, a save, now and then an evaluation.

Layers, losses, optimizers, schedules and adapter files are those of mlx-lm's tuner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map
from mlx_lm.utils import maybe_set_recommended_wired_limit

from fm_mlx.lora import training_state
from fm_mlx.lora.batches import KINDS, Batches
from fm_mlx.lora.curves import Log
from fm_mlx.lora.data import Example
from fm_mlx.lora.loss import empty_states, next_token_loss
from fm_mlx.lora.options import Options
from fm_mlx.lora.training_state import TrainingState
from fm_mlx.lora.tuned import trainable
from fm_mlx.model import Model
from fm_mlx.support.arrays import number


class Diverged(ArithmeticError):
    """The weights are no longer numbers; the text says what is kept."""


def make_batches(examples: Sequence[Example], options: Options) -> Batches:
    """This process's rows of the batches of some examples."""
    world = mx.distributed.init()
    kind = KINDS[options.batching]
    return kind(examples, options.batch_size, options.max_seq_length, world.rank(), world.size())


def evaluate(model: Model, examples: Sequence[Example], options: Options, most: int) -> float:
    """The mean loss over examples, in nats per token.

    Args:
        model: is left in evaluation mode.
        examples: at least one.
        options: say how rows are made.
        most: the number of batches to look at; -1 for all.
    """
    model.eval()
    batches = make_batches(examples, options)
    rows = options.batch_size // mx.distributed.init().size()
    carried = empty_states(model, rows) if batches.carries_states else None
    losses, tokens = mx.array(0.0), mx.array(0)
    for done, batch in enumerate(batches.once()):
        if done == most:
            break
        loss, count, carried = next_token_loss(model, *batch, carried)
        losses += loss * count
        tokens += count
        mx.eval(losses, tokens)
        _limit_cache(options)
    losses = mx.distributed.all_sum(losses, stream=mx.cpu)
    tokens = mx.distributed.all_sum(tokens, stream=mx.cpu)
    return number(losses / tokens)


def make_step(
    model: Model, optimizer: optim.Optimizer, accumulated: int
) -> tuple[Callable[..., tuple[Any, ...]], list[Any]]:
    """One compiled step of training, and the trees of arrays that it changes.

    The step takes the arrays of a batch, the carried states, the gradients that were
    accumulated so far (None: none) and whether they make an update now. It returns the loss,
    the number of targets, the carried states, and the gradients that wait for an update.
    """
    value_and_grad = nn.value_and_grad(model, next_token_loss)
    changed = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=changed, outputs=changed)
    def step(batch, carried, waiting, updates):
        (loss, count, carried), gradients = value_and_grad(model, *batch, carried)
        if waiting is not None:
            gradients = tree_map(lambda x, y: x + y, gradients, waiting)
        if updates:
            gradients = average_gradients(gradients)
            if accumulated > 1:
                gradients = tree_map(lambda x: x / accumulated, gradients)
            optimizer.update(model, gradients)
            gradients = None
        return loss, count, carried, gradients

    return step, changed


class Loop:
    """The steps of a run, from its beginning or from a saved state.

    Args:
        model: the model, prepared for training (`fm_mlx.lora.tuned`).
        optimizer: the optimizer of the run.
        batches: the batches of the examples to train on.
        options: the options of the run.
        course: what a saved state must agree with to be gone on from.
        log: is told of the losses.
        before: the saved state to go on from; None begins anew.
    """

    def __init__(
        self,
        model: Model,
        optimizer: optim.Optimizer,
        batches: Batches,
        options: Options,
        course: dict[str, Any],
        log: Log,
        before: TrainingState | None = None,
    ):
        self.done = before.step if before else 0
        self._model, self._optimizer, self._batches = model, optimizer, batches
        self._options, self._course, self._log = options, course, log
        self._folder = Path(options.adapter_path)
        self._world = mx.distributed.init()
        self._saved = self.done
        self._trained_tokens = before.trained_tokens if before else 0  # of all processes
        # an update is saved when it has all of its gradients
        accumulated = options.grad_accumulation_steps
        self._save_every = -(-options.save_every // accumulated) * accumulated
        self._carried: list[mx.array] | None = None
        if batches.carries_states:
            # there from the first step on: a step is compiled for what it finds
            self._carried = empty_states(model, options.batch_size // self._world.size())
        if before is not None:
            before.restore(model, optimizer)
            own = slice(self._world.rank(), None, self._world.size())
            self._carried = before.carried(own) or self._carried

    def run(self, valid: Sequence[Example]) -> tuple[float | None, float | None]:
        """Take the steps that are left; the held-out loss before and after.

        Raises:
            Diverged: if a weight is no longer finite; the last save is kept.
        """
        options, accumulated = self._options, self._options.grad_accumulation_steps
        maybe_set_recommended_wired_limit()
        step, changed = make_step(self._model, self._optimizer, accumulated)
        before = self._evaluate(valid, self.done) if valid else None
        self._model.train()
        report = _Report(self._log, self._optimizer, self._trained_tokens)
        gradients = None
        for batch in self._left():
            started = time.perf_counter()
            self.done += 1
            loss, count, self._carried, gradients = step(
                batch, self._carried, gradients, self.done % accumulated == 0
            )
            report.add(loss, count)
            mx.eval(changed, self._carried, gradients, report.arrays)
            _limit_cache(options)
            report.seconds += time.perf_counter() - started
            self._log.step()
            last = self.done == options.iters
            if last or self.done % options.steps_per_report == 0:
                report.give(self.done)
            self._check_finite()
            if last or self.done % self._save_every == 0:
                self._save(report.all_tokens())
            if valid and not last and (self.done + 1) % options.steps_per_eval == 0:
                self._evaluate(valid, self.done)
                self._model.train()
        after = self._evaluate(valid, self.done) if valid else None
        return before, after

    def _left(self) -> Iterator[tuple[mx.array | None, ...]]:
        """The batches of the steps that are not done."""
        batches = self._batches.forever(self._options.seed, skip=self.done)
        for _, batch in zip(range(self._options.iters - self.done), batches, strict=False):
            yield tuple(batch)

    def _evaluate(self, valid: Sequence[Example], step: int) -> float:
        started = time.perf_counter()
        loss = evaluate(self._model, valid, self._options, self._options.val_batches)
        self._log.held_out(step, loss, time.perf_counter() - started)
        return loss

    def _check_finite(self) -> None:
        finite = [mx.isfinite(value).all() for value in trainable(self._model).values()]
        if not mx.stack(finite).all().item():
            kept = f"the save of step {self._saved} is kept" if self._saved else "nothing is saved"
            raise Diverged(
                f"step {self.done} made the weights infinite or NaN; {kept} in {self._folder}; "
                f"a learning rate below {self._options.learning_rate:g} may help"
            )

    def _save(self, trained_tokens: int) -> None:
        carried = self._carried_by_all()
        if self._world.rank() == 0:
            arrays = training_state.snapshot(self._model, self._optimizer, carried)
            TrainingState(self.done, trained_tokens, self._course, arrays).save(self._folder)
        self._saved = self.done

    def _carried_by_all(self) -> list[mx.array]:
        """The states of the rows of all processes, which take turns in a batch."""
        size = self._world.size()
        if self._carried is None or size == 1:
            return self._carried or []
        gathered = [
            mx.distributed.all_gather(state[:, None], stream=mx.cpu) for state in self._carried
        ]
        mx.eval(gathered)  # in all processes: each waits for the others
        return [x.reshape(size, -1, *x.shape[2:]).swapaxes(0, 1).flatten(0, 1) for x in gathered]


class _Report:
    """Adds up the steps between two reports of the training loss."""

    def __init__(self, log: Log, optimizer: optim.Optimizer, trained_tokens: int):
        self.seconds = 0.0
        self._log, self._optimizer = log, optimizer
        self._world = mx.distributed.init()
        self._reported_tokens = trained_tokens
        self._clear()

    def _clear(self) -> None:
        self.seconds, self._steps = 0.0, 0
        self._losses, self._tokens = mx.array(0.0), mx.array(0)

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """What is to be evaluated with a step."""
        return self._losses, self._tokens

    def add(self, loss: mx.array, tokens: mx.array) -> None:
        """Count a step; ``tokens`` are the targets of which each process has a part."""
        self._losses = self._losses + loss
        self._tokens = self._tokens + tokens
        self._steps += 1

    def all_tokens(self) -> int:
        """The targets that counted in the run so far, of all processes."""
        since = number(mx.distributed.all_sum(self._tokens, stream=mx.cpu))
        return self._reported_tokens + round(since)

    def give(self, step: int) -> None:
        """Write down the mean loss of the steps since the last report, and begin anew."""
        losses = number(mx.distributed.all_sum(self._losses, stream=mx.cpu))
        self._reported_tokens, before = self.all_tokens(), self._reported_tokens
        self._log.training(
            step,
            {
                "train_loss": losses / (self._steps * self._world.size()),
                "learning_rate": self._optimizer.learning_rate.item(),
                "iterations_per_second": self._steps / self.seconds,
                "tokens_per_second": (self._reported_tokens - before) / self.seconds,
                "trained_tokens": self._reported_tokens,
                "peak_memory": mx.get_peak_memory() / 1e9,
            },
        )
        self._clear()


def _limit_cache(options: Options) -> None:
    if mx.get_cache_memory() > options.clear_cache_threshold:
        mx.clear_cache()
