"""A needle in a haystack: what is left of one fact after a long text.

After RULER's tasks of a single needle ("RULER: What's the Real Context Size of Your Long-Context
Language Models?", Hsieh et al., 2024, arXiv:2404.06654): a sentence says the secret number of a
place, somewhere in noise (S-NIAH-1) or in real text (S-NIAH-2), and is asked for at the end. A
model that only goes on writing is asked by the beginning of the sentence itself, and graded by the
probabilities that it gives to the right value and to others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from fm_mlx.evaluation.hay import Hay
from fm_mlx.evaluation.losses import losses_after
from fm_mlx.evaluation.wording import CANDIDATES, Fact, draw_fact
from fm_mlx.prefill import prefill

# Tokens of the hay that are read at a time.
_PIECE = 2048

HEADER = (
    "model",
    "length",
    "depth",
    "samples",
    "exact",
    "first",
    "candidates",
    "mean rank",
    "nats gained",
    "standard error",
    "nats gained on others",
    "standard error of that",
)


@dataclass(frozen=True)
class Answer:
    """What a model made of one question.

    Attributes:
        exact: Whether the right value's tokens are the likeliest, one after the other: greedy
            decoding says it.
        log_probs: (n,) log-probabilities of the values in nats, the right one's first.
    """

    exact: bool
    log_probs: np.ndarray

    @property
    def log_share(self) -> float:
        """Logarithm of the right value's part of the probability of all these values."""
        top = self.log_probs.max()
        return float(self.log_probs[0] - top - np.log(np.exp(self.log_probs - top).sum()))

    @property
    def rank(self) -> float:
        """The place of the right value among all, from 1; equals share their places."""
        right = self.log_probs[0]
        return 1 + (self.log_probs > right).sum() + ((self.log_probs == right).sum() - 1) / 2

    @property
    def first(self) -> float:
        """1 if the right value is the likeliest, 0 if not; equals share the 1."""
        best = self.log_probs == self.log_probs.max()
        return float(best[0]) / best.sum()


@dataclass(frozen=True)
class Cell:
    """What was found at one length of the hay and one depth.

    Attributes:
        length: Tokens of the hay.
        depth: The needle's place, 0 (before all of the hay) to 1 (just before the question);
            None: there was no needle.
        answers: One for each sample.
        without: Answers to the same questions after the same hay without a needle.
    """

    length: int
    depth: float | None
    answers: Sequence[Answer]
    without: Sequence[Answer]

    @property
    def gains(self) -> np.ndarray:
        """(samples,) nats by which the needle makes the right value likelier."""
        pairs = zip(self.answers, self.without, strict=True)
        return np.array([float(a.log_probs[0] - b.log_probs[0]) for a, b in pairs])

    @property
    def gains_on_others(self) -> np.ndarray:
        """(samples,) the same for the right value's part of the probability of all values.

        A needle also shows that a number follows such words, which makes all numbers likelier;
        that is not in here. At most the logarithm of `CANDIDATES`, from chance to certainty.
        """
        pairs = zip(self.answers, self.without, strict=True)
        return np.array([a.log_share - b.log_share for a, b in pairs])

    @property
    def gain(self) -> float:
        """Mean of `gains`."""
        return float(self.gains.mean())

    @property
    def gain_on_others(self) -> float:
        """Mean of `gains_on_others`."""
        return float(self.gains_on_others.mean())

    @property
    def first(self) -> float:
        """The share of samples in which the right value is the likeliest of all."""
        return float(np.mean([answer.first for answer in self.answers]))

    @property
    def exact(self) -> float:
        """The share of samples that greedy decoding answers."""
        return float(np.mean([answer.exact for answer in self.answers]))

    def row(self, name: str) -> tuple[object, ...]:
        """A line for `HEADER`."""
        return (
            name,
            self.length,
            "none" if self.depth is None else f"{self.depth:.4g}",
            len(self.answers),
            f"{self.exact:.4f}",
            f"{self.first:.4f}",
            CANDIDATES,
            f"{np.mean([answer.rank for answer in self.answers]):.3f}",
            *_mean_and_error(self.gains),
            *_mean_and_error(self.gains_on_others),
        )


