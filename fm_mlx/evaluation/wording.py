"""The facts that are hidden and asked for: who has which secret, in tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fm_mlx.evaluation.texts import encode_inside

# The right value and those that it is compared with.
CANDIDATES = 16

KINDS = ("number", "word")

_PLACES = """
    Antioch Athens Babylon Bethlehem Carthage Corinth Cyprus Damascus Ephesus Galilee Gaza
    Jericho Lebanon Macedonia Malta Memphis Nazareth Nineveh Philippi Rome Sardis Smyrna Thebes
    Tyre
"""

_WORDS = """
    anchor apple arrow barley basket bread bridge brother candle castle cedar chariot copper
    corn crown desert dove dream eagle father feast field fire flower forest garden gate glass
    gold grape hammer harvest honey horse house iron island ivory lamb lamp leaf letter lion
    lizard meadow milk mirror moon morning mother mountain night olive oven palace pearl pillar
    plough rain raven ring river robe rose sailor salt shadow shepherd ship silver sister snow
    spear spring stone storm summer sword table temple thorn thunder tower tree valley vessel
    village vine water wheat widow wind window wine winter wolf wood
"""


@dataclass(frozen=True)
class Fact:
    """A sentence to hide, and the question that it answers.

    Attributes:
        question: Tokens of the sentence up to the value.
        values: Tokens of `CANDIDATES` values, as many for each; the right one's first.
        end: Tokens that end the sentence.
    """

    question: list[int]
    values: list[list[int]]
    end: list[int]

    @property
    def sentence(self) -> list[int]:
        """Tokens of the sentence with the right value."""
        return [*self.question, *self.values[0], *self.end]


def draw_fact(rng: np.random.Generator, tokenizer: Any, kind: str) -> Fact:
    """Draw the place and the values of "The secret number of Jericho is 73914."

    The question, the value and the full stop are tokenized each by itself, so that the sentence
    and the question have the same tokens.

    Args:
        rng: where the numbers come from.
        tokenizer: a tokenizer from `load`, or one of transformers.
        kind: "number": five digits; "word": a common noun.

    Raises:
        ValueError: the tokenizer makes unlike numbers of tokens of the words, so that they cannot
            be compared.
    """
    place = str(rng.choice(_PLACES.split()))
    values: dict[int, list[list[int]]] = defaultdict(list)
    for value in _numbers(rng) if kind == "number" else rng.permutation(_WORDS.split()):
        tokens = encode_inside(tokenizer, f" {value}")
        alike = values[len(tokens)]
        if tokens not in alike:
            alike.append(tokens)
        if len(alike) == CANDIDATES:
            question = encode_inside(tokenizer, f" The secret {kind} of {place} is")
            return Fact(question, alike, encode_inside(tokenizer, "."))
    raise ValueError(
        f"this tokenizer has no {CANDIDATES} {kind}s of the same number of tokens to compare"
    )


def _numbers(rng: np.random.Generator) -> Iterator[int]:
    # far more than it takes to find some that are alike
    for _ in range(100 * CANDIDATES):
        yield int(rng.integers(10_000, 100_000))
