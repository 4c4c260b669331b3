"""Multi-query associative recall (MQAR): how many pairs a model keeps.

The task of "Zoology: Measuring and Improving Recall in Efficient Language Models" (Arora et al.,
2023, arXiv:2312.04927): a sequence lists pairs of a key and a value; later the keys come again, and
at each the model is to say the value. Between them stand random tokens. A model is trained on the
task from nothing, and its accuracy is counted for each number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from fm_mlx.layer import FactorizationMemory
from fm_mlx.support.arrays import number

# Zoology draws the gap between a pair and its query from a power law of this exponent.
_GAP_EXPONENT = 0.01


@dataclass(frozen=True)
class Setting:
    """Sequences of one kind.

    Attributes:
        length: The tokens of a sequence.
        pairs: The pairs of a key and a value that it begins with.
    """

    length: int
    pairs: int

    def __post_init__(self):
        if self.pairs < 1 or self.length < 4 * self.pairs:
            raise ValueError(
                f"{self.pairs} pairs do not fit {self.length} tokens; allowed are lengths from 4 "
                "tokens a pair (key and value, key and value again)"
            )

    def __str__(self) -> str:
        return f"{self.length}:{self.pairs}"


@dataclass(frozen=True)
class Training:
    """How a model learns the task.

    Attributes:
        settings: The kinds of sequences; each step has sequences of one kind, in turns.
        steps: The number of AdamW steps.
        tokens: The tokens of a step, which fix the number of sequences.
        rate: The learning rate after a tenth of the steps; a cosine to 0 follows.
        vocab_size: Keys are the first half of the tokens, values the second.
        seed: Of the sequences.
        dense_share: The share of the steps in which every row of an FM is active. In as many steps
            again k falls to the model's own, halved at equal intervals. 0 is the paper's
            training, with the model's k from the first step.
    """

    settings: Sequence[Setting]
    steps: int = 1500
    tokens: int = 1024
    rate: float = 1e-2
    vocab_size: int = 256
    seed: int = 0
    dense_share: float = 0.0

    def __post_init__(self):
        if not 0 <= self.dense_share <= 0.5:
            raise ValueError(f"the dense share is {self.dense_share}; allowed are 0 to 0.5")
        for setting in self.settings:
            check_fits(setting, self.vocab_size)


def check_fits(setting: Setting, vocab_size: int) -> None:
    """Raise a ValueError unless there are keys enough for the pairs of a sequence."""
    if setting.pairs > vocab_size // 2 - 1:
        raise ValueError(
            f"{setting.pairs} pairs need as many keys; a vocabulary of {vocab_size} has "
            f"{vocab_size // 2 - 1}"
        )


def sequences(
    setting: Setting, count: int, vocab_size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences and what is to be recalled in them.

    Args:
        setting: their length and number of pairs.
        count: the number B of sequences.
        vocab_size: V; token 0 is never drawn, keys are 1 to V / 2 - 1, values V / 2 to V - 1.
        generator: draws them.

    Returns:
        Tokens (B, length) int32, and targets (B, length) int32: the value at the tokens that ask
        for one, -1 elsewhere.
    """
    length, pairs, half = setting.length, setting.pairs, vocab_size // 2
    rows = np.arange(count)[:, None]
    keys = generator.permuted(np.tile(np.arange(1, half), (count, 1)), axis=1)[:, :pairs]
    values = generator.permuted(np.tile(np.arange(half, vocab_size), (count, 1)), axis=1)[:, :pairs]
    tokens = generator.integers(1, vocab_size, (count, length))
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    # a query stands on an even place after the pairs; the k smallest of exponential draws over
    # the weights are k places drawn without replacement
    places = (length - 2 * pairs) // 2
    weights = np.arange(1, places + 1) ** (_GAP_EXPONENT - 1)
    draws = generator.exponential(size=(count, places)) / weights
    chosen = np.argsort(draws, axis=1)[:, :pairs]
    asked = 2 * pairs + 2 * chosen
    tokens[rows, asked] = keys
    tokens[rows, asked + 1] = values
    targets = np.full((count, length), -1)
    targets[rows, asked] = values
    return tokens.astype(np.int32), targets.astype(np.int32)


def recall_loss(model: nn.Module, tokens: mx.array, targets: mx.array) -> mx.array:
    """Mean nats of the values at the tokens (B, T) whose targets (B, T) are not -1."""
    asked = targets >= 0
    losses = nn.losses.cross_entropy(model(tokens), mx.maximum(targets, 0))
    return (losses * asked).sum() / asked.sum()


def train(model: nn.Module, training: Training) -> Iterator[tuple[int, float]]:
    """Train a model on the task, and yield (step, loss) after each step.

    A batch depends on the seed and the step alone.
    """
    warmup = max(1, training.steps // 10)
    rising = optim.linear_schedule(0.0, training.rate, warmup)
    falling = optim.cosine_decay(training.rate, max(1, training.steps - warmup))
    schedule = optim.join_schedules([rising, falling], [warmup])
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=0.1)
    optimizer.init(model.trainable_parameters())
    update = update_of(model, optimizer)
    memories = [m for m in model.modules() if isinstance(m, FactorizationMemory)]
    own_actives = [memory.num_active_states for memory in memories]
    for step in range(training.steps):
        for memory, own in zip(memories, own_actives, strict=True):
            active = active_rows(step, training, memory.num_memory_states, own)
            if active != memory.num_active_states:
                memory.num_active_states = active
                update = update_of(model, optimizer)
        setting = training.settings[step % len(training.settings)]
        generator = np.random.default_rng((training.seed, step))
        count = max(1, training.tokens // setting.length)
        batch = sequences(setting, count, training.vocab_size, generator)
        yield step, number(update(*map(mx.array, batch)))


def active_rows(step: int, training: Training, rows: int, own: int) -> int:
    """The number k of active rows at a step of a training that may begin dense.

    Args:
        step: from 0.
        training: says how long all rows are active.
        rows: m.
        own: the k that the model ends with.
    """
    dense = training.dense_share * training.steps
    if step >= 2 * dense:
        return own
    halvings = max(1, math.ceil(math.log2(rows / own)))
    done = max(0, math.floor((step - dense) / dense * (halvings + 1)))
    return max(own, rows >> done)


def update_of(
    model: nn.Module, optimizer: optim.Optimizer
) -> Callable[[mx.array, mx.array], mx.array]:
    """A compiled training step on tokens and targets that returns their loss."""
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def update(tokens: mx.array, targets: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, recall_loss)(model, tokens, targets)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return loss

    def evaluated(tokens: mx.array, targets: mx.array) -> mx.array:
        loss = update(tokens, targets)
        mx.eval(loss, state)
        return loss

    return evaluated


def accuracy(
    model: nn.Module, setting: Setting, vocab_size: int, count: int = 64, seed: int = 1_000_000
) -> float:
    """The share of queries whose value is the likeliest token, over ``count`` new sequences."""
    check_fits(setting, vocab_size)
    right = asked = 0
    for row in range(count):
        generator = np.random.default_rng((seed, setting.length, setting.pairs, row))
        tokens, targets = sequences(setting, 1, vocab_size, generator)
        best = np.array(mx.argmax(model(mx.array(tokens)), axis=-1))
        right += int(((best == targets) & (targets >= 0)).sum())
        asked += int((targets >= 0).sum())
    return right / asked