def _mean_and_error(values: np.ndarray) -> tuple[str, str]:
    """A mean, and its standard error where there is one."""
    count = len(values)
    error = f"{values.std(ddof=1) / count**0.5:.4f}" if count > 1 else ""
    return f"{values.mean():z.4f}", error


def measure(
    model: nn.Module,
    tokenizer: Any,
    hay: Hay,
    lengths: Sequence[int],
    depths: int,
    samples: int,
    *,
    kind: str = "number",
    before: Sequence[int] = (),
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> list[Cell]:
    """Hide facts at all lengths and depths, and ask for them.

    The facts depend on the seed and the number of the sample alone, so that all lengths and depths
    ask for the same; the hay depends on the length as well. Each question is compared with the
    same one after the same hay without the needle.

    Args:
        model: any model of mlx-lm.
        tokenizer: its tokenizer.
        hay: what the facts are hidden in.
        lengths: tokens of the hay.
        depths: how many places, evenly spaced from the beginning of the hay to its end.
        samples: facts for each length and depth.
        kind: of the values: "number" or "word" (`wording.draw_fact`).
        before: special tokens that begin a text.
        seed: of the facts, and of the places of the hay in its text.
        progress: told of each question that was answered; there are
            ``len(lengths) * samples * (depths + 1)``.

    Returns:
        For each length the cells by rising depth, the one without a needle last.

    Raises:
        ValueError: the text is too short for a length.
        NotFiniteError: the model computes NaN; names the first layer that does.
    """
    cells = []
    places = [float(depth) for depth in np.linspace(0, 1, depths)]
    for length in lengths:
        found: list[list[Answer]] = []
        for sample in range(samples):
            rng = np.random.default_rng((seed, sample))
            fact = draw_fact(rng, tokenizer, kind)
            tokens, ends = hay.draw(rng, length)
            found.append([])
            cuts = [ends.at(place) for place in places]
            for answer in answers(model, fact, tokens, cuts, before):
                found[-1].append(answer)
                progress()
        by_place = list(zip(*found, strict=True))
        for depth, asked in zip([*places, None], by_place, strict=True):
            cells.append(Cell(length, depth, asked, by_place[-1]))
    return cells


def answers(
    model: nn.Module,
    fact: Fact,
    hay: np.ndarray,
    places: Sequence[int],
    before: Sequence[int] = (),
) -> Iterator[Answer]:
    """Ask for a fact that stands at each of several places of the hay, then for one that does not.

    What stands before a place is read once for all places: the state there is kept, and read on
    from with the needle and without.

    Args:
        model: any model of mlx-lm.
        fact: what is hidden and asked for.
        hay: (n,) integers.
        places: how many tokens of the hay stand before the needle, rising.
        before: special tokens that begin the text.
    """
    cache = make_prompt_cache(model)
    _read(model, before, cache)
    done = 0
    for place in places:
        _read(model, hay[done:place], cache)
        done = place
        branch = copy.deepcopy(cache)
        _read(model, [*fact.sentence, *hay[place:]], branch)
        yield _answer(model, fact, branch)
    _read(model, hay[done:], cache)
    yield _answer(model, fact, cache)


def _read(model: nn.Module, tokens: Iterable[int], cache: list[Any]) -> None:
    ids = [int(token) for token in tokens]
    for start in range(0, len(ids), _PIECE):
        prefill(model, ids[start : start + _PIECE], cache, "reading the hay stopped")


def _answer(model: nn.Module, fact: Fact, cache: list[Any]) -> Answer:
    """Ask after what a cache holds; the cache goes on to the last token but one of the question."""
    *question, last = fact.question
    _read(model, question, cache)
    log_probs = []
    for value in fact.values:
        tokens = np.array([[last, *value]])
        losses = losses_after(model, tokens, copy.deepcopy(cache), "the question was not answered")
        log_probs.append(-losses.sum(dtype=np.float64))
    right = mx.array([[last, *fact.values[0][:-1]]])
    likeliest = model(right, cache=copy.deepcopy(cache))[0].argmax(axis=-1).tolist()
    return Answer(likeliest == fact.values[0], np.array(log_probs))
